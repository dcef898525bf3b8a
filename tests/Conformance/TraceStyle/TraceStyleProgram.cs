using System.Globalization;
using System.Linq;
using System.Text.Json;
using Tdp.Harness.Conformance;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Conformance.TraceStyle;

/// <summary>
/// Draws calls as the generators of the random recordings did: mostly with operands that make sense in the module's present state, now and then with one from a
/// small set of bad ones. It looks at the module to know what makes sense, and never says what the answer must be.
/// </summary>
internal sealed class TraceStyleProgram(TdxModule module, TraceStyleMix mix, SeedStream random)
{
    private const ulong RootPool = 0x1_0000_0000;
    private const ulong SmallPool = 0x1_0100_0000;
    private const ulong LargePool = 0x1_1000_0000;
    private const ulong Parameters = 0x1_5001_0000;
    private const ulong Sources = 0x1_5010_0000;
    private const ulong None = ulong.MaxValue;
    private const int RootPages = 256;
    private const int SmallPages = 224;
    private const int LargePages = 10;
    private static readonly ulong[] s_gib = [0, 0xC000_0000, 0x100_0000_0000];
    private static readonly (string Op, int Build, int Churn, int Life, int Mem, int Vcpu)[] s_weights =
    [
        ("ENV.INTR", 1, 0, 4, 2, 5), ("GUEST.ACCESS", 4, 2, 3, 10, 20), ("GUEST.INTR", 8, 8, 8, 16, 36), ("GUEST.TRIPLEFAULT", 0, 0, 1, 0, 1),
        ("TDG.MEM.PAGE.ACCEPT", 8, 10, 10, 30, 30), ("TDG.VP.VEINFO.GET", 1, 1, 1, 2, 3), ("TDG.VP.VMCALL", 1, 1, 1, 3, 9), ("TDG.VP.INFO", 0, 0, 1, 0, 0),
        ("TDH.MEM.PAGE.ADD", 44, 2, 10, 2, 2), ("TDH.MEM.PAGE.AUG", 40, 34, 24, 80, 40), ("TDH.MEM.PAGE.DEMOTE", 12, 14, 4, 20, 6),
        ("TDH.MEM.PAGE.PROMOTE", 12, 22, 4, 18, 4), ("TDH.MEM.PAGE.RELOCATE", 16, 25, 4, 25, 2), ("TDH.MEM.PAGE.REMOVE", 40, 40, 6, 60, 40),
        ("TDH.MEM.RANGE.BLOCK", 60, 100, 8, 110, 60), ("TDH.MEM.RANGE.UNBLOCK", 35, 40, 4, 60, 35), ("TDH.MEM.SEPT.ADD", 54, 30, 30, 60, 20),
        ("TDH.MEM.SEPT.RD", 20, 8, 4, 30, 5), ("TDH.MEM.SEPT.REMOVE", 28, 22, 4, 30, 8), ("TDH.MEM.TRACK", 40, 100, 12, 100, 75),
        ("TDH.MEM.RD", 2, 2, 2, 3, 2), ("TDH.MEM.WR", 2, 2, 2, 3, 2), ("TDH.MR.EXTEND", 20, 0, 16, 2, 0), ("TDH.MR.FINALIZE", 2, 1, 8, 1, 1),
        ("TDH.PHYMEM.CACHE.WB", 1, 0, 30, 1, 1), ("TDH.PHYMEM.PAGE.RDMD", 3, 1, 16, 6, 3), ("TDH.PHYMEM.PAGE.RECLAIM", 2, 1, 90, 2, 1),
        ("TDH.PHYMEM.PAGE.WBINVD", 0, 0, 8, 1, 0), ("TDH.VP.ENTER", 10, 14, 22, 36, 70), ("TDH.VP.FLUSH", 2, 1, 20, 6, 20), ("TDH.VP.CREATE", 3, 1, 14, 1, 1),
        ("TDH.VP.ADDCX", 6, 1, 50, 1, 1), ("TDH.VP.INIT", 3, 1, 16, 1, 1), ("TDH.VP.RD", 0, 0, 1, 0, 1), ("TDH.MNG.CREATE", 1, 0, 12, 0, 0),
        ("TDH.MNG.KEY.CONFIG", 1, 0, 24, 0, 0), ("TDH.MNG.ADDCX", 1, 0, 50, 1, 0), ("TDH.MNG.INIT", 1, 0, 14, 0, 0), ("TDH.MNG.VPFLUSHDONE", 0, 0, 10, 0, 0),
        ("TDH.MNG.KEY.FREEID", 0, 0, 14, 0, 0), ("TDH.MNG.RD", 0, 0, 1, 0, 0),
    ];

