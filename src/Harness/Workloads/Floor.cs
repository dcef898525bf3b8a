using System.Runtime.CompilerServices;
using System.Threading;

namespace Tdp.Harness.Workloads;

/// <summary>
/// The yardstick of every fault-in figure: the tightest loop that walks four levels and installs a leaf by compare-exchange, over the same kind of native memory and in the
/// same order. No locks, no RCU, no statistics, no lookup of any kind. Ratios to it travel between machines; nanoseconds do not.
/// </summary>
public sealed class Floor : IDisposable
{
    private const ulong Present = 7;
    private const ulong AddressMask = 0x000F_FFFF_FFFF_F000;

    private readonly PhysicalMemory _memory;
    private readonly ulong _tables;
    private readonly ulong _bytes;
    private long _next;

    /// <summary>Reserves and touches the memory of the tables.</summary>
    /// <param name="span">Pages that the run spans, counted from page 0.</param>
    public Floor(long span)
    {
        // One table per 512 pages, the levels above, and one spare per 64 for links that lose their race.
        long tables = (span / 512 * 65 / 64) + (span >> 18) + 128;
        _bytes = (ulong)tables << 12;
        _tables = 1UL << 20;
        _memory = new PhysicalMemory([new HpaRange(_tables, _bytes)]);
        Reset();
    }

    /// <summary>Empties the tree. The memory stays touched.</summary>
    public void Reset()
    {
        for (ulong frame = _tables; frame < _tables + _bytes; frame += 4096)
        {
            _memory.Zero(new Hpa(frame));
        }

        _next = (long)(_tables + 4096);
    }

    /// <summary>Installs one leaf per page number. May run on several threads at once.</summary>
    /// <returns>How many leaves this call installed; with overlapping ranges the others were there already.</returns>
    public long FaultIn(ReadOnlySpan<uint> pages)
    {
        ref ulong origin = ref _memory.Word(0);
        ulong root = _tables;
        long installed = 0;
        foreach (uint page in pages)
        {
            ulong table = root;
            for (int shift = 27; shift > 0; shift -= 9)
            {
                ref ulong entry = ref Unsafe.AddByteOffset(ref origin, (nint)(table + (((ulong)page >> shift & 511) << 3)));
                ulong value = Volatile.Read(ref entry);
                if (value == 0)
                {
                    value = Link(ref entry);
                }

                table = value & AddressMask;
            }

            ref ulong leaf = ref Unsafe.AddByteOffset(ref origin, (nint)(table + (((ulong)page & 511) << 3)));
            if (Volatile.Read(ref leaf) == 0 && Interlocked.CompareExchange(ref leaf, ((ulong)page << 12) | Present, 0) == 0)
            {
                installed++;
            }
        }

        return installed;
    }

    /// <inheritdoc/>
    public void Dispose() => _memory.Dispose();

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong Link(ref ulong entry)
    {
        ulong table = (ulong)Interlocked.Add(ref _next, 4096) - 4096;
        ulong found = Interlocked.CompareExchange(ref entry, table | Present, 0);
        return found == 0 ? table : found;
    }
}
