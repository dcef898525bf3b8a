using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>A guest that writes its own counter into random pages of a range, a given number of times.</summary>
internal sealed class Scribbler(Machine machine, ulong seed, ulong first, ulong pages, long writes) : IVmxEngine
{
    private readonly SeedStream _random = new(seed, "program");
    private ulong _target = ulong.MaxValue;
    private long _left = writes;

    /// <summary>Writes that are still to come; the guest ends at 0.</summary>
    public long Left => _left;

    public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
    {
        vmcs.EntryEvent = default;
        while (_left > 0)
        {
            if (lp.ShouldExit)
                return ref Leave(vmcs, ExitReason.ExternalInterrupt);
            if (_target == ulong.MaxValue)
                _target = first + (_random.Below(pages) << 12) + (8 * _random.Below(512));
            if (!GuestPhysical.TryTranslate(machine, lp, vmcs, _target, AccessKind.Write, out ulong hpa))
            {
                GuestPhysical.DescribeLinear(vmcs, _target, isPageTable: false);
                return ref vmcs.Exit;
            }

            machine.Memory.Scalar<ulong>(hpa).Write((ulong)_left);
            _target = ulong.MaxValue;
            _left--;
            lp.Spend(1);
        }

        return ref Leave(vmcs, ExitReason.SimulatorScriptEnd);
    }

    private static ref VmExit Leave(Vmcs vmcs, ExitReason reason)
    {
        vmcs.Exit = new VmExit { Reason = reason, InstructionLength = 1 };
        return ref vmcs.Exit;
    }
}