    private long _line;

    /// <summary>Number of calls drawn so far.</summary>
    public long Drawn => _line;

    /// <summary>The next call.</summary>
    public ModuleCall Next()
    {
        int lp = Below(4);
        if (module.CurrentVmcs(module.Machine.Processors[lp]) is not null)
            return InGuest(lp);
        (string, int, int, int, int, int)[] all = s_weights;
        while (true)
        {
            int choice = Below(all.Sum(Weight));
            foreach ((string Op, int Build, int Churn, int Life, int Mem, int Vcpu) row in all)
            {
                choice -= Weight(row);
                if (choice >= 0)
                    continue;
                if (row.Op.StartsWith("TDG.", StringComparison.Ordinal) || row.Op.StartsWith("GUEST.", StringComparison.Ordinal))
                    break;
                return OnHost(row.Op, lp);
            }
        }
    }

    /// <summary>The call that writes the usual TD_PARAMS.</summary>
    public ModuleCall WriteParameters(bool isDebug, bool fiveLevels)
    {
        Span<byte> bytes = stackalloc byte[64];
        bytes.Clear();
        bytes[0] = isDebug ? (byte)1 : (byte)0;
        bytes[3] = Below(2) == 0 ? (byte)0x10 : (byte)0;
        bytes[8] = 3;
        bytes[16] = 3;
        bytes[24] = fiveLevels ? (byte)0x26 : (byte)0x1E;
        bytes[32] = fiveLevels ? (byte)1 : (byte)0;
        bytes[40] = 100;
        return Make("ENV.WRITE", 0, [("pa", Parameters)], $",\"len\":1024,\"data\":\"{Convert.ToHexStringLower(bytes)}\"");
    }

    /// <summary>A call as a trace would hold it.</summary>
    public ModuleCall Make(string op, int lp, (string Register, ulong Value)[] inputs, string more = "")
    {
        string registers = string.Join(",", inputs.Select(i => string.Create(CultureInfo.InvariantCulture, $"\"{i.Register}\":\"0x{i.Value:x}\"")));
        string text = string.Create(CultureInfo.InvariantCulture, $"{{\"seq\":\"walk\",\"i\":{_line},\"lp\":{lp},\"op\":\"{op}\",\"in\":{{{registers}}},\"r\":\"ret\"{more}}}");
        using JsonDocument document = JsonDocument.Parse(text);
        return new ModuleCall(new TraceRecord("walk", ++_line, document.RootElement.Clone()), 4);
    }

    private int Weight((string Op, int Build, int Churn, int Life, int Mem, int Vcpu) row) => mix switch
    {
        TraceStyleMix.Build => row.Build,
        TraceStyleMix.Churn => row.Churn,
        TraceStyleMix.Life => row.Life,
        TraceStyleMix.Mem => row.Mem,
        _ => row.Vcpu,
    };

    private ModuleCall InGuest(int lp)
    {
        ulong gpa = Gpa(out int level);
        ulong tdr = 0;
        foreach (VcpuView vcpu in module.Vcpus())
        {
            if (vcpu.State == TdVcpuState.ACTIVE && vcpu.AssociatedLp == lp)
                tdr = vcpu.Tdr.Value;
        }

        if (Below(6) != 0 && Aim("TDG.MEM.PAGE.ACCEPT", tdr) is { } aim)
        {
            gpa = aim.Gpa.Value;
            level = aim.Level.Tdx;
        }

        switch (Below(20))
        {
            case < 5:
                return Make("GUEST.INTR", lp, []);
            case < 10:
                (string, ulong)[] access = [("gpa", gpa + (Pick(4) * 8)), ("acc", Below(3) switch { 0 => 1UL, 1 => 2, _ => 4 })];
                return Make("GUEST.ACCESS", lp, Below(4) == 0 ? [.. access, ("samerip", 1UL)] : access);
            case < 16:
                return Make("TDG.MEM.PAGE.ACCEPT", lp, [("rcx", Below(12) == 0 ? gpa | Pick(8) : gpa + (ulong)level)]);
            case 16:
                return Make("TDG.VP.VEINFO.GET", lp, []);
            case 17:
                return Make("TDG.VP.VMCALL", lp, [("rcx", Below(4) == 0 ? Pick(1 << 16) : 0xFC00), ("r10", 0x10), ("r11", 0x11), ("rbx", 7)]);
            case 18:
                return Below(12) == 0 ? Make("GUEST.TRIPLEFAULT", lp, []) : Make("TDG.VP.INFO", lp, []);
            default:
                return Make("ENV.INTR", lp, [("pending", Pick(2))]);
        }
    }

