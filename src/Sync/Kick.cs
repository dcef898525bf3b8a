using System.Runtime.InteropServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>Where a kick target is (tdp-mmu 7.3: vcpu->mode).</summary>
public enum TargetMode : ulong
{
    /// <summary>OUTSIDE_GUEST_MODE: on the host, interrupts on.</summary>
    Outside = 0,

    /// <summary>IN_GUEST_MODE: entering or running the guest.</summary>
    Inside = 1,

    /// <summary>EXITING_GUEST_MODE: in the guest and told to leave.</summary>
    Exiting = 2,

    /// <summary>READING_SHADOW_PAGE_TABLES: outside, but walking tables without a lock.</summary>
    Reading = 3,
}

/// <summary>
/// Requests, mode and acknowledgement of one vCPU: how somebody else makes it leave the guest and knows that it did (tdp-mmu 7.3, 7.4).
/// </summary>
/// <remarks>
/// Store-buffer pattern: the requester writes (an SPTE, a request bit, its ticket), fences, reads the mode; the target writes its mode, fences,
/// reads requests and tickets. At least one sees the other. A wait is over when the target has <em>acknowledged</em> the ticket, that is, was outside at
/// some moment after the requester's writes; it may be back in the guest by then (decisions D16).
/// </remarks>
public sealed class Kick
{
    private readonly ObjectId _id;
    private Words _words;

    /// <summary>Makes the target number <paramref name="owner"/>.</summary>
    public Kick(string name, ulong owner) => _id = new ObjectId(ObjectKind.Kick, name, owner, 0);

    /// <summary>The mode without an event.</summary>
    public TargetMode Mode => (TargetMode)Volatile.Read(ref _words.Mode);

