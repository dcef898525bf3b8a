using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>What one step of the module's stress does.</summary>
internal enum FuzzStepKind : byte
{
    /// <summary>SEAMCALL by the host on a processor that is outside any TD.</summary>
    Seamcall,

    /// <summary>TDCALL by the guest that is inside on this processor.</summary>
    Tdcall,

    /// <summary>The guest touches an address; what the hardware cannot translate becomes an exit.</summary>
    Access,

    /// <summary>Any other VM exit of the guest.</summary>
    Exit,

    /// <summary>An external interrupt starts or stops waiting for the processor.</summary>
    Interrupt,
}

/// <summary>One step on one processor, complete: performing it again in the same state gives the same answer.</summary>
internal struct FuzzStep
{
    /// <summary>What it does.</summary>
    public FuzzStepKind Kind;

    /// <summary>Where.</summary>
    public int Lp;

    /// <summary>The host's registers for a SEAMCALL, the guest's for everything that the guest does.</summary>
    public SeamRegisters Registers;

    /// <summary>The exit, with the address of an access.</summary>
    public VmExit Exit;

    /// <summary>The kind of access.</summary>
    public AccessKind Access;

    /// <summary>Whether the interrupt waits from now on.</summary>
    public bool IsPending;

    /// <summary>The step in one line, as a finding prints it.</summary>
    public override readonly string ToString()
    {
        StringBuilder text = new();
        text.Append(CultureInfo.InvariantCulture, $"LP {Lp} ");
        switch (Kind)
        {
            case FuzzStepKind.Seamcall:
                text.Append(((TdhLeaf)(ushort)Registers.Rax).FullName());
                break;
            case FuzzStepKind.Tdcall:
                text.Append(((TdgLeaf)(ushort)Registers.Rax).FullName());
                break;
            case FuzzStepKind.Access:
                text.Append(CultureInfo.InvariantCulture, $"guest {Access} of GPA 0x{Exit.Gpa:x}");
                return text.ToString();
            case FuzzStepKind.Exit:
                text.Append(CultureInfo.InvariantCulture, $"VM exit {Exit.Reason} qualification 0x{Exit.Qualification:x} gpa 0x{Exit.Gpa:x}");
                break;
            default:
                text.Append(IsPending ? "an interrupt waits" : "no interrupt waits");
                return text.ToString();
        }

        SeamRegisters registers = Registers;
        for (Gpr register = Gpr.Rax; register <= Gpr.R15; register++)
        {
            if (registers[register] != 0)
                text.Append(CultureInfo.InvariantCulture, $" {register.ToString().ToLowerInvariant()}=0x{registers[register]:x}");
        }

        return text.ToString();
    }
}