    private ModuleCall OnHost(string op, int lp)
    {
        switch (op)
        {
            case "ENV.INTR":
                return Make(op, lp, [("pending", Pick(3) == 0 ? 1UL : 0)]);
            case "TDH.MEM.TRACK":
                return Make(op, lp, [("rcx", Tdr(td => td.OpState == TdOpState.RUNNABLE))]);
            case "TDH.MR.FINALIZE":
                return Make(op, lp, [("rcx", Tdr(td => td.OpState == TdOpState.INITIALIZED))]);
            case "TDH.MNG.KEY.CONFIG":
                return Make(op, lp, [("rcx", Tdr(td => td.Lifecycle == TdLifecycle.HKID_ASSIGNED))]);
            case "TDH.MNG.VPFLUSHDONE":
                return Make(op, lp, [("rcx", Tdr(td => td.Lifecycle == TdLifecycle.KEYS_CONFIGURED))]);
            case "TDH.MNG.KEY.FREEID":
                return Make(op, lp, [("rcx", Tdr(td => td.Lifecycle == TdLifecycle.BLOCKED))]);
            case "TDH.MNG.RD":
                return Make(op, lp, [("rcx", Tdr()), ("rdx", 0x9110_0003_0000_0010)]);
            case "TDH.MNG.INIT":
                return Make(op, lp, [("rcx", Tdr(td => td is { ControlPages: 6, OpState: TdOpState.UNINITIALIZED, Lifecycle: TdLifecycle.KEYS_CONFIGURED })), ("rdx", Below(12) == 0 ? Bad() : Parameters)]);
            case "TDH.MNG.CREATE":
                return Make(op, lp, [("rcx", FreePage()), ("rdx", Below(10) == 0 ? Pick(80) : 33 + Pick(6))]);
            case "TDH.MNG.ADDCX":
                return Make(op, lp, [("rcx", FreePage()), ("rdx", Tdr(td => td is { ControlPages: < 6, Lifecycle: TdLifecycle.KEYS_CONFIGURED }))]);
            case "TDH.VP.CREATE":
                return Make(op, lp, [("rcx", FreePage()), ("rdx", Tdr(td => td is { OpState: TdOpState.INITIALIZED, Lifecycle: TdLifecycle.KEYS_CONFIGURED }))]);
            case "TDH.VP.ADDCX":
                return Make(op, lp, [("rcx", FreePage()), ("rdx", Tdvpr(v => v.Pages < 6))]);
            case "TDH.VP.INIT":
                return Make(op, lp, [("rcx", Tdvpr(v => v is { Pages: >= 6, State: TdVcpuState.UNINITIALIZED })), ("rdx", Pick(1 << 16))]);
            case "TDH.VP.ENTER":
                return Make(op, lp, [("rcx", Tdvpr(v => v.State == TdVcpuState.READY && (v.AssociatedLp < 0 || v.AssociatedLp == lp)) | (Below(40) == 0 ? 1UL << (52 + Below(3)) : 0)), ("rbp", 5), ("rbx", 6), ("r12", 12)]);
            case "TDH.VP.FLUSH":
                return Make(op, lp, [("rcx", Tdvpr(v => v.AssociatedLp == lp))]);
            case "TDH.VP.RD":
                return Make(op, lp, [("rcx", Tdvpr()), ("rdx", 0xA020_0000_0000_0000)]);
            case "TDH.PHYMEM.CACHE.WB":
                return Make(op, lp, [("rcx", Below(20) == 0 ? 2 : Pick(2))]);
            case "TDH.PHYMEM.PAGE.RDMD":
                return Make(op, lp, [("rcx", AnyPage()), ("r9", 9), ("r10", 10)]);
            case "TDH.PHYMEM.PAGE.RECLAIM":
                return Make(op, lp, [("rcx", AnyPage()), ("r9", 9), ("r10", 10)]);
            case "TDH.PHYMEM.PAGE.WBINVD":
                return Make(op, lp, [("rcx", AnyPage() | (Below(2) == 0 ? Pick(64) << 46 : 0))]);
            default:
                return OnMemory(op, lp);
        }
    }

