namespace Tdp.Module;

/// <summary>
/// One vCPU of a TD: what the real module keeps in the TDVPS pages (tdx-module 4.1). Found from the TDVPR's frame in constant time.
/// </summary>
/// <remarks>
/// STATE and ASSOC_LPID are shared words. The rest belongs to the holder of the TDVPR: exclusively in VP.INIT and VP.FLUSH; shared by VP.ENTER, whose
/// processor is the only one because the vCPU is associated with it.
/// </remarks>
internal sealed class TdVcpu
{
    public const int MinPages = 6;
    public const int MaxPages = 15;
    public const int FaultListSize = 32;
    private const ulong NoProcessor = ulong.MaxValue;
    private readonly WordBlock _words;
    private readonly Hpa[] _pages = new Hpa[MaxPages];

    public TdVcpu(Hpa tdvpr, TdControl td, int number)
    {
        Tdvpr = tdvpr;
        Td = td;
        _pages[0] = tdvpr;
        Vmcs = new Vmcs { VcpuId = number, IsTd = true, VeInfo = new VeInfo() };
        _words = new WordBlock(tdvpr.Frame, separateLines: true, "vcpu-state", "assoc-lpid", "pend-nmi");
        _words[1] = NoProcessor;
    }

    public Hpa Tdvpr { get; }

    public TdControl Td { get; }

    public Vmcs Vmcs { get; }

    /// <summary>Pages, counting the TDVPR.</summary>
    public int Pages { get; private set; } = 1;

    public uint Index { get; set; }

    public uint X2ApicId { get; set; }

    public TdExitKind LastExit { get; set; }

    public ulong Epoch { get; set; }

    /// <summary>The mask of the last TDG.VP.VMCALL: which registers the host's answer may write.</summary>
    public ulong VmcallMask { get; set; }

    public ulong RipAtEntry { get; set; }

    public int SameRipFaults { get; set; }

    public int FaultCount { get; set; }

    public ulong[] FaultList { get; } = new ulong[FaultListSize];

    /// <summary>The last exit was an EPT violation that zero-step counting saw, with this information for a notification.</summary>
    public bool LastExitWasFault { get; set; }

    /// <summary>When the first host-priority refusal of the current series happened; null outside a series.</summary>
    public ulong? HostPrioritySince { get; set; }

    /// <summary>TSC at the last exit, to notice a rollback.</summary>
    public ulong LastExitTsc { get; set; }

    public ulong DebugCtl { get; set; }

    /// <summary>Not 0: CPUID is a #VE at CPL 0, whatever the leaf.</summary>
    public byte CpuidVeSupervisor { get; set; }

    /// <summary>Not 0: CPUID is a #VE at CPL 1 to 3, whatever the leaf.</summary>
    public byte CpuidVeUser { get; set; }

    /// <summary>CPUID_CONTROL by lookup index: bit 0 CPL 0, bit 1 CPL 1 to 3 (tdx-module 8.5).</summary>
    public byte[] CpuidControl { get; } = new byte[128];

    /// <summary>Host-writable posted-interrupt fields and the like, as last written (tdx-module 4.7).</summary>
    public ulong PostedVector { get; set; } = 0xFFFF;

    public ulong PostedDescriptor { get; set; } = ulong.MaxValue;

    public ulong PinControls { get; set; }

    public ulong SecondaryControls { get; set; }

    public ulong InstructionTimeout { get; set; }

    public ulong SharedEptRoot { get; set; } = ulong.MaxValue;

    public ulong PmlAddress { get; set; } = ulong.MaxValue;

    /// <summary>Supplies the first state instead of the architectural reset (the Direct64 port, decisions D22).</summary>
    public Action<GuestState>? EntryState { get; set; }

    public TdVcpuState State
    {
        get => (TdVcpuState)(byte)_words.Word(0).Read();
        set => _words.Word(0).Write((ulong)value);
    }

    /// <summary>PEND_NMI as the host wrote it: not 0 while an NMI waits.</summary>
    public ulong PendNmi
    {
        get => _words.Word(2).Read();
        set => _words.Word(2).Write(value);
    }

    public bool PendingNmi => PendNmi != 0;

    /// <summary>
    /// Fields that a debugger may write and that nothing here acts on, by class and code: what was written is what is read. Empty for production TDs.
    /// </summary>
    public Dictionary<uint, ulong> StoredFields { get; } = [];

    /// <summary>The associated processor, or -1.</summary>
    public int AssociatedLp => (int)(long)_words.Word(1).Read();

    /// <summary>
    /// Associates the vCPU with a processor unless it is associated with another (tdx-module 4.7). Linearizes at the compare-exchange.
    /// </summary>
    /// <param name="lp">The processor.</param>
    /// <param name="isNew">True when it was not associated before: its translations are then not stale.</param>
    public bool TryAssociate(int lp, out bool isNew)
    {
        ulong found = _words.Word(1).Read();
        isNew = false;
        if (found == (ulong)lp)
            return true;
        found = NoProcessor;
        isNew = _words.Word(1).CompareExchange(ref found, (ulong)lp);
        if (isNew)
        {
            Td.VcpuCounts.Add(1UL << 32);
            return true;
        }

        return found == (ulong)lp;
    }

    /// <summary>Ends the association. The TDVPR is held exclusively.</summary>
    public void Dissociate()
    {
        _words.Word(1).Write(NoProcessor);
        Td.VcpuCounts.Add(unchecked(0UL - (1UL << 32)));
    }

    /// <summary>Under the TDVPR's exclusive lock.</summary>
    public void AddPage(Hpa page) => _pages[Pages++] = page;

    /// <summary>HPA of a page, 0 when it was not added.</summary>
    public ulong PageAt(int index) => index < Pages ? _pages[index].Value : 0;

    /// <summary>Inspection without events.</summary>
    internal (TdVcpuState State, int Lp) Peek() => ((TdVcpuState)(byte)_words[0], (int)(long)_words[1]);
}
