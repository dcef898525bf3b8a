using System.Runtime.InteropServices;

namespace Tdp.Platform;

/// <summary>How long translations are kept (decisions section 7).</summary>
public enum TlbMode : byte
{
    /// <summary>Keep none: every access walks. For debugging.</summary>
    Off,

    /// <summary>Keep until an architecture-required flush or lack of room.</summary>
    Precise,

    /// <summary>As Precise, and evict at random from the run's seed.</summary>
    Adversarial,
}

/// <summary>One translation.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct TlbEntry
{
    /// <summary>The private EPT pointer of a TD (both aliases share it), or the EPT pointer of an ordinary VM.</summary>
    public ulong Context;

    /// <summary>Guest page address with its alias bit, aligned to the entry's size.</summary>
    public ulong GpaPage;

    /// <summary>Host address of the page.</summary>
    public ulong Frame;

    /// <summary>When it was filled: <see cref="Tlb.Fills"/> then.</summary>
    public ulong FillTime;

    /// <summary>Generation of the 4 KiB frame used first.</summary>
    public uint Generation;

    /// <summary>The flush count of its processor when it was filled; the entry is dead when that has moved on.</summary>
    public uint FlushCount;

    /// <summary>The vCPU.</summary>
    public ushort Vcpu;

    /// <summary>R, W, X in bits 2:0; bit 3: dirty already set, so a write needs no walk.</summary>
    public byte Rights;

    /// <summary>Page size as a level.</summary>
    public byte Level;
}

/// <summary>
/// The translation cache of one logical processor, over guest-physical pages (decisions section 7). It may be stale, and must be able to be.
/// </summary>
/// <remarks>
/// Only its own processor fills, reads and flushes it: a remote flush is a kick plus a local flush. Entries of 4 KiB, 2 MiB and 1 GiB lie in one
/// four-way set-associative table; a set that is full loses its oldest entry, as hardware does.
/// </remarks>
public sealed class Tlb
{
    private const int Sets = 1024;
    private const int Ways = 4;
    private const byte DirtySeen = 8;
    private readonly TlbEntry[] _entries = new TlbEntry[(Sets * Ways) + Ways];
    private readonly SeedStream? _evictions;
    private readonly TlbMode _mode;
    private Padded<Counts> _counts;

    /// <summary>Makes an empty cache.</summary>
    /// <param name="mode">Retention policy.</param>
    /// <param name="evictions">Stream of the run's seed for <see cref="TlbMode.Adversarial"/>; otherwise unused.</param>
    public Tlb(TlbMode mode, SeedStream? evictions)
    {
        _mode = mode;
        _evictions = mode == TlbMode.Adversarial ? evictions ?? throw new ArgumentNullException(nameof(evictions)) : null;
        _counts.Value.Flush = 1;
    }

    /// <summary>Retention policy.</summary>
    public TlbMode Mode => _mode;

    /// <summary>Counts flushes; front caches tag their slots with it and treat others as dead.</summary>
    public uint FlushCount => _counts.Value.Flush;

    /// <summary>Fills so far.</summary>
    public ulong Fills => _counts.Value.Fills;

    /// <summary>Flushes so far.</summary>
    public ulong Flushes => _counts.Value.Flushes;

    /// <summary>Drops everything.</summary>
    public void FlushAll()
    {
        _counts.Value.Flushes++;
        _counts.Value.HasLarge = false;
        if (++_counts.Value.Flush == 0)
        {
            Array.Clear(_entries);
            _counts.Value.Flush = 1;
        }
    }

    /// <summary>Drops the translations of one context, of both aliases (single-context INVEPT).</summary>
    public void FlushContext(ulong context)
    {
        _counts.Value.Flushes++;
        for (int i = 0; i < _entries.Length; i++)
        {
            if (_entries[i].Context == context)
                _entries[i] = default;
        }

        // Front caches know only the count.
        uint before = _counts.Value.Flush++;
        for (int i = 0; i < _entries.Length; i++)
        {
            if (_entries[i].FlushCount == before)
                _entries[i].FlushCount = _counts.Value.Flush;
        }
    }