    private ModuleCall OnMemory(string op, int lp)
    {
        ulong tdr = Tdr(td => td.Lifecycle == TdLifecycle.KEYS_CONFIGURED && td.OpState >= TdOpState.INITIALIZED);
        ulong gpa = Gpa(out int level);
        if (Below(10) != 0 && Aim(op, tdr) is { } aim)
        {
            gpa = aim.Gpa.Value;
            level = aim.Level.Tdx;
            if (Below(10) != 0)
                return OnEntry(op, lp, tdr, gpa, level);
        }

        ulong place = gpa + (ulong)level;
        switch (op)
        {
            case "TDH.MEM.PAGE.AUG":
                level = Below(12) == 0 ? Below(8) : level > 1 ? 0 : level;
                return Make(op, lp, [("rcx", Aligned(gpa, level)), ("rdx", tdr), ("r8", level == 1 ? LargePage() : FreePage())]);
            case "TDH.MEM.PAGE.ADD":
                return Make(op, lp, [("rcx", Aligned(gpa, Below(15) == 0 ? level : 0)), ("rdx", tdr), ("r8", FreePage()), ("r9", Below(12) == 0 ? Bad() : Sources + (Pick(8) << 12))]);
            case "TDH.MEM.SEPT.ADD":
                return SeptAdd(lp, tdr, gpa);
            case "TDH.MEM.SEPT.REMOVE":
                level = Below(10) == 0 ? Below(6) : 1 + Below(3);
                return Make(op, lp, [("rcx", Aligned(gpa, level)), ("rdx", tdr)], Below(6) == 0 ? ",\"v\":1" : "");
            case "TDH.MEM.PAGE.DEMOTE":
                level = Below(10) == 0 ? Below(4) : 1;
                return Make(op, lp, [("rcx", Aligned(gpa, level)), ("rdx", tdr | (Below(15) == 0 ? 1UL : 0)), ("r8", FreePage())]);
            case "TDH.MEM.PAGE.PROMOTE":
                level = Below(10) == 0 ? Below(4) : 1;
                return Make(op, lp, [("rcx", Aligned(gpa, level)), ("rdx", tdr)], Below(6) == 0 ? ",\"v\":1" : "");
            case "TDH.MEM.PAGE.RELOCATE":
                return Make(op, lp, [("rcx", Aligned(gpa, Below(10) == 0 ? level : 0)), ("rdx", tdr), ("r8", FreePage())]);
            case "TDH.MEM.SEPT.RD":
                return Make(op, lp, [("rcx", Below(20) == 0 ? place | 7 : place), ("rdx", tdr | (Below(6) == 0 ? 1UL : 0)), ("r8", 8)]);
            case "TDH.MEM.RD" or "TDH.MEM.WR":
                return Make(op, lp, [("rcx", gpa + Pick(64)), ("rdx", tdr), ("r8", 0x1234)]);
            case "TDH.MR.EXTEND":
                return Make(op, lp, [("rcx", gpa + (Pick(16) << (Below(12) == 0 ? 6 : 8))), ("rdx", tdr)]);
            default:
                return Make(op, lp, [("rcx", Below(15) == 0 ? gpa | Pick(16) : place), ("rdx", tdr)]);
        }
    }

