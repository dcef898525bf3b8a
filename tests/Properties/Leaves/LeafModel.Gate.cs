namespace Tdp.Tests.Properties.Leaves;

// What all leaves share: the TD gate, locks of others, the walk, pages that are offered (tdx-module 3.2, 4.3, 5.5, 7.2).
internal sealed partial class LeafModel
{
    private bool AnybodyInside => Vcpus.Exists(v => v.Inside >= 0);

    private bool IsTdrShared => AnybodyInside || Holder is HolderKind.Reader or HolderKind.ReaderWithEntry or HolderKind.Blocker or HolderKind.Tracker;

    /// <summary>Steps 3 to 9 with the TDR and OP_STATE shared; 0 when the gate is open.</summary>
    private ulong GateShared(ulong operand, bool allowed)
    {
        if (Cycle == Life.Gone)
            return LeafFacts.PageMetadataIncorrect | operand;
        if (Holder == HolderKind.TdrAlone)
            return LeafFacts.OperandBusy | operand;
        if (Cycle != Life.KeysConfigured)
            return LeafFacts.KeysNotConfigured;
        if (Holder == HolderKind.OpStateAlone)
            return LeafFacts.OperandBusy | LeafFacts.OpState;
        return allowed ? 0 : LeafFacts.OpStateIncorrect;
    }

    /// <summary>The same with the TDR alone, which stands for OP_STATE.</summary>
    private ulong GateAlone(ulong operand, bool allowed)
    {
        ulong status = TakeTdrAlone(operand);
        if (status != 0)
            return status;
        if (Cycle != Life.KeysConfigured)
            return LeafFacts.KeysNotConfigured;
        return allowed ? 0 : LeafFacts.OpStateIncorrect;
    }

    private ulong TakeTdrAlone(ulong operand)
    {
        if (IsTdrShared || Holder == HolderKind.TdrAlone)
            return LeafFacts.OperandBusy | operand;
        return Cycle == Life.Gone ? LeafFacts.PageMetadataIncorrect | operand : 0;
    }

    /// <summary>
    /// The checks before the state: gate, operand, tree, walk, entry. An answer when one fails; otherwise the entry is the caller's.
    /// </summary>
    private Answer? Begin(ulong gpa, int level, int min, int max, bool alone)
    {
        ulong status = GateShared(LeafFacts.Rdx, allowed: true);
        if (status == 0 && (level < min || level > max))
            status = LeafFacts.OperandInvalid | LeafFacts.Rcx;
        if (status == 0 && IsTreeTaken(alone))
            status = LeafFacts.OperandBusy | LeafFacts.SeptTree;
        if (status != 0)
            return new Answer(status);
        if (!Walk(gpa, level, out ulong stopGpa, out int stop))
            return Describe(LeafFacts.WalkFailed | LeafFacts.Rcx, stopGpa, stop);
        return TryTakeEntry(gpa, level) ? null : Describe(LeafFacts.OperandBusy | LeafFacts.Rcx, gpa, level);
    }

    private bool IsTreeTaken(bool alone) =>
        Holder == HolderKind.Blocker || (alone && Holder is HolderKind.Reader or HolderKind.ReaderWithEntry);

    /// <summary>A host that gets the entry clears its priority, one that loses sets it.</summary>
    private bool TryTakeEntry(ulong gpa, int level)
    {
        bool held = Holder == HolderKind.ReaderWithEntry && HeldEntry == (gpa, level);
        SetPriority(gpa, level, held);
        return !held;
    }

    private void SetPriority(ulong gpa, int level, bool value)
    {
        if (Find(gpa, level) is { } entry)
        {
            entry.Priority = value;
            if (!value && entry.State == EntryState.Free)
                Entries.Remove((gpa, level));
        }
        else if (value)
        {
            Entries[(gpa, level)] = new ModelEntry { Priority = true };
        }
    }

    /// <summary>Goes down as long as entries lead to tables; false when it stops above the level.</summary>
    private bool Walk(ulong gpa, int level, out ulong stopGpa, out int stop)
    {
        for (stop = 3; ; stop--)
        {
            stopGpa = LeafWorld.Align(gpa, stop);
            if (stop == level)
                return true;
            if (StateOf(stopGpa, stop) != EntryState.NlMapped)
                return false;
        }
    }

    private Answer Describe(ulong status, ulong gpa, int level) => new(status, Shown(gpa, level), (uint)level | (LeafFacts.Public(StateOf(gpa, level)) << 8));

    private ulong Shown(ulong gpa, int level)
    {
        ModelEntry? entry = Find(gpa, level);
        EntryState state = entry?.State ?? EntryState.Free;
        if (state == EntryState.Free)
            return 0x8000_0000_0000_0000;
        if (!LeafFacts.IsLeaf(state))
            return LeafFacts.Word(state) & 7;
        return (LeafFacts.Word(state) & 0x8000_0000_0000_00FF) | entry!.Page | ((ulong)entry.Accepted << 12);
    }

    /// <summary>A page that must be free, at a size, for a leaf that holds the TDR already; 0 when it is.</summary>
    private ulong CheckFree(ulong page, ulong operand, int level)
    {
        if ((page & (LeafWorld.Size(level) - 1)) != 0)
            return LeafFacts.OperandInvalid | operand;
        if (page >= LeafWorld.Start + LeafWorld.Gib)
            return LeafFacts.OperandAddrRangeError | operand;
        ulong large = LeafWorld.Align(page, 1);
        if (IsLargeHeld(large))
            return LeafFacts.OperandBusy | operand;
        bool isPartOfLarge = Pages.ContainsKey((large, 1));
        if (level == 0 && !isPartOfLarge)
        {
            // The call itself has the TDR.
            if (page == LeafWorld.Tdr || IsPageHeld(page))
                return LeafFacts.OperandBusy | operand;
            return Pages.ContainsKey((page, 0)) ? LeafFacts.PageMetadataIncorrect | operand : 0;
        }

        // The 2 MiB entry is wanted alone: whoever uses a page below shares it, the TDR of the call itself included.
        if (IsSmallBelowUsed(large))
            return LeafFacts.OperandBusy | operand;
        if (level == 0 || isPartOfLarge)
            return LeafFacts.PageMetadataIncorrect | operand;
        foreach ((ulong used, int size) in Pages.Keys)
        {
            if (size == 0 && LeafWorld.Align(used, 1) == large)
                return LeafFacts.PageMetadataIncorrect | operand;
        }

        return 0;
    }

    private bool IsSmallBelowUsed(ulong large) =>
        large == LeafWorld.Align(LeafWorld.Tdr, 1) || (Holder == HolderKind.Page && LeafWorld.Align(HeldPage, 1) == large);

    private bool IsPageHeld(ulong page) => Holder == HolderKind.Page && HeldPage == page;

    private bool IsLargeHeld(ulong large) => Holder == HolderKind.Large && HeldPage == large;

    private void AddPage(ulong page, int level, int type)
    {
        Pages[(page, level)] = type;
        Bepochs[(page, level)] = 0;
        Children += 1L << (9 * level);
    }

    private void DropPage(ulong page, int level)
    {
        Pages.Remove((page, level));
        Children -= 1L << (9 * level);
    }

    /// <summary>TLB tracking (tdx-module 6.4).</summary>
    private bool IsTracked(ulong bepoch) => bepoch + 1 < Epoch || (bepoch + 1 == Epoch && Inside[bepoch & 1] == 0);
}
