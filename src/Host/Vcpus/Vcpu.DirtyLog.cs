namespace Tdp.Host;

/// <content>What a vCPU keeps for dirty logging: the CPU's page-modification log, and its dirty ring (tdp-mmu 6.7).</content>
public sealed partial class Vcpu
{
    private const ushort EmptyLog = DirtyLog.PmlEntries - 1;

    /// <summary>The vCPU's dirty ring; null unless the VM uses rings.</summary>
    public DirtyRing? DirtyRing { get; private set; }

    /// <summary>Allocates what the VM's way of logging needs; when the vCPU is created.</summary>
    /// <returns>-ENOMEM with nothing allocated.</returns>
    internal Errno SetUpDirtyLog(Actor actor)
    {
        Errno result = Vm.DirtyLog.MakeRing(actor, ((ulong)Vm.Number << 32) | (uint)Id, out DirtyRing? ring);
        if (result != Errno.None)
            return result;
        if (Vm.HasPml)
        {
            if (!Vm.Kernel.Frames.TryTake(actor, FrameUse.Kernel, out Hpa page, out _))
            {
                ring?.Free();
                return Errno.ENOMEM;
            }

            Vmcs!.PmlPage = page;
        }

        DirtyRing = ring;
        return Errno.None;
    }

    private void FreeDirtyLog(Actor actor)
    {
        DirtyRing?.Free();
        DirtyRing = null;
        if (Vmcs is not { PmlPage.Value: not 0 } vmcs)
            return;
        Vm.Kernel.Frames.Give(actor, vmcs.PmlPage, FrameUse.Kernel);
        vmcs.PmlPage = default;
        vmcs.LogsDirtyPages = false;
    }

    // vmx_flush_pml_buffer, at every exit: the CPU filled the log downwards from its end; read in the same order. Inside SRCU.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void EmptyPageModificationLog(Actor actor, Vmcs vmcs)
    {
        int last = vmcs.PmlIndex > EmptyLog ? 0 : vmcs.PmlIndex + 1;
        MemslotSet slots = Vm.SlotsOf(Mmu.IsSmm ? 1 : 0).Active;
        for (int i = EmptyLog; i >= last; i--)
        {
            var gfn = new Gfn(Vm.Kernel.Machine.Memory.Entry(vmcs.PmlPage, i).Read() >> 12);
            if (slots.Find(gfn) is { } slot)
                Vm.DirtyLog.Mark(actor, slot.Mmu, gfn);
        }

        vmcs.PmlIndex = EmptyLog;
    }

    // The ring is at its soft limit: the request stays pending until user space has made room, and until then the vCPU does not run.
    private bool IsStoppedByRing(Actor actor)
    {
        if (DirtyRing is not { IsSoftFull: true })
            return false;
        Kick.Post(actor, VcpuSet.DirtyRingSoftFull);
        RunState.Exit = UserExit.DirtyRingFull;
        return true;
    }
}
