namespace Tdp.Sync;

/// <summary>What a primitive is about to do, as announced before it happens (decisions section 6).</summary>
public enum EventKind : byte
{
    /// <summary>No access: an actor's start or end.</summary>
    Local,

    /// <summary>Atomic load.</summary>
    Read,

    /// <summary>Atomic store.</summary>
    Write,

    /// <summary>Atomic read-modify-write. It counts as a read when it turned out to change nothing.</summary>
    Update,

    /// <summary>A load under a lock that needs no atomicity (race-explorer 3: data-race candidates).</summary>
    PlainRead,

    /// <summary>A store under a lock that needs no atomicity.</summary>
    PlainWrite,

    /// <summary>Shared acquisition of a lock.</summary>
    LockShared,

    /// <summary>Exclusive acquisition of a lock.</summary>
    LockExclusive,

    /// <summary>Release of a lock.</summary>
    LockRelease,

    /// <summary>A step that is enabled only while its condition holds.</summary>
    Await,

    /// <summary>Full memory fence.</summary>
    Fence,

    /// <summary>A named place in the program; never a decision.</summary>
    Mark,

    /// <summary>
    /// An actor arrives at a lock that it will acquire next. Arrivals commute with each other; whoever asks whether the lock is contended sees them.
    /// </summary>
    Arrive,
}

/// <summary>What kind of thing an <see cref="ObjectId"/> names.</summary>
public enum ObjectKind : byte
{
    /// <summary>Nothing.</summary>
    None,

    /// <summary>One 64-bit word of a frame: a page-table entry, a PAMT word, guest memory.</summary>
    Entry,

    /// <summary>The content of a whole frame.</summary>
    Frame,

    /// <summary>A lock.</summary>
    Lock,

    /// <summary>A shared word outside simulated memory.</summary>
    Cell,

    /// <summary>An RCU or SRCU domain.</summary>
    Rcu,

    /// <summary>A sequence count.</summary>
    Seq,

    /// <summary>The mode, request and acknowledgement words of a kick target.</summary>
    Kick,

    /// <summary>A shared pool that actor caches refill from.</summary>
    Pool,

    /// <summary>An actor.</summary>
    Actor,
}

/// <summary>
/// The structural identity of a shared object: never an address or a counter shared by actors, so that the same step
/// has the same name in every execution (decisions D14, race-explorer 4).
/// </summary>
/// <param name="Kind">What is named.</param>
/// <param name="Name">The owner's name for it, such as <c>mmu_lock</c>; null for frames and entries.</param>
/// <param name="Owner">The owner's number: the structural name of a frame, the number of a VM, vCPU or LP.</param>
/// <param name="Index">Position inside the owner, such as the entry index 0..511.</param>
public readonly record struct ObjectId(ObjectKind Kind, string? Name, ulong Owner, uint Index)
{
    /// <summary>Word <paramref name="index"/> of the frame with structural name <paramref name="frame"/>.</summary>
    public static ObjectId Entry(ulong frame, uint index) => new(ObjectKind.Entry, null, frame, index);

    /// <summary>The content of the frame with structural name <paramref name="frame"/>.</summary>
    public static ObjectId Frame(ulong frame) => new(ObjectKind.Frame, null, frame, 0);

    /// <summary>The lock <paramref name="name"/> of <paramref name="owner"/>.</summary>
    public static ObjectId Lock(string name, ulong owner = 0, uint index = 0) => new(ObjectKind.Lock, name, owner, index);

    /// <summary>The shared cell <paramref name="name"/> of <paramref name="owner"/>.</summary>
    public static ObjectId Cell(string name, ulong owner = 0, uint index = 0) => new(ObjectKind.Cell, name, owner, index);

    /// <inheritdoc/>
    public override string ToString() => Hook.Describe(this);

    internal string DefaultName() => Kind switch
    {
        ObjectKind.None => "-",
        ObjectKind.Entry => $"entry({Owner >> 32}.{(uint)Owner},{Index})",
        ObjectKind.Frame => $"frame({Owner >> 32}.{(uint)Owner})",
        _ => Owner == 0 && Index == 0 ? $"{Kind}({Name})" : Index == 0 ? $"{Kind}({Name},{Owner})" : $"{Kind}({Name},{Owner},{Index})",
    };
}

/// <summary>An event that an actor is about to perform: the point at which a scheduler may switch actors.</summary>
/// <param name="Kind">What will be done, in the worst case.</param>
/// <param name="Object">The object it will be done to.</param>
/// <param name="Site">The calling member (decisions D13).</param>
/// <param name="Actor">The actor, where the primitive was given one; otherwise the scheduler knows who runs.</param>
public readonly record struct PendingEvent(EventKind Kind, ObjectId Object, string Site, Actor? Actor);

/// <summary>An event as it turned out.</summary>
/// <param name="Kind">What was announced.</param>
/// <param name="Object">The object.</param>
/// <param name="Site">The calling member.</param>
/// <param name="Actor">The actor, or null where the primitive was not given one.</param>
/// <param name="Changed">True when the object's value changed; a failed compare-exchange is a read.</param>
/// <param name="Before">Value before the event, where the object has one.</param>
/// <param name="After">Value after the event.</param>
public readonly record struct SyncEvent(EventKind Kind, ObjectId Object, string Site, Actor? Actor, bool Changed, ulong Before, ulong After);
