using System.Linq;
using System.Reflection;
using Xunit.Abstractions;

namespace Tdp.Tests.Properties;

/// <summary>The glue between xunit and FsCheck: a property that does not hold fails, shrinks to the smallest case, and its replay line repeats exactly that case.</summary>
public sealed class PropertyGlueTests(ITestOutputHelper output) : IDisposable
{
    private bool _disposed;

    [Fact]
    public void A_seeded_bug_is_found_and_shrunk_to_its_boundary()
    {
        PropertyFailedException failure = Assert.Throws<PropertyFailedException>(() => Run(nameof(SeededBug.Blocks_cover_the_range)));
        Assert.Equal([0, 513], failure.Shrunk.Cast<int>());
        Assert.Contains("replay: TDPMMU_REPLAY='(", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_replay_triple_reproduces_the_first_failure_at_once()
    {
        PropertyFailedException first = Assert.Throws<PropertyFailedException>(() => Run(nameof(SeededBug.Blocks_cover_the_range)));
        Assert.NotNull(first.Replay);
        PropertyFailedException again = Assert.Throws<PropertyFailedException>(() => Run(nameof(SeededBug.Blocks_cover_the_range), first.Replay));
        Assert.Equal(first.Shrunk, again.Shrunk);
        Assert.Equal(first.Replay, again.Replay);
        Assert.Contains("Falsifiable, after 1 test", again.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_thrown_exception_is_kept_as_the_cause()
    {
        PropertyFailedException failure = Assert.Throws<PropertyFailedException>(() => Run(nameof(SeededBug.Throws_above_ten)));
        Assert.IsType<InvalidOperationException>(failure.InnerException);
        Assert.Equal([11], failure.Shrunk.Cast<int>());
    }

    [Fact]
    public void A_property_without_a_single_usable_case_fails()
        => Assert.Throws<PropertyFailedException>(() => Run(nameof(SeededBug.Never_applies)));

    [Fact]
    public void Class_defaults_hold_where_the_method_sets_nothing()
    {
        SeededBug.Count = 0;
        Run(nameof(SeededBug.Counts));
        Assert.Equal(700, SeededBug.Count);
    }

    [Fact]
    public void A_replay_that_is_not_a_triple_is_refused()
        => Assert.Throws<ArgumentException>(() => Run(nameof(SeededBug.Counts), "(1;2)"));

    [Property(MaxTest = 20)]
    public void The_output_helper_and_the_constructor_work_inside_a_property(int value)
    {
        Assert.False(_disposed);
        output.WriteLine($"{value}");
    }

    [Property(MaxTest = 20)]
    public bool A_property_may_return_bool(NonNegativeInt value) => value.Get >= 0;

    [Property(MaxTest = 20)]
    public Property A_property_may_return_a_property(int value) => (value + 1 != value).Label("successor");

    [Property(MaxTest = 20)]
    public static void A_property_may_be_static(byte value) => Assert.InRange(value, byte.MinValue, byte.MaxValue);

    [Property(MaxTest = 20)]
    public async System.Threading.Tasks.Task A_property_may_be_asynchronous(int value)
    {
        await System.Threading.Tasks.Task.Yield();
        Assert.Equal(value, value);
    }

    public void Dispose() => _disposed = true;

    private void Run(string name, string? replay = null)
        => PropertyRun.Execute(typeof(SeededBug).GetMethod(name, BindingFlags.Static | BindingFlags.Public)!, null, output, replay ?? "(1,11400714819323198485)");

    /// <summary>Properties that must fail. The class is internal, so xunit does not run them on its own.</summary>
    [Properties(MaxTest = 700)]
#pragma warning disable xUnit1000 // Not public on purpose: run only by the tests above.
    internal static class SeededBug
#pragma warning restore xUnit1000
    {
        internal static int Count { get; set; }

        [Property(Arbitrary = [typeof(Ranges)])]
        public static bool Blocks_cover_the_range(int start, int end)
        {
            return start >= end || Blocks(start, end).Sum() == end - start;
        }

        [Property]
        public static void Throws_above_ten(int value)
        {
            if (value > 10)
            {
                throw new InvalidOperationException("above ten");
            }
        }

        [Property]
        public static Property Never_applies(int value) => Prop.When(false, value == value + 1);

        [Property]
        public static void Counts(byte value) => Count += 1 | (value & 1);

        /// <summary>Splits a range of pages into 2M and 4K blocks. The seeded bug: the pages behind the last 2M block are lost.</summary>
        private static IEnumerable<int> Blocks(int start, int end)
        {
            while (start < end)
            {
                int size = start % 512 == 0 && end - start >= 512 ? 512 : 1;
                yield return size;
                start += size;
                if (size == 512 && end - start is > 0 and < 512)
                {
                    yield break;
                }
            }
        }
    }

    internal static class Ranges
    {
        public static Arbitrary<int> Pages() => Arb.From(Gen.Choose(0, 1100), value => Candidates(value));

        private static IEnumerable<int> Candidates(int value)
        {
            if (value == 0)
            {
                yield break;
            }

            yield return 0;
            for (int step = value / 2; step > 0; step /= 2)
            {
                yield return value - step;
            }
        }
    }
}
