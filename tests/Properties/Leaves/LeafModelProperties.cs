using System.Linq;

namespace Tdp.Tests.Properties.Leaves;

/// <summary>
/// Any sequence of leaves, from two host processors and a third, with guests on two of them that accept, touch and leave: the module answers as the
/// sequential model does, keeps what the model keeps, and its invariants hold after each call.
/// </summary>
[Properties(Arbitrary = [typeof(LeafPrograms)], QuietOnSuccess = true)]
public sealed class LeafModelProperties
{
    [Property(MaxTest = 160, StartSize = 4, EndSize = 90)]
    [Trait("spec", "TM01")]
    [Trait("spec", "TM02")]
    [Trait("spec", "TM03")]
    [Trait("spec", "TM04")]
    [Trait("spec", "TM05")]
    [Trait("spec", "TM06")]
    [Trait("spec", "TM07")]
    [Trait("spec", "TM09")]
    public static void Any_sequence_of_leaves_goes_as_in_the_sequential_model(LeafProgram program) => Holds(LeafRun.Execute(program, null));

    private static void Holds(string verdict) => Assert.True(verdict == "ok", verdict);
}

/// <summary>Generates programs whose steps mostly make sense: the few addresses and pages meet often.</summary>
internal static class LeafPrograms
{
    private static readonly (int Weight, StepKind Kind)[] s_host =
    [
        (4, StepKind.PageAdd), (9, StepKind.PageAug), (5, StepKind.SeptAdd), (6, StepKind.RangeBlock), (4, StepKind.RangeUnblock), (6, StepKind.PageRemove), (4, StepKind.SeptRemove),
        (4, StepKind.PagePromote), (5, StepKind.PageDemote), (4, StepKind.PageRelocate), (3, StepKind.SeptRead), (5, StepKind.Track), (8, StepKind.Retire), (2, StepKind.Fill),
    ];

    private static readonly (int Weight, StepKind Kind)[] s_guest =
    [
        (7, StepKind.Enter), (4, StepKind.Leave), (9, StepKind.Accept), (1, StepKind.AcceptAll), (2, StepKind.AttrRead), (6, StepKind.Touch), (2, StepKind.VeInfoGet),
    ];

    private static readonly (int Weight, StepKind Kind)[] s_around =
    [
        (3, StepKind.Interrupt), (1, StepKind.Wait), (5, StepKind.Hold), (4, StepKind.Release), (2, StepKind.Rdmd), (1, StepKind.Wbinvd), (1, StepKind.Reclaim), (1, StepKind.Finalize), (2, StepKind.VpFlush),
    ];

    private static readonly (int Weight, StepKind Kind)[] s_end =
    [
        (5, StepKind.VpFlush), (4, StepKind.VpFlushDone), (5, StepKind.CacheWb), (3, StepKind.KeyFreeId), (3, StepKind.Reclaim), (2, StepKind.ReclaimAll), (2, StepKind.PageAug), (1, StepKind.Leave),
    ];

    public static Arbitrary<LeafProgram> Programs() => Arb.From(
        from size in Gen.Sized(Gen.Constant)
        from running in Gen.Elements(true, true, false)
        from steps in Gen.ListOf(Step(), size)
        from isLast in Gen.Choose(0, 9)
        from last in Gen.ListOf(Step(s_end), isLast == 0 ? 16 : 0)
        select new LeafProgram(running, [.. steps, .. last]),
        program => program.Shrink());

    private static Gen<LeafStep> Step() => Gen.Frequency((60, Step(s_host)), (32, Step(s_guest)), (18, Step(s_around)));

    private static Gen<LeafStep> Step((int Weight, StepKind Kind)[] kinds) =>
        from kind in Gen.Frequency(kinds.Select(k => (k.Weight, Gen.Constant(k.Kind))))
        from lp in Gen.Choose(0, kind is StepKind.Hold ? 7 : kind is StepKind.SeptAdd ? 4 : 2)
        from gpa in Gen.Frequency((9, Gen.Choose(0, 3)), (1, Gen.Constant(4)))
        from level in Level(kind)
        from page in level == 1 && kind is StepKind.PageAug ? Gen.Choose(6, 9) : kind is StepKind.Fill ? Gen.Choose(6, 7) : Gen.Frequency((8, Gen.Choose(0, 5)), (2, Gen.Choose(0, 12)))
        select new LeafStep(kind, lp, gpa, level, page);

    private static Gen<int> Level(StepKind kind) => kind switch
    {
        StepKind.SeptAdd or StepKind.SeptRemove or StepKind.PagePromote or StepKind.PageDemote => Gen.Frequency((8, Gen.Constant(1)), (1, Gen.Choose(0, 3))),
        StepKind.PageAug or StepKind.Accept or StepKind.RangeBlock or StepKind.RangeUnblock or StepKind.Retire or StepKind.PageRemove or StepKind.SeptRead or StepKind.Hold =>
            Gen.Frequency((5, Gen.Constant(0)), (4, Gen.Constant(1)), (1, Gen.Choose(0, 3))),
        _ => Gen.Frequency((9, Gen.Constant(0)), (1, Gen.Choose(0, 2))),
    };
}
