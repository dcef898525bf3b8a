using System.Linq;
using Tdp.Harness.Scenarios;
using Tdp.Platform;

namespace Tdp.Tests.Properties;

/// <summary>Generates stress programs: up to three vCPUs and two host threads, as many steps as the size says, in a world of 1024 pages of which the first and last few of each table are hot.</summary>
internal static class StressPrograms
{
    /// <summary>Pages of the world.</summary>
    public const int Pages = TextEntry.ProgramPages;

    public static Arbitrary<StressProgram> Programs() => Arb.From(
        from size in Gen.Sized(Gen.Constant)
        from vcpus in Gen.Choose(1, 3)
        from hosts in Gen.Choose(0, 2)
        from high in Gen.Choose(0, int.MaxValue)
        from low in Gen.Choose(0, int.MaxValue)
        select StressGenerator.Program(((ulong)high << 32) ^ (ulong)low, vcpus, hosts, 2 + (size * 2), Pages),
        program => program.Shrink());

    public static Arbitrary<TlbMode> Modes() => Gen.Elements(TlbMode.Off, TlbMode.Precise, TlbMode.Adversarial).ToArbitrary();
}