    // An entry that the leaf is made for, if there is one.
    private SeptView? Aim(string op, ulong tdr)
    {
        if (tdr >> 40 != 0 || module.Td(new Hpa(tdr)) is not { Lifecycle: TdLifecycle.KEYS_CONFIGURED, OpState: >= TdOpState.INITIALIZED })
            return null;
        var found = new List<SeptView>();
        module.ForEachSeptEntry(new Hpa(tdr), (in SeptView e) =>
        {
            bool table = e.State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED;
            bool fits = op switch
            {
                "TDH.MEM.PAGE.REMOVE" => e.State is SeptState.BLOCKED or SeptState.PENDING_BLOCKED,
                "TDH.MEM.PAGE.RELOCATE" => e.State is SeptState.BLOCKED or SeptState.PENDING_BLOCKED && e.Level.Tdx == 0,
                "TDH.MEM.PAGE.DEMOTE" => e.State is SeptState.BLOCKED or SeptState.PENDING_BLOCKED && e.Level.Tdx > 0,
                "TDH.MEM.PAGE.PROMOTE" or "TDH.MEM.SEPT.REMOVE" => table && e.Level.Tdx == 1 && (e.State == SeptState.NL_BLOCKED || Below(3) == 0),
                "TDH.MEM.RANGE.UNBLOCK" => e.State is SeptState.BLOCKED or SeptState.PENDING_BLOCKED or SeptState.NL_BLOCKED,
                "TDG.MEM.PAGE.ACCEPT" => e.State == SeptState.PENDING || Below(5) == 0,
                "TDH.MEM.RANGE.BLOCK" => e.State is SeptState.MAPPED or SeptState.PENDING || (table && e.Level.Tdx == 1 && Below(4) == 0) || Below(30) == 0,
                "TDH.MEM.PAGE.AUG" or "TDH.MEM.PAGE.ADD" or "TDH.MEM.SEPT.ADD" => e.State == SeptState.NL_MAPPED,
                _ => true,
            };
            if (fits)
                found.Add(e);
        });
        return found.Count == 0 ? null : found[Below(found.Count)];
    }

    private ModuleCall OnEntry(string op, int lp, ulong tdr, ulong gpa, int level)
    {
        ulong below = gpa + (Pick(3) << (12 + (9 * Math.Max(0, level - 1))));
        ulong place = gpa + (ulong)level;
        return op switch
        {
            "TDH.MEM.PAGE.AUG" => Make(op, lp, [("rcx", below + (ulong)(level - 1)), ("rdx", tdr), ("r8", level > 1 ? LargePage() : FreePage())]),
            "TDH.MEM.PAGE.ADD" => Make(op, lp, [("rcx", below), ("rdx", tdr), ("r8", FreePage()), ("r9", Sources + (Pick(8) << 12))]),
            "TDH.MEM.SEPT.ADD" => SeptAdd(lp, tdr, below, Math.Max(1, level - 1)),
            "TDH.MEM.PAGE.DEMOTE" or "TDH.MEM.PAGE.RELOCATE" => Make(op, lp, [("rcx", place), ("rdx", tdr), ("r8", FreePage())]),
            "TDH.MR.EXTEND" or "TDH.MEM.RD" or "TDH.MEM.WR" => Make(op, lp, [("rcx", gpa + (Pick(16) << 8)), ("rdx", tdr), ("r8", 0x1234)]),
            _ => Make(op, lp, [("rcx", place), ("rdx", tdr)]),
        };
    }

    private ModuleCall SeptAdd(int lp, ulong tdr, ulong gpa) => SeptAdd(lp, tdr, gpa, Below(14) == 0 ? Below(6) : 1 + Below(3));

    private ModuleCall SeptAdd(int lp, ulong tdr, ulong gpa, int level)
    {
        ulong page = Below(15) == 0 ? None : FreePage() | (Below(8) == 0 ? 1UL << 63 : 0);
        (string, ulong)[] operands = [("rcx", Aligned(gpa, level)), ("rdx", tdr | (Below(4) == 0 ? 1UL : 0) | (Below(60) == 0 ? 4UL : 0)), ("r8", page)];
        if (Below(4) != 0)
            return Make("TDH.MEM.SEPT.ADD", lp, operands);
        ulong l2 = Below(3) == 0 ? FreePage() : None;
        return Make("TDH.MEM.SEPT.ADD", lp, [.. operands, ("r9", l2), ("r10", None), ("r11", Below(6) == 0 ? 1UL << 63 : None)], ",\"v\":1");
    }

