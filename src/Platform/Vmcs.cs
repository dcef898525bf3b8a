namespace Tdp.Platform;

/// <summary>VM exit reasons used here (SDM appendix C numbers; td-guest 4).</summary>
public enum ExitReason : uint
{
    /// <summary>Exception or NMI.</summary>
    ExceptionOrNmi = 0,

    /// <summary>External interrupt; also a kick.</summary>
    ExternalInterrupt = 1,

    /// <summary>Triple fault.</summary>
    TripleFault = 2,

    /// <summary>INIT.</summary>
    Init = 3,

    /// <summary>SMI.</summary>
    OtherSmi = 6,

    /// <summary>Interrupt window.</summary>
    InterruptWindow = 7,

    /// <summary>NMI window.</summary>
    NmiWindow = 8,

    /// <summary>Task switch.</summary>
    TaskSwitch = 9,

    /// <summary>CPUID.</summary>
    Cpuid = 10,

    /// <summary>GETSEC.</summary>
    Getsec = 11,

    /// <summary>HLT.</summary>
    Hlt = 12,

    /// <summary>INVD.</summary>
    Invd = 13,

    /// <summary>INVLPG.</summary>
    Invlpg = 14,

    /// <summary>RDPMC.</summary>
    Rdpmc = 15,

    /// <summary>RSM.</summary>
    Rsm = 17,

    /// <summary>VMCALL.</summary>
    Vmcall = 18,

    /// <summary>VMCLEAR.</summary>
    Vmclear = 19,

    /// <summary>VMLAUNCH.</summary>
    Vmlaunch = 20,

    /// <summary>VMPTRLD.</summary>
    Vmptrld = 21,

    /// <summary>VMPTRST.</summary>
    Vmptrst = 22,

    /// <summary>VMREAD.</summary>
    Vmread = 23,

    /// <summary>VMRESUME.</summary>
    Vmresume = 24,

    /// <summary>VMWRITE.</summary>
    Vmwrite = 25,

    /// <summary>VMXOFF.</summary>
    Vmxoff = 26,

    /// <summary>VMXON.</summary>
    Vmxon = 27,

    /// <summary>Control-register access.</summary>
    CrAccess = 28,

    /// <summary>Port I/O.</summary>
    IoInstruction = 30,

    /// <summary>RDMSR.</summary>
    Rdmsr = 31,

    /// <summary>WRMSR.</summary>
    Wrmsr = 32,

    /// <summary>MWAIT.</summary>
    Mwait = 36,

    /// <summary>MONITOR.</summary>
    Monitor = 39,

    /// <summary>Machine check during entry.</summary>
    MachineCheck = 41,

    /// <summary>EPT violation.</summary>
    EptViolation = 48,

    /// <summary>EPT misconfiguration.</summary>
    EptMisconfiguration = 49,

    /// <summary>INVEPT.</summary>
    Invept = 50,

    /// <summary>INVVPID.</summary>
    Invvpid = 53,

    /// <summary>WBINVD or WBNOINVD.</summary>
    Wbinvd = 54,

    /// <summary>XSETBV.</summary>
    Xsetbv = 55,

    /// <summary>APIC write.</summary>
    ApicWrite = 56,

    /// <summary>VMFUNC.</summary>
    Vmfunc = 59,

    /// <summary>ENCLS.</summary>
    Encls = 60,

    /// <summary>Page-modification log full.</summary>
    PageModificationLogFull = 62,

    /// <summary>PCONFIG.</summary>
    Pconfig = 65,

    /// <summary>ENCLV.</summary>
    Enclv = 70,

    /// <summary>ENQCMD with a failing PASID.</summary>
    Enqcmd = 72,

    /// <summary>ENQCMDS.</summary>
    Enqcmds = 73,

    /// <summary>Bus lock detected.</summary>
    BusLock = 74,

    /// <summary>Notification: no event window for too long.</summary>
    Notify = 75,

    /// <summary>SEAMCALL in a guest.</summary>
    Seamcall = 76,

    /// <summary>TDCALL.</summary>
    Tdcall = 77,

    /// <summary>Simulator only: ENCLU under <see cref="Vmcs.EncluFaults"/> (profile point B03).</summary>
    SimulatorEnclu = 0x1000,

    /// <summary>Simulator only: the script of a scripted guest has ended.</summary>
    SimulatorScriptEnd = 0x1001,
}

/// <summary>Why the guest was left, and with what (td-guest 1.3, 4).</summary>
public struct VmExit
{
    /// <summary>Basic exit reason.</summary>
    public ExitReason Reason;

    /// <summary>Exit qualification, raw.</summary>
    public ulong Qualification;

    /// <summary>Guest physical address with alias bit, for EPT exits.</summary>
    public ulong Gpa;

    /// <summary>Guest linear address, where qualification bit 7 says it is valid.</summary>
    public ulong Gla;

    /// <summary>Length of the instruction that caused the exit; meaningless for EPT violations.</summary>
    public uint InstructionLength;

