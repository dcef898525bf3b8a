namespace Tdp.Host;

/// <content>Pages that are not in memory now, or not good any more: swap and memory errors (tdp-mmu 5.4 steps 8 and 9).</content>
public sealed partial class HostMemory
{
    /// <summary>Page-table word: the content is in swap; bits 51:12 are the frame that plays the swap device.</summary>
    internal const ulong Swapped = 1 << 2;

    /// <summary>Page-table word: a memory error hit the page; there is nothing to be had.</summary>
    internal const ulong Poisoned = 1 << 3;

    /// <summary>Writes pages to swap and frees their frames; the guest's mappings go first. The next access must read them in, which takes time.</summary>
    public void SwapOut(Actor actor, ulong address, ulong pages) => Change(actor, address, pages, ToSwap);

    /// <summary>
    /// A memory error hits a page (memory_failure): the guest's mapping goes, the frame is never used again, and every later access answers -EHWPOISON.
    /// </summary>
    public void Poison(Actor actor, ulong address) => Change(actor, address, 1, static (_, word) => (word & Present) != 0 ? Poisoned : word);

    // Swap frames are the kernel's.
    private void Release(Actor actor, ulong word) =>
        _frames.Give(actor, new Hpa(word & Hpa.Mask), (word & Present) != 0 ? FrameUse.HostShared : FrameUse.Kernel);

    private ulong ToSwap(Actor actor, ulong word)
    {
        if ((word & Present) == 0 || !_frames.TryTake(actor, FrameUse.Kernel, out Hpa store, out _))
            return word;
        _machine.Memory.Copy(new Hpa(word & Hpa.Mask), store);
        return store.Value | (word & Writable) | Swapped;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno FaultPaged(Actor actor, Region region, ulong page, ref ulong word, bool mayWait)
    {
        while ((word & (Present | Poisoned)) == 0)
        {
            if ((word & Swapped) == 0)
                return Fault(actor, region, page, ref word);
            if (!mayWait)
                return Errno.EAGAIN;
            if (!_frames.TryTake(actor, FrameUse.HostShared, out Hpa frame, out _))
                return Errno.ENOMEM;
            _machine.Memory.Copy(new Hpa(word & Hpa.Mask), frame);
            ulong store = word;
            ulong filled = frame.Value | (word & Writable) | Present;

            // Linearizes here. Another fault may have read the page in, or a discard may have dropped it, meanwhile: then what was copied is void.
            if (region.Table[page].CompareExchange(ref word, filled))
            {
                word = filled;
                _frames.Give(actor, new Hpa(store & Hpa.Mask), FrameUse.Kernel);
            }
            else
            {
                _frames.Give(actor, frame, FrameUse.HostShared);
            }
        }

        return (word & Poisoned) != 0 ? Errno.EHWPOISON : Errno.None;
    }
}
