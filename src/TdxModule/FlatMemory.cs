namespace Tdp.Module;

// What a host reads of the module's pages on a machine whose memory is not encrypted (TdxModuleOptions.MemoryIsFlat). Secure EPT pages and bitmaps are in memory
// as they are. TDs and vCPUs are kept elsewhere, so the first words of their pages are written when somebody may read them: TD_PARAMS taken from such a page is
// refused for its ATTRIBUTES or its XFAM, which are those words.
public sealed partial class TdxModule
{
    /// <summary>Brings a page's content up to date; before the host reads it, and before it is given back with that content.</summary>
    private void ShowControlPage(ulong page)
    {
        if (!Options.MemoryIsFlat || !_pamt.IsLegal(page) || !_pamt.Covers(page))
            return;
        page &= ~0xFFFUL;
        ulong entry = _pamt.Word(_pamt.Entry4K(page)).PlainRead();
        switch (PamtEntry.TypeOf(entry))
        {
            case PageType.TDR:
                TdControl root = _tds[_memory.Record(page >> 12).Tag];
                ulong state = root.State.Read();
                Show(page, (TdControl.IsFatal(state) ? 1UL : 0) | ((ulong)TdControl.PagesOf(state) << 32), (ulong)root.ChildCount());
                break;
            case PageType.TDCX:
                TdControl td = _tds[_memory.Record(PamtEntry.OwnerFrame(entry)).Tag];
                if (td.Pages[0].Value == page)
                    Show(page, td.VcpuCounts.Read(), (ulong)TdControl.OpStateOf(td.State.Read()));
                break;
            case PageType.TDVPR:
                VeInfo info = _vcpus[_memory.Record(page >> 12).Tag].Vmcs.VeInfo!;
                Show(page, info.Reason | (info.IsValid ? (ulong)uint.MaxValue << 32 : 0), info.Qualification);
                break;
            default:
                break;
        }
    }

    private void Show(ulong page, ulong first, ulong second)
    {
        _memory.Word(page) = first;
        _memory.Word(page + 8) = second;
    }
}