    /// <summary>Instruction information field.</summary>
    public uint InstructionInfo;

    /// <summary>Interruption information: vector 7:0, type 10:8, error code valid 11, NMI unblocking 12, valid 31.</summary>
    public uint InterruptInfo;

    /// <summary>EPT violation: the entry where the walk stopped had bit 63 clear and was non-present or a leaf, so the CPU would have converted it (td-guest 5.3).</summary>
    public bool IsConvertible;
}

/// <summary>An event to inject at entry, or the event whose delivery an exit interrupted. VMX interruption-information format.</summary>
public struct VmEvent
{
    /// <summary>Type field: external interrupt.</summary>
    public const int External = 0;

    /// <summary>Type field: NMI.</summary>
    public const int Nmi = 2;

    /// <summary>Type field: hardware exception.</summary>
    public const int HardwareException = 3;

    /// <summary>Type field: software interrupt (INT n).</summary>
    public const int SoftwareInterrupt = 4;

    /// <summary>Type field: software exception (INT3, INTO).</summary>
    public const int SoftwareException = 6;

    /// <summary>True when there is an event.</summary>
    public bool IsValid;

    /// <summary>Vector.</summary>
    public byte Vector;

    /// <summary>Type: 0 external, 2 NMI, 3 hardware exception, 4 software interrupt, 6 software exception.</summary>
    public byte Type;

    /// <summary>True when the error code is pushed.</summary>
    public bool HasErrorCode;

    /// <summary>Error code.</summary>
    public uint ErrorCode;

    /// <summary>Instruction length, for software events.</summary>
    public byte InstructionLength;

    /// <summary>A hardware exception without an error code.</summary>
    public static VmEvent Exception(byte vector) => new() { IsValid = true, Vector = vector, Type = HardwareException };

    /// <summary>A hardware exception with an error code.</summary>
    public static VmEvent Exception(byte vector, uint errorCode) =>
        new() { IsValid = true, Vector = vector, Type = HardwareException, HasErrorCode = true, ErrorCode = errorCode };

    /// <summary>An external interrupt.</summary>
    public static VmEvent Interrupt(byte vector) => new() { IsValid = true, Vector = vector, Type = External };

    /// <summary>An NMI.</summary>
    public static VmEvent NonMaskable() => new() { IsValid = true, Vector = 2, Type = Nmi };
}

/// <summary>Which MSR accesses exit: one bit per MSR of the two ranges, for reads and for writes. MSRs outside the ranges always exit.</summary>
public sealed class MsrBitmap
{
    private readonly ulong[] _low = new ulong[2 * 128];
    private readonly ulong[] _high = new ulong[2 * 128];

    /// <summary>All accesses exit.</summary>
    public MsrBitmap()
    {
        Array.Fill(_low, ulong.MaxValue);
        Array.Fill(_high, ulong.MaxValue);
    }

    /// <summary>Says whether reading or writing an MSR exits. Outside 0..0x1FFF and 0xC0000000..0xC0001FFF nothing can be set.</summary>
    public void Set(uint msr, bool write, bool exits)
    {
        if (!Locate(msr, write, out ulong[] words, out int bit))
            throw new ArgumentOutOfRangeException(nameof(msr), $"MSR 0x{msr:x} is outside the bitmap");
        if (exits)
            words[bit >> 6] |= 1UL << (bit & 63);
        else
            words[bit >> 6] &= ~(1UL << (bit & 63));
    }

    /// <summary>True when the access exits.</summary>
    public bool Exits(uint msr, bool write) => !Locate(msr, write, out ulong[] words, out int bit) || (words[bit >> 6] & (1UL << (bit & 63))) != 0;

    private bool Locate(uint msr, bool write, out ulong[] words, out int bit)
    {
        words = msr < 0x2000 ? _low : _high;
        bit = (int)(msr & 0x1FFF) + (write ? 0x2000 : 0);
        return msr is < 0x2000 or (>= 0xC0000000 and < 0xC0002000);
    }
}

/// <summary>
/// What the VMX engine needs to run a vCPU: guest state, translation roots, events and controls (decisions D10). For a TD it belongs to the
/// module; for an ordinary VM to the Host. One thread at a time.
/// </summary>
public sealed class Vmcs
{
    /// <summary>Number of the vCPU within its machine; TLB tag.</summary>
    public required int VcpuId { get; init; }

    /// <summary>Architectural state.</summary>
    public GuestState State { get; } = new();

    /// <summary>EPT pointer: of the Secure EPT for a TD, of the only EPT for a VM. Also the TLB context.</summary>
    public ulong Eptp { get; set; }

    /// <summary>EPT pointer of the shared alias; 0 while the Host has not set one (every shared access then violates with suppress-#VE).</summary>
    public ulong SharedEptp { get; set; }

    /// <summary>The TD's alias bit; <see cref="AliasBit.None"/> for a VM.</summary>
    public AliasBit AliasBit { get; set; }

