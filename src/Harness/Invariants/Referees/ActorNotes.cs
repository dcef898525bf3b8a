namespace Tdp.Harness.Invariants;

/// <summary>What the referees remember of one actor between the things it does. Written on the actor's own thread; read by others only under a scheduler, where one thread runs at a time.</summary>
internal sealed class ActorNotes
{
    public ActorNotes(Actor actor) => Actor = actor;

    public Actor Actor { get; }

    /// <summary>Calls of the fault in progress that the module took: pages and tables; and those that it answered BUSY.</summary>
    public int Mapped { get; set; }

    /// <summary>See <see cref="Mapped"/>.</summary>
    public int Linked { get; set; }

    /// <summary>See <see cref="Mapped"/>.</summary>
    public int BusyAnswers { get; set; }

    /// <summary>The actor has an entry frozen; seen only where changes of entries are.</summary>
    public bool HasFrozen { get; set; }

    /// <summary>That entry's place.</summary>
    public Hpa FrozenWord { get; set; }

    /// <summary>What it held.</summary>
    public Spte FrozenFrom { get; set; }

    /// <summary>What the module was told that it becomes: a page, or a Secure EPT page.</summary>
    public Hpa Announced { get; set; }

    /// <summary>The module refused.</summary>
    public bool IsRefused { get; set; }

    /// <summary>An entry that was refused was left as something else than it had been.</summary>
    public bool IsUnrestored { get; set; }

    /// <summary>The fault in progress has met FROZEN, and what it has changed since.</summary>
    public bool HasMetFrozen { get; set; }

    /// <summary>See <see cref="HasMetFrozen"/>.</summary>
    public int ChangesAfterFrozen { get; set; }

    /// <summary>A fault is in progress.</summary>
    public bool IsFaulting { get; set; }

    /// <summary>The entry that the fault in progress looked at last.</summary>
    public EntryView LastLook { get; set; }

    /// <summary>Inside a SEAMCALL; inside the guest.</summary>
    public bool IsInModule { get; set; }

    /// <summary>See <see cref="IsInModule"/>.</summary>
    public bool IsInGuest { get; set; }

    /// <summary>The VM was dead when the vCPU last looked at its requests before an entry.</summary>
    public bool SawDeath { get; set; }

    /// <summary>Inside a mmu_lock write section in which an invalidation has ended.</summary>
    public bool HasEndedInvalidation { get; set; }

    public Freeze Freeze => HasFrozen ? new Freeze(Actor, FrozenFrom, Announced, IsRefused) : default;

    public void BeginFault()
    {
        Mapped = Linked = BusyAnswers = ChangesAfterFrozen = 0;
        HasMetFrozen = IsUnrestored = false;
        LastLook = default;
        IsFaulting = true;
    }
}