    /// <summary>
    /// Finds a live translation that allows the access. The returned reference stays valid until the next fill or flush.
    /// </summary>
    /// <returns>A null reference when there is none.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref TlbEntry Find(ulong context, int vcpu, ulong gpa, AccessKind access)
    {
        if (_mode == TlbMode.Off)
            return ref Unsafe.NullRef<TlbEntry>();
        ref TlbEntry entry = ref Probe(context, vcpu, gpa & ~0xFFFUL, 1, access);
        if (Unsafe.IsNullRef(ref entry) && _counts.Value.HasLarge)
            return ref FindLarge(context, vcpu, gpa, access);
        return ref entry;
    }

    /// <summary>Adds a translation after a successful walk; replaces an entry for the same page. Negative results are never cached (td-guest 1.4).</summary>
    /// <param name="context">Tag.</param>
    /// <param name="vcpu">Tag.</param>
    /// <param name="gpa">Guest address, with its alias bit.</param>
    /// <param name="walk">The successful walk.</param>
    /// <param name="wrote">True when the walk was for a write, so Dirty is set already.</param>
    /// <param name="generation">Generation of the frame of the byte that was translated.</param>
    public void Fill(ulong context, int vcpu, ulong gpa, in EptWalk walk, bool wrote, uint generation)
    {
        _counts.Value.Fills++;
        if (_mode == TlbMode.Off)
            return;
        if (_mode == TlbMode.Adversarial && _evictions!.Below(4) == 0)
            _entries[(int)_evictions.Below((ulong)_entries.Length)] = default;
        int level = walk.Level.Value;
        ulong size = walk.Level.Bytes;
        ulong page = gpa & ~(size - 1);
        _counts.Value.HasLarge |= level > 1;
        int set = SetOf(page, level);
        int victim = set;
        ulong oldest = ulong.MaxValue;
        for (int i = set; i < set + Ways; i++)
        {
            ref TlbEntry candidate = ref _entries[i];
            bool live = candidate.FlushCount == _counts.Value.Flush && candidate.Context != 0;
            if (live && candidate.GpaPage == page && candidate.Context == context && candidate.Vcpu == vcpu && candidate.Level == level)
            {
                victim = i;
                break;
            }

            ulong age = live ? candidate.FillTime + 1 : 0;
            if (age < oldest)
            {
                oldest = age;
                victim = i;
            }
        }

        _entries[victim] = new TlbEntry
        {
            Context = context,
            GpaPage = page,
            Frame = walk.Address.Value & ~(size - 1),
            FillTime = Fills,
            Generation = generation,
            FlushCount = _counts.Value.Flush,
            Vcpu = (ushort)vcpu,
            Rights = (byte)((byte)walk.Rights | (wrote ? DirtySeen : 0)),
            Level = (byte)level,
        };
    }

    /// <summary>Calls <paramref name="visit"/> for every live entry; for checkers (TM04), when the processor does not run.</summary>
    public void ForEachLive(Action<TlbEntry> visit)
    {
        foreach (TlbEntry entry in _entries)
        {
            if (entry.FlushCount == _counts.Value.Flush && entry.Context != 0)
                visit(entry);
        }
    }

    private static int SetOf(ulong page, int level) => (int)(((page >> (9 * (level - 1))) >> 12) & (Sets - 1)) * Ways;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private ref TlbEntry Probe(ulong context, int vcpu, ulong page, int level, AccessKind access)
    {
        int set = SetOf(page, level);
        for (int i = set; i < set + Ways; i++)
        {
            ref TlbEntry entry = ref _entries[i];
            if (entry.GpaPage != page || entry.Context != context || entry.FlushCount != _counts.Value.Flush || entry.Vcpu != vcpu || entry.Level != level)
                continue;
            byte needed = (byte)((byte)access | ((access & AccessKind.Write) != AccessKind.None ? DirtySeen : 0));
            if ((needed & ~entry.Rights) == 0)
                return ref entry;
            break;
        }

        return ref Unsafe.NullRef<TlbEntry>();
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ref TlbEntry FindLarge(ulong context, int vcpu, ulong gpa, AccessKind access)
    {
        for (int level = 2; level <= 3; level++)
        {
            ulong page = gpa & ~((1UL << ((9 * (level - 1)) + 12)) - 1);
            ref TlbEntry entry = ref Probe(context, vcpu, page, level, access);
            if (!Unsafe.IsNullRef(ref entry))
                return ref entry;
        }

        return ref Unsafe.NullRef<TlbEntry>();
    }

    // Moves with every fill; the object itself is small and would share a line with another processor's.
    private struct Counts
    {
        public ulong Fills;
        public ulong Flushes;
        public uint Flush;
        public bool HasLarge;
    }
}
