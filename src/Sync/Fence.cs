using System.Threading;

namespace Tdp.Sync;

/// <summary>Memory fences (tdp-mmu 7.3, 7.4, 7.6).</summary>
public static class Fence
{
    /// <summary>Full barrier: no later load passes an earlier store. One event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Full([CallerMemberName] string site = "")
    {
        if (Explore.On)
            Hooked(site);
        else
            Interlocked.MemoryBarrier();
    }

    /// <summary>Keeps loads in order. x86 does so by itself; this stops the compiler. No event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void LoadLoad() => Volatile.ReadBarrier();

    /// <summary>Keeps stores in order. x86 does so by itself; this stops the compiler. No event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void StoreStore() => Volatile.WriteBarrier();

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Hooked(string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Fence, default, site);
        Interlocked.MemoryBarrier();
        Hook.Happened(pending, false);
    }
}

/// <summary>Names a moment for schedules and recordings: SEAMCALL begin and end, VM entry, exit decoded (tdp-mmu 12, FP0). Never a decision.</summary>
public static class Mark
{
    /// <summary>The actor has reached <paramref name="name"/>. Nothing in a free run.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void At(Actor? actor, string name)
    {
        if (Explore.On)
            Hooked(actor, name);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Hooked(Actor? actor, string name) => Hook.Happened(new PendingEvent(EventKind.Mark, default, name, actor), false);
}

/// <summary>Accesses to things that are larger than a word: the content of a frame (decisions section 6, "Derived").</summary>
public static class Touch
{
    /// <summary>The object is read as a whole: a guest access through a TLB hit. One event under the hook, nothing otherwise.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Read(ObjectId id, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            Hooked(EventKind.Read, id, site);
    }

    /// <summary>The object is written as a whole: removal, free or conversion of a frame. One event under the hook, nothing otherwise.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ObjectId id, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            Hooked(EventKind.Write, id, site);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Hooked(EventKind kind, ObjectId id, string site)
    {
        PendingEvent pending = Hook.Announce(kind, id, site);
        Hook.Happened(pending, kind == EventKind.Write);
    }
}
