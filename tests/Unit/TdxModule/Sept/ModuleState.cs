using System.Globalization;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>What a page is to the module: its PAMT entry.</summary>
/// <param name="Type">Page type.</param>
/// <param name="Owner">TDR of the owner; 0 for a TDR.</param>
/// <param name="Bepoch">TD_EPOCH of the last block; 0 where the page has none.</param>
/// <param name="Lock">Exclusive and host-priority bits of the entry.</param>
internal readonly record struct PageRow(PageType Type, ulong Owner, ulong Bepoch, int Lock);

/// <summary>What the module keeps of a TD.</summary>
internal readonly record struct TdRow(
    TdLifecycle Lifecycle,
    TdOpState OpState,
    bool Fatal,
    int ControlPages,
    long Children,
    uint Vcpus,
    uint Associated,
    ulong Epoch,
    uint Count0,
    uint Count1);

/// <summary>
/// A copy of everything the module keeps about TDs: the words of every Secure EPT, the PAMT, the TDs, the vCPUs. A test edits the copy as the
/// specification says that a call changes the world, and compares it with a copy taken afterwards; whatever the call did besides is a difference.
/// </summary>
/// <remarks>
/// Secure EPTs are read from memory by a walk of this class's own, so that a lock bit or a host-priority bit in a free entry shows as well. In the dictionary a
/// FREE entry without such bits is absent, as is a page that is not assigned.
/// </remarks>
internal sealed class ModuleState
{
    private const ulong Gib = 1UL << 30;
    private const ulong Address = 0x000F_FFFF_FFFF_F000;

    /// <summary>(TDR, GPA, level) to the word.</summary>
    public Dictionary<(ulong Tdr, ulong Gpa, int Level), ulong> Entries { get; } = [];

    /// <summary>(page, size as a TDX level) to its PAMT entry.</summary>
    public Dictionary<(ulong Page, int Level), PageRow> Pages { get; } = [];

    public Dictionary<ulong, TdRow> Tds { get; } = [];

    public Dictionary<ulong, VcpuView> Vcpus { get; } = [];

    /// <summary>Copies the state; of PAMTs only what covers memory that a test took from the rig, and the second TDMR when asked.</summary>
    public static ModuleState Of(ModuleRig rig, bool withSecondTdmr = false)
    {
        ModuleState state = new();
        foreach (TdView td in rig.Module.Tds())
        {
            state.Tds[td.Tdr.Value] = new TdRow(
                td.Lifecycle, td.OpState, td.IsFatal, td.ControlPages, td.ChildCount, td.Vcpus, td.AssociatedVcpus, td.Epoch, td.RefCount0, td.RefCount1);
            if (td.Eptp != 0 && td.Lifecycle == TdLifecycle.KEYS_CONFIGURED)
                state.Walk(rig, td.Tdr.Value, td.Eptp & Address, (int)((td.Eptp >> 3) & 7), 0);
        }

        foreach (VcpuView vcpu in rig.Module.Vcpus())
            state.Vcpus[vcpu.Tdvpr.Value] = vcpu;
        state.Scan(rig, rig.Machine.Description.Tdmrs[0].Range.Base, rig.PagesEnd);
        if (withSecondTdmr)
            state.Scan(rig, rig.Machine.Description.Tdmrs[1].Range.Base, rig.Machine.Description.Tdmrs[1].Range.End);
        return state;
    }

    /// <summary>The same without host priority in PAMT locks, which a host call that loses leaves behind (tdx-module 7.3).</summary>
    public ModuleState WithoutPagePriority()
    {
        ModuleState copy = new();
        foreach (((ulong, ulong, int) key, ulong word) in Entries)
            copy.Entries[key] = word;
        foreach (((ulong, int) key, PageRow page) in Pages)
        {
            if (page.Type != PageType.NDA || (page.Lock & 1) != 0)
                copy.Pages[key] = page with { Lock = page.Lock & 1 };
        }

        foreach ((ulong key, TdRow td) in Tds)
            copy.Tds[key] = td;
        foreach ((ulong key, VcpuView vcpu) in Vcpus)
            copy.Vcpus[key] = vcpu;
        return copy;
    }

    public void Set(ulong tdr, ulong gpa, int level, ulong word)
    {
        if (word == SeptFormat.Free)
            Entries.Remove((tdr, gpa, level));
        else
            Entries[(tdr, gpa, level)] = word;
    }

    public void AddChildren(ulong tdr, long units) => Tds[tdr] = Tds[tdr] with { Children = Tds[tdr].Children + units };

    /// <summary>One line for each thing in which the copies differ.</summary>
    public static List<string> Differences(ModuleState expected, ModuleState actual)
    {
        List<string> lines = [];
        Compare(lines, "entry", expected.Entries, actual.Entries, k => $"0x{k.Gpa:x}/{k.Level} of TD 0x{k.Tdr:x}", w => $"0x{w:x16}");
        Compare(lines, "page", expected.Pages, actual.Pages, k => $"0x{k.Page:x}/{k.Level}", p => p.ToString());
        Compare(lines, "TD", expected.Tds, actual.Tds, k => $"0x{k:x}", t => t.ToString());
        Compare(lines, "vCPU", expected.Vcpus, actual.Vcpus, k => $"0x{k:x}", v => v.ToString());
        return lines;
    }

    private static void Compare<TKey, TValue>(
        List<string> lines, string what, Dictionary<TKey, TValue> expected, Dictionary<TKey, TValue> actual, Func<TKey, string> name, Func<TValue, string> show)
        where TKey : notnull
        where TValue : struct, IEquatable<TValue>
    {
        foreach ((TKey key, TValue value) in expected)
        {
            if (!actual.TryGetValue(key, out TValue found))
                lines.Add($"{what} {name(key)}: expected {show(value)}, found nothing");
            else if (!found.Equals(value))
                lines.Add($"{what} {name(key)}: expected {show(value)}, found {show(found)}");
        }

        foreach ((TKey key, TValue value) in actual)
        {
            if (!expected.ContainsKey(key))
                lines.Add(string.Create(CultureInfo.InvariantCulture, $"{what} {name(key)}: expected nothing, found {show(value)}"));
        }
    }

    private void Walk(ModuleRig rig, ulong tdr, ulong table, int level, ulong start)
    {
        for (int i = 0; i < 512; i++)
        {
            ulong word = rig.Machine.Memory.Word(table + ((ulong)i << 3));
            if (word == SeptFormat.Free)
                continue;
            ulong gpa = start + ((ulong)i << (12 + (9 * level)));
            Entries[(tdr, gpa, level)] = word;
            if (SeptFormat.StateOf(word) is SeptState.NL_MAPPED or SeptState.NL_BLOCKED)
                Walk(rig, tdr, word & Address, level - 1, gpa);
        }
    }

    private void Scan(ModuleRig rig, ulong start, ulong end)
    {
        ulong at = start;
        while (at < end)
        {
            PamtView view = rig.Module.Pamt(new Hpa(at))!.Value;
            int level = view.Level.Value - 1;

            if (view.Type != PageType.NDA || (view.LockBits & 3) != 0)
                Pages[(at, level)] = new PageRow(view.Type, view.Owner.Value, view.Bepoch, view.LockBits & 3);
            at += level == 2 ? Gib : 4096UL << (9 * level);
        }
    }
}
