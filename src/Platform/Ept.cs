namespace Tdp.Platform;

/// <summary>Bits of an EPT entry as the hardware reads it (tdp-mmu 2.1; td-guest 1.3).</summary>
public static class EptEntry
{
    /// <summary>Bit 0: readable.</summary>
    public const ulong Read = 1;

    /// <summary>Bit 1: writable.</summary>
    public const ulong Write = 2;

    /// <summary>Bit 2: executable.</summary>
    public const ulong Execute = 4;

    /// <summary>Bits 2:0. An entry with none of them is not present to the hardware.</summary>
    public const ulong Rwx = 7;

    /// <summary>Bits 5:3: memory type of a leaf.</summary>
    public const ulong MemoryType = 7 << 3;

    /// <summary>Write-back, in bits 5:3.</summary>
    public const ulong WriteBack = 6 << 3;

    /// <summary>Bit 6: ignore the guest's PAT.</summary>
    public const ulong IgnorePat = 1 << 6;

    /// <summary>Bit 7: a leaf above the last level.</summary>
    public const ulong Large = 1 << 7;

    /// <summary>Bit 8: accessed.</summary>
    public const ulong Accessed = 1 << 8;

    /// <summary>Bit 9: dirty.</summary>
    public const ulong Dirty = 1 << 9;

    /// <summary>Bit 63: a violation here is an exit, not a #VE.</summary>
    public const ulong SuppressVe = 1UL << 63;
}

/// <summary>Bits of an EPT pointer.</summary>
public static class EptPointer
{
    /// <summary>Bit 6: the hardware sets accessed and dirty bits. Never on in a TD (decisions D07).</summary>
    public const ulong AccessedDirty = 1 << 6;

    /// <summary>Makes a write-back pointer to the root table.</summary>
    /// <param name="root">The root table's frame.</param>
    /// <param name="rootLevel">4 or 5.</param>
    /// <param name="accessedDirty">Whether the hardware maintains A and D.</param>
    public static ulong Make(Hpa root, Level rootLevel, bool accessedDirty) =>
        root.Value | 6 | ((ulong)(rootLevel.Value - 1) << 3) | (accessedDirty ? AccessedDirty : 0);

    /// <summary>The root table's frame.</summary>
    public static Hpa RootOf(ulong pointer) => new(pointer & Hpa.Mask);

    /// <summary>The level of the root: page-walk length.</summary>
    public static Level LevelOf(ulong pointer) => new((int)((pointer >> 3) & 7) + 1);
}

/// <summary>How a walk ended.</summary>
public enum EptOutcome : byte
{
    /// <summary>The access is allowed.</summary>
    Ok,

    /// <summary>EPT violation, exit reason 48 (or a #VE, if convertible).</summary>
    Violation,

    /// <summary>EPT misconfiguration, exit reason 49.</summary>
    Misconfiguration,

    /// <summary>Dirty would have to be set and logged, and the page-modification log is full: exit reason 62. Nothing was changed in the leaf.</summary>
    LogFull,
}

/// <summary>Result of one hardware walk.</summary>
public readonly record struct EptWalk
{
    /// <summary>How it ended.</summary>
    public required EptOutcome Outcome { get; init; }

    /// <summary>The entry at which the walk stopped: the leaf as it was before the walk set Accessed or Dirty in it, or the deciding entry of a violation.</summary>
    public required ulong Entry { get; init; }

    /// <summary>The level of that entry.</summary>
    public required Level Level { get; init; }

    /// <summary>R, W, X granted by all entries on the way, in bits 2:0.</summary>
    public required ulong Rights { get; init; }

    /// <summary>True when a violation stopped at a non-present or leaf entry with bit 63 clear: the CPU may deliver #VE (td-guest 5.3).</summary>
    public required bool IsConvertible { get; init; }

    /// <summary>The byte's host address, when <see cref="Outcome"/> is Ok.</summary>
    public required Hpa Address { get; init; }

    /// <summary>Bits 5:0 of the exit qualification: access in 2:0, rights in 5:3.</summary>
    public ulong Qualification(AccessKind access) => (ulong)access | (Rights << 3);
}

/// <summary>
/// The hardware's EPT walker: reads the very bytes the MMU or the module wrote, one 64-bit load per level, with no lock (td-guest 3.6).
/// </summary>
/// <remarks>
/// Other actors change entries at any moment; the walker copies each entry once and decides on the copy. It linearizes at the load of the entry
/// where it stops. Accessed and dirty bits are set by compare-exchange, and only if the pointer asks for them (decisions D07).
/// </remarks>
public static class EptWalker
{
    // A shared EPT is the host's: it may point anywhere. Where no memory answers the bus reads ones, which no legal entry is.
    private const ulong AllOnes = ulong.MaxValue;

