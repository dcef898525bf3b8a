namespace Tdp.Kernel;

/// <summary>The assembled guest kernel. It is the same for every guest: what differs stands in boot-info and in the kernel's data.</summary>
internal sealed class KernelProgram
{
    private readonly Dictionary<string, ulong> _addresses = new(StringComparer.Ordinal);

    public KernelProgram(byte[] text, List<GuestSymbol> symbols, int fixupCount)
    {
        Text = text;
        Symbols = symbols;
        FixupCount = fixupCount;
        foreach (GuestSymbol symbol in symbols)
            _addresses.Add(symbol.Name, symbol.Address);
    }

    /// <summary>Text and read-only data, from <see cref="GuestAbi.Kernel"/> on.</summary>
    public byte[] Text { get; }

    public IReadOnlyList<GuestSymbol> Symbols { get; }

    public ulong Entry => _addresses["kernel_entry"];

    public ulong ApEntry => _addresses["ap_entry"];

    public ulong FixupTable => _addresses["fixup_table"];

    public int FixupCount { get; }

    /// <summary>Bytes of instructions at the start of <see cref="Text"/>; strings and tables follow.</summary>
    public int CodeBytes => (int)(_addresses["kernel_text_end"] - GuestAbi.Kernel);

    public static KernelProgram Assemble()
    {
        var code = new KernelCode();
        BootCode.Emit(code);
        DescriptorTableCode.Emit(code);
        TrapCode.Emit(code);
        VirtualizationExceptionCode.Emit(code);
        MmioCode.Emit(code);
        TdcallCode.Emit(code);
        AcceptCode.Emit(code);
        PageTableCode.Emit(code);
        ConversionCode.Emit(code);
        TlbCode.Emit(code);
        LockCode.Emit(code);
        ServiceCode.Emit(code);
        HeapCode.Emit(code);
        ConsoleCode.Emit(code);
        OopsCode.Emit(code);
        return code.Finish();
    }
}
