namespace Tdp.Kernel;

/// <summary>A named place in the guest.</summary>
/// <param name="Name">Name, as the assembler or the linker knows it.</param>
/// <param name="Address">Linear address, equal to the GPA.</param>
/// <param name="Bytes">Length in bytes; 0 if unknown.</param>
public readonly record struct GuestSymbol(string Name, ulong Address, ulong Bytes);

/// <summary>Names for addresses, so that traces and error messages can print <c>accept_range+0x12</c>. Immutable; any thread may read it.</summary>
public sealed class GuestSymbols
{
    private readonly GuestSymbol[] _byAddress;
    private readonly Dictionary<string, ulong> _byName;

    /// <summary>Builds the table; of several symbols with one name the first counts.</summary>
    /// <param name="symbols">Any order.</param>
    public GuestSymbols(IEnumerable<GuestSymbol> symbols)
    {
        ArgumentNullException.ThrowIfNull(symbols);
        var list = new List<GuestSymbol>(symbols);
        list.Sort(static (a, b) => a.Address != b.Address ? a.Address.CompareTo(b.Address) : string.CompareOrdinal(a.Name, b.Name));
        _byAddress = [.. list];
        _byName = new Dictionary<string, ulong>(StringComparer.Ordinal);
        foreach (GuestSymbol symbol in _byAddress)
            _byName.TryAdd(symbol.Name, symbol.Address);
    }

    /// <summary>All symbols in ascending order of address.</summary>
    public IReadOnlyList<GuestSymbol> All => _byAddress;

    /// <summary>Looks a name up.</summary>
    /// <param name="name">Exact name.</param>
    /// <param name="address">Its address, or 0.</param>
    /// <returns>False if there is no such symbol.</returns>
    public bool TryGetAddress(string name, out ulong address) => _byName.TryGetValue(name, out address);

    /// <summary>The nearest symbol at or below an address, as <c>name</c> or <c>name+0x12</c>.</summary>
    /// <param name="address">Linear address.</param>
    /// <returns>Null if nothing is known: no symbol below, or the address lies behind the end of a symbol of known length.</returns>
    public string? Describe(ulong address)
    {
        int low = 0, high = _byAddress.Length;
        while (low < high)
        {
            int middle = (low + high) >>> 1;
            if (_byAddress[middle].Address <= address)
                low = middle + 1;
            else
                high = middle;
        }
        if (low == 0)
            return null;
        GuestSymbol symbol = _byAddress[low - 1];
        ulong offset = address - symbol.Address;
        if (offset == 0)
            return symbol.Name;
        return symbol.Bytes != 0 && offset >= symbol.Bytes ? null : $"{symbol.Name}+0x{offset:x}";
    }
}
