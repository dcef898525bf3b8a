namespace Tdp.Tests.Properties.Leaves;

// The TDH.MEM leaves (tdx-module 5.7, 5.8, 6.2).
internal sealed partial class LeafModel
{
    private const int Root = 3;

    public Answer PageAdd(ulong gpa, int level, ulong page)
    {
        ulong status = GateAlone(LeafFacts.Rdx, allowed: !Running);
        if (status == 0 && level != 0)
            status = LeafFacts.OperandInvalid | LeafFacts.Rcx;
        if (status != 0)
            return new Answer(status);
        if (!Walk(gpa, 0, out ulong stopGpa, out int stop))
            return Describe(LeafFacts.WalkFailed | LeafFacts.Rcx, stopGpa, stop);
        if (StateOf(gpa, 0) != EntryState.Free)
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, 0);
        status = CheckFree(page, LeafFacts.R8, 0);
        if (status != 0)
            return new Answer(status);
        AddPage(page, 0, LeafFacts.Reg);
        Entries[(gpa, 0)] = new ModelEntry { State = EntryState.Mapped, Page = page };
        SetWord(page, LeafWorld.SourceWord);
        return new Answer(LeafFacts.Success);
    }

    public Answer PageAug(ulong gpa, int level, ulong page)
    {
        if (Begin(gpa, level, 0, 1, alone: false) is { } refused)
            return refused;
        if (StateOf(gpa, level) != EntryState.Free)
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        ulong status = CheckFree(page, LeafFacts.R8, level);
        if (status != 0)
            return new Answer(status);
        AddPage(page, level, LeafFacts.Reg);
        Entries[(gpa, level)] = new ModelEntry { State = EntryState.Pending, Page = page };
        return new Answer(LeafFacts.Success);
    }

    public Answer SeptAdd(ulong gpa, int level, ulong page, bool allowExisting)
    {
        if (Begin(gpa, level, 1, Root, alone: false) is { } refused)
            return refused;
        EntryState state = StateOf(gpa, level);
        if (state == EntryState.NlMapped && allowExisting)
            return new Answer(LeafFacts.Success);
        if (state != EntryState.Free)
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        ulong status = CheckFree(page, LeafFacts.R8, 0);
        if (status != 0)
            return new Answer(status);
        AddPage(page, 0, LeafFacts.Ept);
        Words.Remove(page);
        Entries[(gpa, level)] = new ModelEntry { State = EntryState.NlMapped, Page = page };
        return new Answer(LeafFacts.Success);
    }

    public Answer RangeBlock(ulong gpa, int level)
    {
        if (Begin(gpa, level, 0, Root, alone: true) is { } refused)
            return refused;
        EntryState state = StateOf(gpa, level);
        if (state == EntryState.Free)
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        if (LeafFacts.IsBlocked(state))
            return Describe(LeafFacts.AlreadyBlocked | LeafFacts.Rcx, gpa, level);
        ModelEntry entry = Find(gpa, level)!;
        entry.State = LeafFacts.Blocked(state);
        entry.Accepted = 0;
        Bepochs[(entry.Page, LeafFacts.IsLeaf(state) ? level : 0)] = Epoch;
        return new Answer(LeafFacts.Success);
    }

    public Answer RangeUnblock(ulong gpa, int level)
    {
        if (Begin(gpa, level, 0, Root, alone: true) is { } refused)
            return refused;
        EntryState state = StateOf(gpa, level);
        if (!LeafFacts.IsBlocked(state))
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        ModelEntry entry = Find(gpa, level)!;
        if (Running && !IsTracked(Bepoch(entry.Page, LeafFacts.IsLeaf(state) ? level : 0)))
            return new Answer(LeafFacts.TrackingNotDone | LeafFacts.SeptTree);
        entry.State = LeafFacts.Open(state);
        return new Answer(LeafFacts.Success);
    }

    public Answer PageRemove(ulong gpa, int level)
    {
        if (Begin(gpa, level, 0, 2, alone: false) is { } refused)
            return refused;
        ModelEntry? entry = Find(gpa, level);
        if (entry is null || !LeafFacts.IsLeaf(entry.State))
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        if (level == 0 ? IsPageHeld(entry.Page) : IsLargeHeld(entry.Page))
            return new Answer(LeafFacts.OperandBusy | LeafFacts.Rcx);
        if (CheckRetired(entry, gpa, level, entry.Page, level) is { } early)
            return early;
        Entries.Remove((gpa, level));
        DropPage(entry.Page, level);
        return new Answer(LeafFacts.Success, entry.Page);
    }

    public Answer SeptRemove(ulong gpa, int level)
    {
        if (Begin(gpa, level, 1, Root, alone: true) is { } refused)
            return refused;
        ModelEntry? entry = Find(gpa, level);
        if (entry is null || !LeafFacts.IsTable(entry.State))
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        if (IsPageHeld(entry.Page))
            return new Answer(LeafFacts.OperandBusy | LeafFacts.Rcx);
        if (CheckRetired(entry, gpa, level, entry.Page, 0) is { } early)
            return early;
        List<(ulong, int)> below = [.. ChildrenOf(gpa, level)];
        if (below.Exists(child => Entries[child].State != EntryState.Free))
            return Describe(LeafFacts.PageNotFree | LeafFacts.Rcx, gpa, level);
        below.ForEach(child => Entries.Remove(child));
        Entries.Remove((gpa, level));
        DropPage(entry.Page, 0);
        return new Answer(LeafFacts.Success, entry.Page);
    }

    public Answer PagePromote(ulong gpa, int level, int lp)
    {
        if (Begin(gpa, level, 1, 2, alone: false) is { } refused)
            return refused;
        ModelEntry? entry = Find(gpa, level);
        if (entry is null || !LeafFacts.IsTable(entry.State))
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        if (IsPageHeld(entry.Page))
            return new Answer(LeafFacts.OperandBusy | LeafFacts.Rcx);
        if (CheckRetired(entry, gpa, level, entry.Page, 0) is { } early)
            return early;
        ulong size = LeafWorld.Size(level - 1);
        ulong page = 0;
        EntryState state = EntryState.Free;
        for (int i = 0; i < 512; i++)
        {
            ulong child = gpa + ((ulong)i * size);
            if (!TryTakeEntry(child, level - 1))
                return Describe(LeafFacts.OperandBusy | LeafFacts.Rcx, gpa, level);
            ModelEntry? found = Find(child, level - 1);
            if (i == 0)
                (page, state) = (found?.Page ?? 0, found?.State ?? EntryState.Free);
            bool alike = i == 0
                ? state is EntryState.Mapped or EntryState.Pending && (page & (LeafWorld.Size(level) - 1)) == 0
                : found is not null && found.State == state && found.Page == page + ((ulong)i * size);
            if (!alike)
                return Describe(LeafFacts.PromoteConditions | LeafFacts.Rcx, gpa, level);
        }

        if (Lps[lp].Interrupt)
            return new Answer(LeafFacts.InterruptedRestartable, gpa | (uint)level, LeafWorld.Tdr);
        if (IsLargeHeld(page) || IsSmallBelowUsed(page))
            return new Answer(LeafFacts.OperandBusy | LeafFacts.Rcx);
        for (ulong i = 0; i < 512; i++)
        {
            Entries.Remove((gpa + (i * size), level - 1));
            Pages.Remove((page + (i * size), level - 1));
        }

        Pages[(page, level)] = LeafFacts.Reg;
        ulong table = entry.Page;
        DropPage(table, 0);
        Entries[(gpa, level)] = new ModelEntry { State = state, Page = page };
        return new Answer(LeafFacts.Success, table);
    }

    public Answer PageDemote(ulong gpa, int level, ulong table, int lp)
    {
        if (Begin(gpa, level, 1, 2, alone: false) is { } refused)
            return refused;
        ModelEntry? entry = Find(gpa, level);
        if (entry is null || !LeafFacts.IsLeaf(entry.State))
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        if (CheckRetired(entry, gpa, level, entry.Page, level) is { } early)
            return early;
        ulong status = CheckFree(table, LeafFacts.R8, 0);
        if (status != 0)
            return new Answer(status);
        if (Lps[lp].Interrupt)
            return new Answer(LeafFacts.InterruptedRestartable, gpa | (uint)level, LeafWorld.Tdr);
        if (IsLargeHeld(entry.Page) || IsSmallBelowUsed(entry.Page))
            return new Answer(LeafFacts.OperandBusy | LeafFacts.Rcx);
        ulong size = LeafWorld.Size(level - 1);
        Pages.Remove((entry.Page, level));
        for (ulong i = 0; i < 512; i++)
        {
            Pages[(entry.Page + (i * size), level - 1)] = LeafFacts.Reg;
            Bepochs[(entry.Page + (i * size), level - 1)] = 0;
            Entries[(gpa + (i * size), level - 1)] = new ModelEntry { State = LeafFacts.Open(entry.State), Page = entry.Page + (i * size) };
        }

        // BEPOCH of the new table is not written (tdx-module 11, quirk 10).
        Pages[(table, 0)] = LeafFacts.Ept;
        Children++;
        Words.Remove(table);
        Entries[(gpa, level)] = new ModelEntry { State = EntryState.NlMapped, Page = table };
        return new Answer(LeafFacts.Success);
    }

    public Answer PageRelocate(ulong gpa, int level, ulong target)
    {
        if (Begin(gpa, level, 0, 0, alone: false) is { } refused)
            return refused;
        ModelEntry? entry = Find(gpa, level);
        if (entry is null || !LeafFacts.IsLeaf(entry.State))
            return Describe(LeafFacts.StateIncorrect | LeafFacts.Rcx, gpa, level);
        ulong page = entry.Page;
        if (page == target)
            return new Answer(LeafFacts.OperandInvalid | LeafFacts.R8);
        if (IsPageHeld(page))
            return new Answer(LeafFacts.OperandBusy | LeafFacts.Rcx);
        if (CheckRetired(entry, gpa, level, page, 0) is { } early)
            return early;
        ulong status = CheckFree(target, LeafFacts.R8, 0);
        if (status != 0)
            return new Answer(status);
        AddPage(target, 0, LeafFacts.Reg);
        DropPage(page, 0);
        entry.State = LeafFacts.Open(entry.State);
        entry.Page = target;
        if (entry.State == EntryState.Mapped)
            CopyWord(page, target);
        return new Answer(LeafFacts.Success, page);
    }

    public Answer SeptRead(ulong gpa, int level) =>
        Begin(gpa, level, 0, Root, alone: false) ?? Describe(LeafFacts.Success, gpa, level);

    public Answer Track()
    {
        ulong status = GateShared(LeafFacts.Rcx, allowed: true);
        if (status == 0 && Holder == HolderKind.Tracker)
            status = LeafFacts.OperandBusy | LeafFacts.TdEpoch;
        if (status == 0 && Inside[(Epoch + 1) & 1] != 0)
            status = LeafFacts.PreviousEpochBusy;
        if (status == 0)
            Epoch++;
        return new Answer(status);
    }

    public Answer Finalize()
    {
        ulong status = GateAlone(LeafFacts.Rcx, allowed: !Running);
        if (status == 0)
            Running = true;
        return new Answer(status);
    }

    // Blocked and tracked, where a running TD asks for it. PAGE.REMOVE and DEMOTE show the entry without an ACCEPT's progress (tdx-module 11, quirk 5).
    private Answer? CheckRetired(ModelEntry entry, ulong gpa, int level, ulong page, int size)
    {
        if (!Running)
            return null;
        if (!LeafFacts.IsBlocked(entry.State))
            return Describe(LeafFacts.NotBlocked | LeafFacts.Rcx, gpa, level) is var shown && LeafFacts.IsLeaf(entry.State)
                ? shown with { Rcx = shown.Rcx & ~((ulong)entry.Accepted << 12) }
                : shown;
        return IsTracked(Bepoch(page, size)) ? null : new Answer(LeafFacts.TrackingNotDone | LeafFacts.Rcx);
    }

    private IEnumerable<(ulong Gpa, int Level)> ChildrenOf(ulong gpa, int level)
    {
        foreach ((ulong child, int at) in Entries.Keys)
        {
            if (at == level - 1 && LeafWorld.Align(child, level) == gpa)
                yield return (child, at);
        }
    }

    private void SetWord(ulong page, ulong word)
    {
        if (Array.IndexOf(LeafWorld.Watched, page) >= 0)
            Words[page] = word;
    }

    private void CopyWord(ulong from, ulong to)
    {
        if (Words.TryGetValue(from, out ulong word))
            SetWord(to, word);
        else
            Words.Remove(to);
    }
}