    /// <summary>True when the target should leave the guest at its next boundary. Polled by the engine; a plain load of a line that seldom changes.</summary>
    public bool ShouldExit
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Explore.On ? HookedShouldExit() : Volatile.Read(ref _words.Mode) != (ulong)TargetMode.Inside;
    }

    /// <summary>Target: interrupts go off, the mode becomes Inside, and a full fence follows. The caller must now look at every reason not to enter.</summary>
    public void BeginEntry(Actor actor, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, _id, site, actor) : default;
        Interlocked.Exchange(ref _words.Mode, (ulong)TargetMode.Inside);
        if (Explore.On)
            Hook.Happened(pending, true, 0, (ulong)TargetMode.Inside);
    }

    /// <summary>Target, after <see cref="BeginEntry"/>: true when a request or a kick forbids the entry.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsEntryForbidden([CallerMemberName] string site = "") =>
        HasRequests(site) || Volatile.Read(ref _words.Mode) != (ulong)TargetMode.Inside;

    /// <summary>
    /// Target: the guest was left (or not entered after all), interrupts are on again. Acknowledges every ticket handed out before. Two events.
    /// </summary>
    public void EndGuest(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
        {
            HookedEndGuest(actor, site);
            return;
        }

        Interlocked.Exchange(ref _words.Mode, (ulong)TargetMode.Outside);
        AcknowledgeTickets();
    }

    /// <summary>Target: true when request bits are pending.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool HasRequests([CallerMemberName] string site = "") => (Explore.On ? HookedRequests(site) : Volatile.Read(ref _words.Requests)) != 0;

    /// <summary>Target: takes request <paramref name="bit"/> if it is pending.</summary>
    public bool TakeRequest(Actor actor, int bit, [CallerMemberName] string site = "")
    {
        if (((Explore.On ? HookedRequests(site) : Volatile.Read(ref _words.Requests)) & (1UL << bit)) == 0)
            return false;
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, _id, site, actor) : default;
        ulong before = Interlocked.And(ref _words.Requests, ~(1UL << bit));
        if (Explore.On)
            Hook.Happened(pending, true, before, before & ~(1UL << bit));
        return (before & (1UL << bit)) != 0;
    }

    /// <summary>Pending request bits without an event.</summary>
    public ulong PeekRequests() => Volatile.Read(ref _words.Requests);

    /// <summary>Tickets handed out and the highest one acknowledged, without an event. While the target is outside the guest the difference means nothing.</summary>
    public (ulong Given, ulong Acknowledged) PeekTickets() => (Volatile.Read(ref _words.Tickets), Volatile.Read(ref _words.Acknowledged));

    /// <summary>Requester: sets request <paramref name="bit"/> (0..63). Full fence.</summary>
    public void Post(Actor? actor, int bit, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, _id, site, actor) : default;
        ulong before = Interlocked.Or(ref _words.Requests, 1UL << bit);
        if (Explore.On)
            Hook.Happened(pending, (before & (1UL << bit)) == 0, before, before | (1UL << bit));
    }

    /// <summary>
    /// Requester: tells the target to leave the guest if it is inside. Returns the ticket to wait for, or 0 when there is nothing to wait for
    /// (the target is outside; with <paramref name="wait"/>, also a target that is already leaving or reading tables is waited for).
    /// Linearizes at the compare-exchange of the mode.
    /// </summary>
    public ulong Send(Actor? actor, bool wait, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, _id, site, actor) : default;
        ulong ticket = Interlocked.Increment(ref _words.Tickets);
        ulong mode = Interlocked.CompareExchange(ref _words.Mode, (ulong)TargetMode.Exiting, (ulong)TargetMode.Inside);
        if (Explore.On)
            Hook.Happened(pending, mode == (ulong)TargetMode.Inside, mode, mode == (ulong)TargetMode.Inside ? (ulong)TargetMode.Exiting : mode);
        return wait ? mode != (ulong)TargetMode.Outside ? ticket : 0 : 0;
    }

    /// <summary>Requester: waits until the target has acknowledged <paramref name="ticket"/>.</summary>
    public void AwaitAck(Actor? actor, ulong ticket, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On
            ? Hook.AnnounceAwait(EventKind.Await, _id, site, actor, () => Volatile.Read(ref _words.Acknowledged) >= ticket)
            : default;
        var wait = default(SpinWait);
        while (Volatile.Read(ref _words.Acknowledged) < ticket)
            wait.SpinOnce(sleep1Threshold: -1);
        if (Explore.On)
            Hook.Happened(pending, false, ticket, ticket);
    }

    private void AcknowledgeTickets()
    {
        // Only the target writes Acknowledged; the ticket it reads is at least every ticket whose requester saw it inside.
        ulong tickets = Volatile.Read(ref _words.Tickets);
        if (_words.Acknowledged != tickets)
            Volatile.Write(ref _words.Acknowledged, tickets);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool HookedShouldExit()
    {
        PendingEvent pending = Hook.Announce(EventKind.Read, _id, nameof(ShouldExit));
        ulong mode = Volatile.Read(ref _words.Mode);
        Hook.Happened(pending, false, mode, mode);
        return mode != (ulong)TargetMode.Inside;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong HookedRequests(string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Read, _id, site);
        ulong requests = Volatile.Read(ref _words.Requests);
        Hook.Happened(pending, false, requests, requests);
        return requests;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedEndGuest(Actor actor, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, _id, site, actor);
        ulong before = Interlocked.Exchange(ref _words.Mode, (ulong)TargetMode.Outside);
        Hook.Happened(pending, before != 0, before, 0);
        pending = Hook.Announce(EventKind.Update, _id, site, actor);
        ulong acknowledged = _words.Acknowledged;
        AcknowledgeTickets();
        Hook.Happened(pending, acknowledged != _words.Acknowledged, acknowledged, _words.Acknowledged);
    }

    // Requesters write Tickets and Requests, the target writes Acknowledged and Mode: two lines, neither shared with anything else.
    [StructLayout(LayoutKind.Explicit, Size = 512)]
    private struct Words
    {
        [FieldOffset(128)]
        public ulong Mode;

        [FieldOffset(136)]
        public ulong Acknowledged;

        [FieldOffset(256)]
        public ulong Requests;

        [FieldOffset(264)]
        public ulong Tickets;
    }
}
