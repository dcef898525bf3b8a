namespace Tdp.Tests.Properties.Leaves;

// The end of a TD, pages whatever they belong to, other processors' locks (tdx-module 3.4, 4.2, 4.5, 7.3).
internal sealed partial class LeafModel
{
    public Answer VpFlushDone()
    {
        ulong status = TakeTdrAlone(LeafFacts.Rcx);
        if (status == 0 && Cycle != Life.KeysConfigured)
            status = LeafFacts.LifecycleIncorrect;
        if (status == 0 && Vcpus.Exists(v => v.Lp >= 0))
            status = LeafFacts.FlushVpNotDone;
        if (status == 0)
            Cycle = Life.Blocked;
        return new Answer(status);
    }

    public Answer CacheWb(int lp)
    {
        // One HKID is FLUSHED from VPFLUSHDONE to KEY.FREEID, whatever has been written back already.
        if (Cycle != Life.Blocked)
            return new Answer(LeafFacts.NoHkidReady);
        if (Lps[lp].Interrupt)
            return new Answer(LeafFacts.InterruptedResumable);
        _packageFlushed[PackageOf(lp)] = true;
        return new Answer(LeafFacts.Success);
    }

    public Answer KeyFreeId()
    {
        ulong status = TakeTdrAlone(LeafFacts.Rcx);
        if (status == 0 && Cycle != Life.Blocked)
            status = LeafFacts.LifecycleIncorrect;
        if (status == 0 && !(_packageFlushed[0] && _packageFlushed[1]))
            status = LeafFacts.WbcacheNotComplete;
        if (status == 0)
            Cycle = Life.Teardown;
        return new Answer(status);
    }

    public Answer Rdmd(ulong page)
    {
        if (Covering(page, exclusive: false, out (ulong Page, int Level) at) is var status and not 0)
            return new Answer(status);
        int type = Pages.GetValueOrDefault(at);
        ulong owner = type is LeafFacts.NoType or LeafFacts.TdrType ? 0 : LeafWorld.Tdr;
        return new Answer(0, (ulong)type, owner, (ulong)at.Level);
    }

    public Answer Wbinvd(ulong page)
    {
        ulong status = Covering(page, exclusive: false, out (ulong Page, int Level) at);
        return new Answer(status != 0 ? status : Pages.ContainsKey(at) ? LeafFacts.PageMetadataIncorrect | LeafFacts.Rcx : 0);
    }

    public Answer Reclaim(ulong page)
    {
        if (Covering(page, exclusive: true, out (ulong Page, int Level) at) is var status and not 0)
            return new Answer(status);
        int type = Pages.GetValueOrDefault(at);
        if (type == LeafFacts.NoType)
            return new Answer(LeafFacts.PageMetadataIncorrect | LeafFacts.Rcx);
        Answer described = new(0, (ulong)type, type == LeafFacts.TdrType ? 0 : LeafWorld.Tdr, (ulong)at.Level);
        if (page != at.Page)
            return described with { Rax = LeafFacts.OperandInvalid | LeafFacts.Rcx };
        if (type != LeafFacts.TdrType && Holder == HolderKind.TdrAlone)
            return described with { Rax = LeafFacts.OperandBusy | LeafFacts.TdrId };
        if (Cycle != Life.Teardown)
            return described with { Rax = LeafFacts.LifecycleIncorrect };
        if (type == LeafFacts.TdrType && Children != 0)
            return described with { Rax = LeafFacts.AssociatedPagesExist };
        Pages.Remove(at);
        if (type == LeafFacts.TdrType)
            Cycle = Life.Gone;
        else
            Children -= 1L << (9 * at.Level);
        return described;
    }

    public void SetInterrupt(int lp, bool pending) => Lps[lp].Interrupt = pending;

    public void Wait(int lp) => Lps[lp].Time++;

    /// <summary>Another processor takes its locks, if it can have them all; true when it has.</summary>
    public bool Hold(HolderKind kind, ulong page, ulong gpa, int level)
    {
        if (Holder != HolderKind.None || kind == HolderKind.None || Cycle == Life.Gone)
            return false;
        ulong large = LeafWorld.Align(page, 1);
        bool can = kind switch
        {
            HolderKind.TdrAlone => !AnybodyInside,
            HolderKind.ReaderWithEntry => Cycle == Life.KeysConfigured && Walk(gpa, level, out _, out _),
            HolderKind.Page => page is >= LeafWorld.SmallPool and < LeafWorld.End && (page & 0xFFF) == 0 && !Pages.ContainsKey((large, 1)),
            HolderKind.Large => page is >= LeafWorld.SmallPool and < LeafWorld.End && page == large,
            _ => Cycle == Life.KeysConfigured,
        };
        if (!can)
            return false;
        Holder = kind;
        HeldPage = page;
        HeldEntry = (gpa, level);
        if (kind == HolderKind.ReaderWithEntry)
            SetPriority(gpa, level, false);
        return true;
    }

    public void Release() => Holder = HolderKind.None;

    private static int PackageOf(int lp) => lp * 2 / LeafWorld.Lps;

    // An explicit walk without the TDR: the entry that covers the page, locked as wanted.
    private ulong Covering(ulong page, bool exclusive, out (ulong Page, int Level) at)
    {
        at = (page, 0);
        if ((page & 0xFFF) != 0)
            return LeafFacts.OperandInvalid | LeafFacts.Rcx;
        if (page >= LeafWorld.Start + LeafWorld.Gib)
            return LeafFacts.OperandAddrRangeError | LeafFacts.Rcx;
        ulong large = LeafWorld.Align(page, 1);
        if (IsLargeHeld(large))
            return LeafFacts.OperandBusy | LeafFacts.Rcx;
        if (Pages.ContainsKey((large, 1)))
        {
            at = (large, 1);
            return 0;
        }

        bool busy = IsPageHeld(page)
            || (page == LeafWorld.Tdr && (exclusive ? IsTdrShared || Holder == HolderKind.TdrAlone : Holder == HolderKind.TdrAlone))
            || (exclusive && Vcpus.Exists(v => v.Inside >= 0 && LeafWorld.Vcpu(Vcpus.IndexOf(v)) == page));
        return busy ? LeafFacts.OperandBusy | LeafFacts.Rcx : 0;
    }
}