    private static ulong Aligned(ulong gpa, int level) => (level > 4 ? gpa : gpa & ~((1UL << (12 + (9 * level))) - 1)) + (ulong)level;

    // A few GiB, three 2 MiB ranges in each, four pages in each of those.
    private ulong Gpa(out int level)
    {
        ulong gib = s_gib[Below(6) switch { < 4 => 0, 4 => 1, _ => 2 }];
        ulong gpa = gib + (Pick(3) << 21) + ((ulong)(Below(4) == 0 ? 511 : Below(3)) << 12);
        level = Below(20) switch { < 10 => 0, < 16 => 1, < 18 => 2, 18 => 3, _ => 4 };
        gpa &= ~((1UL << (12 + (9 * level))) - 1);
        return Below(40) switch
        {
            0 => gpa | 1UL << 47,
            1 => gpa | 1UL << 51,
            2 => gpa | 1UL << 52,
            3 => gpa + 0x800,
            _ => gpa,
        };
    }

    private ulong Tdr() => Tdr(_ => true);

    private ulong Tdr(Func<TdView, bool> fits)
    {
        TdView[] tds = [.. module.Tds()];
        TdView[] fitting = Below(6) == 0 ? tds : [.. tds.Where(fits)];
        if (fitting.Length == 0)
            fitting = tds;
        return fitting.Length == 0 || Below(25) == 0 ? Bad() : fitting[Below(fitting.Length)].Tdr.Value;
    }

    private ulong Tdvpr() => Tdvpr(_ => true);

    private ulong Tdvpr(Func<VcpuView, bool> fits)
    {
        VcpuView[] vcpus = [.. module.Vcpus()];
        VcpuView[] fitting = Below(6) == 0 ? vcpus : [.. vcpus.Where(fits)];
        if (fitting.Length == 0)
            fitting = vcpus;
        return fitting.Length == 0 || Below(25) == 0 ? Bad() : fitting[Below(fitting.Length)].Tdvpr.Value;
    }

    private ulong FreePage()
    {
        if (Below(16) == 0)
            return Bad();
        for (int i = 0; i < 200; i++)
        {
            ulong page = SmallPage();
            if (module.Pamt(new Hpa(page)) is { Type: PageType.NDA })
                return page;
        }

        return SmallPage();
    }

    private ulong SmallPage() => Below(3) == 0 ? RootPool + (Pick(RootPages) << 12) : SmallPool + (Pick(SmallPages) << 12);

    private ulong LargePage() => Below(12) switch
    {
        0 => Bad(),
        1 => SmallPage() & ~0x1F_FFFFUL,
        _ => LargePool + (Pick(LargePages) << 21),
    };

    private ulong AnyPage() => Below(30) switch
    {
        0 => Bad(),
        < 8 => OwnedPage(),
        < 12 => LargePool + (Pick(LargePages) << 21) + (Below(3) == 0 ? Pick(512) << 12 : 0),
        _ => SmallPage(),
    };

    // A page of a TD, those of TDs that are being taken apart first.
    private ulong OwnedPage()
    {
        bool dead = module.Tds().Any(td => td.Lifecycle == TdLifecycle.TEARDOWN);
        for (int i = 0; i < 300; i++)
        {
            ulong page = SmallPage();
            if (module.Pamt(new Hpa(page)) is { Type: not PageType.NDA } view
                && (!dead || module.Td(view.Type == PageType.TDR ? new Hpa(page) : view.Owner) is { Lifecycle: TdLifecycle.TEARDOWN }))
                return page;
        }

        return SmallPage();
    }

    private ulong Bad() => Below(10) switch
    {
        0 => SmallPage() | 1UL << 52,
        1 => SmallPage() | (1 + Pick(63)) << 46,
        2 => 0x3F_0000_0000,
        3 => SmallPage() + 8,
        4 => SmallPage() + 0x800,
        5 => 0x1_5000_0000 + (Pick(64) << 12),
        6 => 0x1_C000_0000 + (Pick(0x220) << 12),
        7 => 0x1_4000_0000,
        _ => SmallPage(),
    };

    private ulong Pick(ulong limit) => random.Below(limit);

    private int Below(int limit) => (int)random.Below((ulong)limit);
}