    /// <summary>Guest physical address width: 48 or 52.</summary>
    public int GpaWidth { get; set; } = 48;

    /// <summary>True in a TD: TDCALL exists, and forbidden instructions exit.</summary>
    public bool IsTd { get; set; }

    /// <summary>Event to deliver at the next entry; the engine clears it when delivered.</summary>
    public VmEvent EntryEvent;

    /// <summary>Event whose delivery the last exit interrupted.</summary>
    public VmEvent IdtVectoring;

    /// <summary>The CPU's #VE information area; null where #VE does not exist (ordinary VM).</summary>
    public VeInfo? VeInfo { get; set; }

    /// <summary>MSR exits.</summary>
    public MsrBitmap MsrBitmap { get; set; } = new();

    /// <summary>CR0 bits whose change exits with reason 28.</summary>
    public ulong Cr0Owned { get; set; }

    /// <summary>CR4 bits whose change exits with reason 28.</summary>
    public ulong Cr4Owned { get; set; }

    /// <summary>MONITOR and MWAIT exit.</summary>
    public bool MonitorExits { get; set; } = true;

    /// <summary>WBINVD exits (always in a TD).</summary>
    public bool WbinvdExits { get; set; } = true;

    /// <summary>RDPMC exits.</summary>
    public bool RdpmcExits { get; set; } = true;

    /// <summary>
    /// Page-modification logging: whenever the walker sets Dirty in a leaf it stores the page's GPA in <see cref="PmlPage"/>. Needs A/D in the EPT pointer.
    /// </summary>
    public bool LogsDirtyPages { get; set; }

    /// <summary>The page-modification log: 512 addresses, filled from the last entry downwards.</summary>
    public Hpa PmlPage { get; set; }

    /// <summary>
    /// The next entry of the log to be written, at first 511. Beyond 511 (wrapped below 0) the log is full: an access that must set Dirty exits with reason 62 instead.
    /// </summary>
    public ushort PmlIndex { get; set; } = 511;

    /// <summary>Exit as soon as an NMI could be delivered.</summary>
    public bool NmiWindowExiting { get; set; }

    /// <summary>Exit as soon as a maskable interrupt could be delivered.</summary>
    public bool InterruptWindowExiting { get; set; }

    /// <summary>Simulator only: ENCLU exits so that the module can inject #GP (profile point B03).</summary>
    public bool EncluFaults { get; set; }

    /// <summary>Simulator only: maskable interrupts wait while #VE information is valid, whatever IF says (profile point B08).</summary>
    public bool HoldInterruptsWhileVeValid { get; set; }

    /// <summary>TSC = ((ticks × multiplier) >> 48) + offset.</summary>
    public ulong TscMultiplier { get; set; } = 1UL << 48;

    /// <summary>See <see cref="TscMultiplier"/>.</summary>
    public ulong TscOffset { get; set; }

    /// <summary>The last exit; valid after <see cref="IVmxEngine.Enter"/> returned.</summary>
    public VmExit Exit;
}

/// <summary>The #VE information area of one vCPU (td-guest 5.1). The CPU fills it on conversion, the module on injection; TDG.VP.VEINFO.GET empties it.</summary>
public sealed class VeInfo
{
    /// <summary>True while it holds an unread #VE: no other may be delivered.</summary>
    public bool IsValid { get; set; }

    /// <summary>Exit reason.</summary>
    public uint Reason { get; set; }

    /// <summary>Exit qualification, raw.</summary>
    public ulong Qualification { get; set; }

    /// <summary>Guest linear address.</summary>
    public ulong Gla { get; set; }

    /// <summary>Guest physical address, with alias bit and offset.</summary>
    public ulong Gpa { get; set; }

    /// <summary>Instruction length; 0xCC when undefined, so that a guest that uses it is caught.</summary>
    public uint InstructionLength { get; set; }

    /// <summary>Instruction information.</summary>
    public uint InstructionInfo { get; set; }

    /// <summary>Fills the area and makes it valid.</summary>
    public void Fill(uint reason, ulong qualification, ulong gla, ulong gpa, uint instructionLength, uint instructionInfo)
    {
        Reason = reason;
        Qualification = qualification;
        Gla = gla;
        Gpa = gpa;
        InstructionLength = instructionLength;
        InstructionInfo = instructionInfo;
        IsValid = true;
    }
}

/// <summary>The processor in non-root mode. It returns exits and calls nobody (decisions D10).</summary>
public interface IVmxEngine
{
    /// <summary>
    /// Delivers the entry event, if any, and runs the vCPU on <paramref name="lp"/> until an exit, a kick
    /// (<see cref="LogicalProcessor.ShouldExit"/>, answered with <see cref="ExitReason.ExternalInterrupt"/>) or an interrupt. The exit is also left in
    /// <see cref="Vmcs.Exit"/>.
    /// </summary>
    ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs);
}
