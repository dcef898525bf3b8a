namespace Tdp.Module;

/// <summary>State of a KeyID in the key ownership table (tdx-module 4.1).</summary>
internal enum HkidState : byte
{
    FREE = 0,
    ASSIGNED = 1,
    FLUSHED = 2,
    RESERVED = 3,
}

/// <summary>
/// The key ownership table: who uses which KeyID, and which packages still have to write their caches back (tdx-module 4.1). Guarded by
/// <see cref="Lock"/>: exclusive for changes of state; CACHE.WB holds it shared and clears only its own package's bits.
/// </summary>
internal sealed class KeyOwnership
{
    private const int PackageShift = 8;
    private readonly WordBlock _lock = new(0, separateLines: true, "kot");
    private readonly WordBlock _entries;

    public KeyOwnership(int hkids)
    {
        var names = new string[hkids];
        Array.Fill(names, "kot-entry");
        _entries = new WordBlock(1, separateLines: false, names);
        Count = hkids;
    }

    public int Count { get; }

    public ref ulong Lock => ref _lock[0];

    public HkidState StateOf(int hkid) => (HkidState)(byte)_entries.Word(hkid).Read();

    public ulong PendingPackages(int hkid) => _entries.Word(hkid).Read() >> PackageShift;

    /// <summary>Under the exclusive lock.</summary>
    public void Set(int hkid, HkidState state, ulong pendingPackages = 0) =>
        _entries.Word(hkid).Write((ulong)state | (pendingPackages << PackageShift));

    /// <summary>Under the shared lock and the package's mutex: this package has written back.</summary>
    public void ClearPackage(int hkid, int package) => _entries.Word(hkid).And(~(1UL << (PackageShift + package)));
}
