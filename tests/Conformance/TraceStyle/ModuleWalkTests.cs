using System.Globalization;
using System.Linq;
using System.Text;
using Tdp.Harness.Conformance;
using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Conformance.TraceStyle;

/// <summary>
/// Random walks in the style of the recordings. There is no recorded answer, so other things are asked: no exception, only statuses that are documented, the
/// module's invariants after every call, and the same answers and state from a module that takes its locks one by one.
/// </summary>
public sealed class ModuleWalkTests
{
    private const int Calls = 1200;
    private static readonly HpaRange s_used = new(0x1_0000_0000, 0x1_2000_0000 - 0x1_0000_0000UL);

    [Theory]
    [InlineData(TraceStyleMix.Build, 1)]
    [InlineData(TraceStyleMix.Churn, 1)]
    [InlineData(TraceStyleMix.Life, 1)]
    [InlineData(TraceStyleMix.Life, 2)]
    [InlineData(TraceStyleMix.Mem, 1)]
    [InlineData(TraceStyleMix.Vcpu, 1)]
    [Trait("spec", "TM01")]
    [Trait("spec", "TM05")]
    [Trait("spec", "TM06")]
    public void A_walk_in_the_style_of_the_recordings_keeps_the_modules_promises(TraceStyleMix mix, int seed)
    {
        using var together = new ModuleReplayMachine(isReady: true);
        using var inOrder = new ModuleReplayMachine(isReady: true);
        WordBlock locks = CrowdedProcessors.Crowd(inOrder.Machine);
        var random = new SeedStream((ulong)seed, "program");
        var program = new TraceStyleProgram(together.Module, mix, random);
        foreach (ModuleCall call in Begin(program, mix, random))
            Step(call);
        for (int i = 0; i < Calls; i++)
        {
            Step(program.Next());
            if (i % 50 == 0)
                Assert.Equal(Entries(together.Module), Entries(inOrder.Module));
        }

        GC.KeepAlive(locks);

        void Step(ModuleCall call)
        {
            string where = $"call {call.Index}: {call.Record.Json.GetRawText()}";
            ModuleAnswer answer = together.Perform(call);
            ModuleAnswer other = inOrder.Perform(call);
            Assert.True(answer.Trouble is null, $"{where}: {answer.Trouble}");
            Assert.True(ModuleAnswer.Agree(answer, other), $"{where}: locks taken together {Text(answer)}, one by one {Text(other)}");
            if (answer.Rax is { } rax && rax > ushort.MaxValue)
                Assert.True(new TdxStatus(rax).Class.Name is not null, $"{where}: no such status 0x{rax:x}");
            FindingLog findings = new();
            ModuleInvariants.Check(together.Module, findings, s_used);
            Assert.True(findings.All.Count == 0, $"{where}: {string.Join("; ", findings.All)}");
            Assert.True(Roots(together.Module) == Roots(inOrder.Module), where);
        }
    }

    private static IEnumerable<ModuleCall> Begin(TraceStyleProgram program, TraceStyleMix mix, SeedStream random)
    {
        bool five = random.Below(4) == 0;
        yield return program.WriteParameters(random.Below(4) == 0, five);
        if (mix == TraceStyleMix.Life)
            yield break;
        ulong tds = 1 + random.Below(2);
        for (ulong td = 0; td < tds; td++)
        {
            ulong tdr = 0x1_0000_0000 + (td << 20);
            yield return program.Make("TDH.MNG.CREATE", 0, [("rcx", tdr), ("rdx", 33 + td)]);
            yield return program.Make("TDH.MNG.KEY.CONFIG", 0, [("rcx", tdr)]);
            yield return program.Make("TDH.MNG.KEY.CONFIG", 2, [("rcx", tdr)]);
            for (ulong i = 1; i <= 6; i++)
                yield return program.Make("TDH.MNG.ADDCX", 0, [("rcx", tdr + (i << 12)), ("rdx", tdr)]);
            yield return program.Make("TDH.MNG.INIT", 0, [("rcx", tdr), ("rdx", 0x1_5001_0000)]);
            for (ulong v = 1; v <= 2; v++)
            {
                ulong tdvpr = tdr + (v << 16);
                yield return program.Make("TDH.VP.CREATE", 0, [("rcx", tdvpr), ("rdx", tdr)]);
                for (ulong i = 1; i <= 5; i++)
                    yield return program.Make("TDH.VP.ADDCX", 0, [("rcx", tdvpr + (i << 12)), ("rdx", tdvpr)]);
                yield return program.Make("TDH.VP.INIT", (int)v, [("rcx", tdvpr)]);
            }

            for (int level = five ? 4 : 3; level > 0; level--)
                yield return program.Make("TDH.MEM.SEPT.ADD", 0, [("rcx", (ulong)level), ("rdx", tdr), ("r8", tdr + 0x8_0000 + ((ulong)level << 12))]);
            if (mix != TraceStyleMix.Build)
                yield return program.Make("TDH.MR.FINALIZE", 0, [("rcx", tdr)]);
        }
    }

    private static string Roots(TdxModule module) => string.Join('\n', module.Tds().Select(t => t.ToString()).Concat(module.Vcpus().Select(v => v.ToString())));

    private static string Entries(TdxModule module)
    {
        var text = new StringBuilder();
        foreach (TdView td in module.Tds())
        {
            if (td is { Lifecycle: TdLifecycle.KEYS_CONFIGURED, OpState: >= TdOpState.INITIALIZED })
                module.ForEachSeptEntry(td.Tdr, (in SeptView entry) => text.AppendLine(CultureInfo.InvariantCulture, $"{entry}"));
        }

        for (ulong page = s_used.Base; page < s_used.Base + (2UL << 24); page += 4096)
        {
            if (module.Pamt(new Hpa(page)) is { Type: not PageType.NDA } view)
                text.AppendLine(CultureInfo.InvariantCulture, $"{page:x} {view.Type} {view.Owner} {view.Level} {view.Bepoch}");
        }

        return text.ToString();
    }

    private static string Text(in ModuleAnswer answer) => $"{answer.End} rax 0x{answer.Rax:x} rcx 0x{answer.Registers.Rcx:x} rdx 0x{answer.Registers.Rdx:x} r8 0x{answer.Registers.R8:x} flushed {answer.Flushed} {answer.Trouble}";
}
