using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Seam;

/// <summary>Registers full of values that a hostile or broken host could pass: no exception, and the books agree afterwards.</summary>
public sealed class GarbageTests
{
    private const int Pool = 48;
    private static readonly TdhLeaf[] s_leaves = [.. Array.FindAll(Enum.GetValues<TdhLeaf>(), leaf => leaf is not (TdhLeaf.SYS_SHUTDOWN or TdhLeaf.MNG_VPFLUSHDONE))];

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [Trait("spec", "TM01")]
    [Trait("spec", "TM06")]
    public void Any_value_in_any_register_of_any_leaf_is_answered_and_leaves_the_books_right(int seed)
    {
        using ModuleRig rig = Prepare(out Hpa pool);
        Storm storm = new(rig, pool, new SeedStream((ulong)seed, "program"));
        for (int i = 0; i < 60_000; i++)
            storm.Step((int)storm.Random.Below((ulong)rig.Machine.Processors.Count));
        CheckBooks(rig, pool);
    }

    [Fact]
    [Trait("spec", "TM01")]
    [Trait("spec", "TM10")]
    public void Two_processors_in_a_storm_of_garbage_leave_the_books_right()
    {
        using ModuleRig rig = Prepare(out Hpa pool);
        List<Actor> actors = [];
        for (int p = 0; p < 2; p++)
        {
            int own = p;
            Actor actor = rig.Machine.Actors.Create($"storm{p}");
            actors.Add(actor);
            actor.Start(_ =>
            {
                Storm storm = new(rig, pool, new SeedStream(9, "program", (ulong)own));
                for (int i = 0; i < 60_000; i++)
                    storm.Step(own);
            });
        }

        foreach (Actor actor in actors)
            actor.Join();
        CheckBooks(rig, pool);
    }

    private static ModuleRig Prepare(out Hpa pool)
    {
        ModuleRig rig = new();
        pool = rig.LargePage();
        for (int i = 1; i < 8; i++)
            rig.LargePage();
        rig.BuildTd(vcpus: 2);
        rig.AddTables(0);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        return rig;
    }

    private static void CheckBooks(ModuleRig rig, Hpa pool)
    {
        foreach (TdView td in rig.Module.Tds())
        {
            long owned = 0;
            for (ulong page = pool.Value & ~0x3FFF_FFFFUL; page < pool.Value + (32 << 20); page += 4096)
            {
                PamtView view = rig.Module.Pamt(new Hpa(page))!.Value;
                owned += view.Owner == td.Tdr ? 1 : 0;
                bool held = rig.Module.CurrentVmcs(rig.Lp(0)) is not null || rig.Module.CurrentVmcs(rig.Lp(1)) is not null || rig.Module.CurrentVmcs(rig.Lp(2)) is not null;
                Assert.True(held || (view.LockBits & 0x7FFD) == 0, $"0x{page:x} is left locked: 0x{view.LockBits:x}");
            }

            Assert.Equal(td.ChildCount, owned);
        }
    }

    /// <summary>Calls with a mixture of sensible operands, pages of a small pool, and noise.</summary>
    private sealed class Storm(ModuleRig rig, Hpa pool, SeedStream random)
    {
        public SeedStream Random { get; } = random;

        public void Step(int lp)
        {
            LogicalProcessor processor = rig.Lp(lp);
            SeamRegisters registers = default;
            if (rig.Module.CurrentVmcs(processor) is { } vmcs)
            {
                for (int i = 0; i < 16; i++)
                    vmcs.State[(Gpr)i] = Value();
                vmcs.State[Gpr.Rax] = Random.Below(3) == 0 ? (ulong)TdgLeaf.MEM_PAGE_ACCEPT : Random.Below(26);
                vmcs.Exit = Random.Below(3) switch
                {
                    0 => new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 },
                    1 => new VmExit { Reason = ExitReason.EptViolation, Qualification = Random.Below(512), Gpa = Value(), IsConvertible = Random.Below(2) == 0 },
                    _ => new VmExit { Reason = ExitReason.ExternalInterrupt },
                };
                if (rig.Module.HandleExit(processor, ref registers))
                    vmcs.EntryEvent = default;
                return;
            }

            for (int i = 0; i < 16; i++)
                registers[(Gpr)i] = Value();
            registers.Rax = Random.Below(100) == 0 ? Value() : (ulong)s_leaves[(int)Random.Below((ulong)s_leaves.Length)] | (Random.Below(40) == 0 ? 1UL << 16 : 0);
            if ((ushort)registers.Rax is (ushort)TdhLeaf.SYS_SHUTDOWN or (ushort)TdhLeaf.MNG_VPFLUSHDONE)
                return;
            if (Random.Below(4) != 0)
                registers.Rdx = rig.Tdr.Value;
            if (Random.Below(3) == 0)
                registers.Rcx = (TdhLeaf)(ushort)registers.Rax is TdhLeaf.MEM_TRACK or TdhLeaf.MNG_RD ? rig.Tdr.Value : rig.Vcpus[(int)Random.Below(2)].Value;
            rig.Module.Seamcall(processor, ref registers);
        }

        private ulong Value() => Random.Below(8) switch
        {
            0 => Random.Next(),
            1 => 1UL << (int)Random.Below(64),
            2 => ulong.MaxValue,
            3 or 4 => pool.Value + (Random.Below(Pool) << 12) + (Random.Below(8) == 0 ? Random.Below(4096) : 0),
            5 => pool.Value + (Random.Below(8) << 21),
            6 => (Random.Below(16) << 12) | (Random.Below(8) == 0 ? Random.Below(8) : 0),
            _ => (Random.Below(4) << 21) | Random.Below(3),
        };
    }
}
