using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>The invariant of tdx-module 10.1 about sets of calls.</summary>
public sealed class SerialOrderChecklist
{
    private const ulong Gpa = Steps.Gpa;

    /// <summary>A host call of a set: register values as a function of the world, because every world has pages of its own.</summary>
    private sealed record Call(string Name, TdhLeaf Leaf, Func<ModuleRig, (ulong Rcx, ulong Rdx, ulong R8)> Operands);

    [Theory]
    [InlineData("aug", "aug2")]
    [InlineData("aug", "block", "read")]
    [InlineData("block", "remove", "track")]
    [InlineData("block", "track", "block2")]
    [InlineData("relocate", "remove", "unblock")]
    [InlineData("sept", "aug3", "aug")]
    [Trait("spec", "TM10")]
    public void TM10_What_calls_do_at_once_is_what_some_order_of_them_does(params string[] names)
    {
        for (int round = 0; round < 12; round++)
        {
            using ModuleRig rig = World();
            Call[] calls = [.. names.Select(name => s_calls.Single(call => call.Name == name))];
            TdxStatus[] answers = Together(rig, calls);
            ConcurrentCall<ModuleRig>[] set =
                [.. calls.Select((call, i) => new ConcurrentCall<ModuleRig>(call.Name, world => Make(world, call, lp: 0), answers[i]))];
            FindingLog findings = new();
            Assert.NotNull(SerialOrders.Check(World, set, Picture, Picture(rig), findings));
            Assert.Empty(findings.All);
        }
    }

    // Pages of every world are the same ones: each is built by the same steps.
    private static readonly Call[] s_calls =
    [
        new("aug", TdhLeaf.MEM_PAGE_AUG, rig => (Gpa + 0x1000, rig.Tdr.Value, Spare(rig, 0))),
        new("aug2", TdhLeaf.MEM_PAGE_AUG, rig => (Gpa + 0x2000, rig.Tdr.Value, Spare(rig, 0))),
        new("aug3", TdhLeaf.MEM_PAGE_AUG, rig => (Gpa + Steps.LargeBytes, rig.Tdr.Value, Spare(rig, 1))),
        new("sept", TdhLeaf.MEM_SEPT_ADD, rig => ((Gpa + Steps.LargeBytes) | 1, rig.Tdr.Value, Spare(rig, 2))),
        new("block", TdhLeaf.MEM_RANGE_BLOCK, rig => (Gpa, rig.Tdr.Value, 0)),
        new("block2", TdhLeaf.MEM_RANGE_BLOCK, rig => (Gpa | 1, rig.Tdr.Value, 0)),
        new("track", TdhLeaf.MEM_TRACK, rig => (rig.Tdr.Value, 0, 0)),
        new("remove", TdhLeaf.MEM_PAGE_REMOVE, rig => (Gpa + 0x8000, rig.Tdr.Value, 0)),
        new("relocate", TdhLeaf.MEM_PAGE_RELOCATE, rig => (Gpa + 0x8000, rig.Tdr.Value, Spare(rig, 3))),
        new("unblock", TdhLeaf.MEM_RANGE_UNBLOCK, rig => (Gpa + 0x8000, rig.Tdr.Value, 0)),
        new("read", TdhLeaf.MEM_SEPT_RD, rig => (Gpa, rig.Tdr.Value, 0)),
    ];

    /// <summary>A TD with a page at Gpa and one at Gpa + 0x8000 that is blocked and tracked.</summary>
    internal static ModuleRig World()
    {
        ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        rig.Aug(Gpa + 0x8000);
        rig.Block(Gpa + 0x8000);
        return rig;
    }

    internal static ModulePicture Picture(ModuleRig rig) => ModulePicture.Of(rig.Module, new HpaRange(rig.Machine.Description.Tdmrs[0].Range.Base, 16 << 20));

    // Nobody takes pages after the world is built, so these are free.
    private static ulong Spare(ModuleRig rig, int number) => rig.PagesEnd + ((ulong)number << 12);

    private static TdxStatus Make(ModuleRig rig, Call call, int lp)
    {
        (ulong rcx, ulong rdx, ulong r8) = call.Operands(rig);
        return rig.Call(call.Leaf, rcx, rdx, r8, lp: lp);
    }

    // Every processor arrives before the first calls.
    private static TdxStatus[] Together(ModuleRig rig, Call[] calls)
    {
        TdxStatus[] answers = new TdxStatus[calls.Length];
        using System.Threading.Barrier barrier = new(calls.Length);
        Actor[] actors = [.. calls.Select((call, i) =>
        {
            Actor actor = rig.Machine.Actors.Create(call.Name);
            actor.Start(_ =>
            {
                barrier.SignalAndWait();
                answers[i] = Make(rig, call, lp: i);
            });
            return actor;
        })];
        foreach (Actor actor in actors)
            actor.Join();
        return answers;
    }
}