    /// <summary>
    /// Translates one address for who then reads or writes there: a page where the machine has no memory (a device, or nothing) is refused like a table there.
    /// </summary>
    /// <inheritdoc cref="Walk"/>
    public static EptWalk WalkToMemory(PhysicalMemory memory, ulong pointer, Gpa gpa, AccessKind access, bool logIsFull = false)
    {
        EptWalk walk = Walk(memory, pointer, gpa, access, logIsFull);
        bool isThere = walk.Outcome != EptOutcome.Ok || ((walk.Entry & Hpa.Mask) | (walk.Level.Bytes - 1)) < memory.Top;
        return isThere ? walk : Stop(EptOutcome.Misconfiguration, walk.Entry, walk.Level, walk.Rights);
    }

    /// <summary>
    /// Translates one address. Whatever the tables contain, only memory of this machine is read; the page itself is not, and may be where there is none.
    /// </summary>
    /// <param name="memory">The machine's memory.</param>
    /// <param name="pointer">EPT pointer: root, walk length, A/D switch.</param>
    /// <param name="gpa">Guest physical address, with its alias bit.</param>
    /// <param name="access">What the access does; a guest page-table access of an A/D-enabled context counts as read and write (td-guest 1.2).</param>
    /// <param name="logIsFull">Dirty must not be set, because it could not be logged (<see cref="Vmcs.LogsDirtyPages"/>).</param>
    public static EptWalk Walk(PhysicalMemory memory, ulong pointer, Gpa gpa, AccessKind access, bool logIsFull = false)
    {
        Level level = EptPointer.LevelOf(pointer);
        ulong table = EptPointer.RootOf(pointer).Value;
        bool accessedDirty = (pointer & EptPointer.AccessedDirty) != 0;
        ulong rights = EptEntry.Rwx;
        ulong top = memory.Top;
        if (table >= top)
            return Stop(EptOutcome.Misconfiguration, AllOnes, level, 0);
        while (true)
        {
            AtomicWord word = memory.Entry(new Hpa(table), level.IndexOf(gpa.Value >> 12));
            ulong entry = word.Read();
        decide:

            // The shape of nearly every table pointer: all rights, nothing else. It takes no right away and nothing more needs to be looked at.
            if ((entry & 0xFF) == EptEntry.Rwx && level > Level.K4 && (!accessedDirty || (entry & EptEntry.Accessed) != 0))
            {
                table = entry & Hpa.Mask;
                level = level.Down;
                if (table >= top)
                    return Stop(EptOutcome.Misconfiguration, AllOnes, level, 0);
                continue;
            }

            if ((entry & EptEntry.Rwx) == 0)
                return Stop(EptOutcome.Violation, entry, level, 0);
            if (IsMisconfigured(entry, level))
                return Stop(EptOutcome.Misconfiguration, entry, level, rights & entry);
            ulong granted = rights & entry & EptEntry.Rwx;
            bool leaf = level == Level.K4 || (entry & EptEntry.Large) != 0;
            if (leaf)
            {
                if (((ulong)access & ~granted) != 0)
                    return Stop(EptOutcome.Violation, entry, level, granted);
                ulong wanted = EptEntry.Accessed | ((access & AccessKind.Write) != AccessKind.None ? EptEntry.Dirty : 0);
                if (accessedDirty && (entry & wanted) != wanted)
                {
                    if (logIsFull && (wanted & ~entry & EptEntry.Dirty) != 0)
                        return Stop(EptOutcome.LogFull, entry, level, granted);
                    if (!word.CompareExchange(ref entry, entry | wanted))
                        goto decide;
                }

                ulong offset = gpa.Value & (level.Bytes - 1);
                return new EptWalk
                {
                    Outcome = EptOutcome.Ok,
                    Entry = entry,
                    Level = level,
                    Rights = granted,
                    IsConvertible = false,
                    Address = new Hpa((entry & Hpa.Mask & ~(level.Bytes - 1)) | offset),
                };
            }

            if (accessedDirty && (entry & EptEntry.Accessed) == 0 && !word.CompareExchange(ref entry, entry | EptEntry.Accessed))
                goto decide;
            rights = granted;
            table = entry & Hpa.Mask;
            level = level.Down;
            if (table >= top)
                return Stop(EptOutcome.Misconfiguration, AllOnes, level, 0);
        }
    }

    private static bool IsMisconfigured(ulong entry, Level level)
    {
        // Write without read; a memory type that does not exist in a leaf; reserved bits 6:3 (and 7 at the top) of a table pointer (td-guest 1.3).
        if ((entry & (EptEntry.Read | EptEntry.Write)) == EptEntry.Write)
            return true;
        bool leaf = level == Level.K4 || (entry & EptEntry.Large) != 0;
        if (!leaf)
            return (entry & (EptEntry.MemoryType | EptEntry.IgnorePat)) != 0;
        if (level > Level.G1)
            return true;
        ulong type = (entry & EptEntry.MemoryType) >> 3;
        if (type is 2 or 3 or 7)
            return true;
        return level > Level.K4 && (entry & Hpa.Mask & (level.Bytes - 1)) != 0;
    }

    private static EptWalk Stop(EptOutcome outcome, ulong entry, Level level, ulong rights) => new()
    {
        Outcome = outcome,
        Entry = entry,
        Level = level,
        Rights = rights & EptEntry.Rwx,
        IsConvertible = outcome == EptOutcome.Violation && (entry & EptEntry.SuppressVe) == 0,
        Address = default,
    };
}
