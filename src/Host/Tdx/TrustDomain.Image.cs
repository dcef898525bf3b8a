namespace Tdp.Host;

/// <summary>Writes the content of page <paramref name="page"/> of an initial image into 4096 bytes.</summary>
/// <param name="page">Number of the page within the call, from 0.</param>
/// <param name="destination">4096 bytes.</param>
public delegate void PageFill(ulong page, Span<byte> destination);

/// <content>The initial image (tdp-mmu 5.10).</content>
public sealed partial class TrustDomain
{
    private const int ExtendChunk = 256;

    /// <summary>
    /// KVM_TDX_INIT_MEM_REGION: adds pages of the initial image, each from the caller's buffer, and measures them if asked
    /// (tdp-mmu 5.10, newest form: PAGE.ADD happens inside the mirror update).
    /// </summary>
    /// <param name="actor">Who; stands on a processor.</param>
    /// <param name="gpa">First byte of guest memory, page-aligned, natural.</param>
    /// <param name="pages">Number of pages, at least 1.</param>
    /// <param name="isMeasured">KVM_TDX_MEASURE_MEMORY_REGION.</param>
    /// <param name="fill">Writes the content of page <c>i</c> into the 4096 bytes it is given.</param>
    /// <param name="done">Pages that were added, also on error.</param>
    /// <returns>-EINVAL bad range, no vCPU yet, finalized, no slot with a file there, or not private; -EIO already added or module error; -EFAULT the file is closed; -EINTR; -ENOMEM.</returns>
    public Errno InitMemoryRegion(Actor actor, ulong gpa, ulong pages, bool isMeasured, PageFill fill, out ulong done)
    {
        done = 0;
        EnterGuard(actor);
        try
        {
            if (_vm.IsDead)
                return Errno.EIO;
            ulong end = gpa + (pages << 12);
            if (_vm.Vcpus.Length == 0 || !_vm.VcpuOf(0).IsInitialized || State.Peek() != TdState.Initialized || (gpa & 0xFFF) != 0 || pages == 0 || end < gpa
                || _vm.AliasBit.Of(new Gpa(gpa)) == Alias.Shared || _vm.AliasBit.Of(new Gpa(end - 1)) == Alias.Shared || end > 1UL << _vm.GpaWidth)
                return Errno.EINVAL;
            return AddPages(actor, new Gfn(gpa >> 12), pages, isMeasured, fill, ref done);
        }
        finally
        {
            ExitGuard(actor);
        }
    }

    private Errno AddPages(Actor actor, Gfn first, ulong pages, bool isMeasured, PageFill fill, ref ulong done)
    {
        if (!_kernel.Frames.TryTake(actor, FrameUse.Kernel, out Hpa source, out _))
            return Errno.ENOMEM;
        MmuVcpu mmu = _vm.VcpuOf(0).Mmu;
        Actor before = mmu.Actor;
        mmu.Actor = actor;
        _vm.Srcu.ReadEnter(actor);
        Errno result = Errno.None;
        for (; done < pages && result == Errno.None; done += result == Errno.None ? 1UL : 0)
        {
            if (_vm.VcpuOf(0).IsSignalPending)
            {
                result = Errno.EINTR;
                break;
            }

            fill(done, _kernel.Machine.Memory.Frame(source));
            result = AddPage(actor, mmu, first + done, source, isMeasured);
        }

        _vm.Srcu.ReadExit(actor);
        _kernel.Frames.Give(actor, source, FrameUse.Kernel);
        mmu.Actor = before;
        return result;
    }

    private Errno AddPage(Actor actor, MmuVcpu mmu, Gfn gfn, Hpa source, bool isMeasured)
    {
        if (_vm.SlotsOf(0).Active.Find(gfn) is not { Memfd: { } file } slot || slot.IsInvalid)
            return Errno.EINVAL;
        if (!_vm.Mmu.ReloadRoots(mmu))
            return Errno.ENOMEM;

        // Held exclusively over map and measurement, so that no punch hole comes between (R27).
        file.InvalidateLock.EnterWrite(actor);
        try
        {
            Errno found = file.LookupLocked(actor, slot.MemfdPageOf(gfn), out Hpa frame);
            if (found != Errno.None)
                return found;
            if (!_vm.Attributes!.IsPrivate(gfn))
                return Errno.EINVAL;
            if (PageAddSource is not null)
            {
                _vm.Bug(actor, "an initial page is being added while another one is");
                return Errno.EIO;
            }

            PageAddSource = source;
            FaultResult mapped = _vm.Mmu.MapPrivatePfn(mmu, slot.Mmu, gfn, frame.Frame);
            PageAddSource = null;

            // SPURIOUS: the page was added before (R26).
            if (mapped != FaultResult.Fixed)
                return mapped == FaultResult.NoMemory ? Errno.ENOMEM : Errno.EIO;
            return isMeasured ? Measure(actor, gfn) : Errno.None;
        }
        finally
        {
            file.InvalidateLock.ExitWrite(actor);
        }
    }

    private Errno Measure(Actor actor, Gfn gfn)
    {
        LogicalProcessor lp = _kernel.Processors.Of(actor);
        for (ulong offset = 0; offset < 4096; offset += ExtendChunk)
        {
            SeamRegisters registers = SeamRegisters.Call(TdhLeaf.MR_EXTEND, gfn.Gpa.Value + offset, _tdr.Value);
            TdxStatus status = _kernel.Port!.Call(lp, ref registers);
            if (status == TdxStatus.SUCCESS)
                continue;
            _vm.Bug(actor, $"{TdhLeaf.MR_EXTEND.FullName()} failed: {status}");
            return Errno.EIO;
        }

        return Errno.None;
    }
}
