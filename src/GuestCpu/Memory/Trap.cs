namespace Tdp.Cpu;

/// <summary>How an instruction failed to complete.</summary>
internal enum TrapKind : byte
{
    /// <summary>It did complete.</summary>
    None,

    /// <summary>An exception to deliver inside the guest.</summary>
    Exception,

    /// <summary>An exit; <see cref="Vmcs.Exit"/> describes it.</summary>
    Exit,
}

/// <summary>Vectors of the exceptions that this CPU raises (td-guest 1.7).</summary>
internal static class Vector
{
    public const byte DivideError = 0;
    public const byte Debug = 1;
    public const byte NonMaskable = 2;
    public const byte Breakpoint = 3;
    public const byte InvalidOpcode = 6;
    public const byte DeviceNotAvailable = 7;
    public const byte DoubleFault = 8;
    public const byte InvalidTss = 10;
    public const byte SegmentNotPresent = 11;
    public const byte StackFault = 12;
    public const byte GeneralProtection = 13;
    public const byte PageFault = 14;
    public const byte AlignmentCheck = 17;
    public const byte Virtualization = 20;
    public const byte ControlProtection = 21;
}

/// <summary>What went wrong with the current instruction. At most one thing does; the instruction has then changed nothing but what the architecture says.</summary>
internal struct Trap
{
    public TrapKind Kind;
    public byte Vector;
    public bool HasErrorCode;
    public uint ErrorCode;

    /// <summary>#PF: the address for CR2.</summary>
    public ulong Address;

    /// <summary>Raises an exception without an error code. Always false, so that a failing path can return it.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public bool Raise(byte vector)
    {
        this = new Trap { Kind = TrapKind.Exception, Vector = vector };
        return false;
    }

    /// <summary>Raises an exception with an error code. Always false.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public bool Raise(byte vector, uint errorCode)
    {
        this = new Trap { Kind = TrapKind.Exception, Vector = vector, HasErrorCode = true, ErrorCode = errorCode };
        return false;
    }

    /// <summary>#GP(0). Always false.</summary>
    public bool GeneralProtection() => Raise(Cpu.Vector.GeneralProtection, 0);

    /// <summary>#PF. Always false.</summary>
    public bool PageFault(ulong address, uint errorCode)
    {
        Raise(Cpu.Vector.PageFault, errorCode);
        Address = address;
        return false;
    }

    /// <summary>The instruction ends in the exit that is described in the VMCS. Always false.</summary>
    public bool Exit()
    {
        this = new Trap { Kind = TrapKind.Exit };
        return false;
    }
}
