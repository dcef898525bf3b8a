namespace Tdp.Harness.Workloads;

/// <summary>In which order the threads of a fault-in run take the pages.</summary>
public enum PageOrder
{
    /// <summary>Each thread goes through a range of its own from the bottom up.</summary>
    Sequential,

    /// <summary>Each thread goes through a range of its own in a random order.</summary>
    Random,

    /// <summary>All threads go through the same range from the bottom up.</summary>
    Overlap,
}

/// <summary>The page numbers that each thread of a run takes, computed before the clock starts.</summary>
public static class PageSequence
{
    /// <summary>Lays the sequences out.</summary>
    /// <param name="order">The order.</param>
    /// <param name="threads">How many threads.</param>
    /// <param name="pages">Pages per thread.</param>
    /// <param name="seed">The master seed of the random order.</param>
    /// <returns>One array of page numbers per thread, counted from 0.</returns>
    public static uint[][] Make(PageOrder order, int threads, int pages, ulong seed)
    {
        uint[][] sequences = new uint[threads][];
        for (int thread = 0; thread < threads; thread++)
        {
            uint first = order is PageOrder.Overlap ? 0 : checked((uint)((long)thread * RangeOf(pages)));
            uint[] sequence = new uint[pages];
            for (int i = 0; i < pages; i++)
            {
                sequence[i] = first + (uint)i;
            }

            if (order is PageOrder.Random)
            {
                Shuffle(sequence, new SeedStream(seed, "program", (ulong)thread));
            }

            sequences[thread] = sequence;
        }

        return sequences;
    }

    /// <summary>Pages that the sequences of a run span, counted from page 0.</summary>
    public static long Span(PageOrder order, int threads, int pages) => order is PageOrder.Overlap ? pages : (long)threads * RangeOf(pages);

    // Ranges of different threads share no table of 4K entries.
    private static long RangeOf(int pages) => (pages + 511L) & ~511L;

    private static void Shuffle(uint[] values, SeedStream stream)
    {
        for (int i = values.Length - 1; i > 0; i--)
        {
            int j = (int)stream.Below((ulong)i + 1);
            (values[i], values[j]) = (values[j], values[i]);
        }
    }
}
