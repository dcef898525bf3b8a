using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Recorded.MasterTable;

/// <summary>Which trees an operation may change.</summary>
[Flags]
public enum Trees
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>The valid direct root of address space 0.</summary>
    Direct = 1,

    /// <summary>A direct root that was invalidated and still has a user.</summary>
    DirectInvalid = 2,

    /// <summary>The direct root of address space 1.</summary>
    DirectSmm = 4,

    /// <summary>The mirror root.</summary>
    Mirror = 8,
}

/// <summary>How mmu_lock is held.</summary>
public enum LockMode
{
    /// <summary>Not at all.</summary>
    None,

    /// <summary>For read.</summary>
    Read,

    /// <summary>For write.</summary>
    Write,
}

/// <summary>Where the flush of an operation's changes comes.</summary>
public enum FlushRule
{
    /// <summary>There is none.</summary>
    None,

    /// <summary>Before mmu_lock is dropped.</summary>
    BeforeUnlock,

    /// <summary>Before the RCU section of the last change is left.</summary>
    BeforeRcuExit,

    /// <summary>After mmu_lock was dropped.</summary>
    AfterUnlock,
}

/// <summary>One step of an operation that the table speaks of.</summary>
/// <param name="Kind">write, role, flush, request, yield.</param>
/// <param name="Tree">For a write or a role: which tree.</param>
/// <param name="Level">For a write: level of the entry.</param>
/// <param name="Lock">How mmu_lock was held.</param>
/// <param name="IsInRcu">Inside an RCU section of the tables.</param>
public sealed record TraceStep(string Kind, Trees Tree, int Level, LockMode Lock, bool IsInRcu);

/// <summary>
/// What one operation of a VM did, taken from the events of the primitives: which entries it changed in which tree, how it held mmu_lock and RCU then, when it flushed and when it gave way.
/// </summary>
internal sealed class OperationTrace : IObserver
{
    private const ulong FreeObsoleteRoots = 1UL << 39;
    private readonly Vm _vm;
    private readonly Actor _actor;
    private readonly Dictionary<ulong, (Trees Tree, int Level)> _tables = [];
    private readonly Dictionary<ulong, Trees> _roots = [];
    private readonly Dictionary<ulong, Trees> _roles = [];
    private readonly List<(SyncEvent Event, LockMode Lock, bool IsInRcu, bool IsFlush)> _events = [];
    private long _flushes;

    private OperationTrace(Vm vm, Actor actor)
    {
        _vm = vm;
        _actor = actor;
        _flushes = Flushes();
    }

    public List<TraceStep> Steps { get; } = [];

    public Trees Changed => Of("write").Aggregate(Trees.None, (all, step) => all | step.Tree);

    public IEnumerable<TraceStep> Of(string kind) => Steps.Where(s => s.Kind == kind);

    /// <summary>Performs an operation under observation.</summary>
    public static OperationTrace Record(Vm vm, Actor actor, Action operation)
    {
        var trace = new OperationTrace(vm, actor);
        trace.Learn();
        Hook.Install(null, trace);
        operation();
        Hook.Install(null, null);
        trace.Learn();
        trace.Read();
        return trace;
    }

    /// <summary>The steps from the first one of a kind on.</summary>
    public OperationTrace From(string kind, Trees tree)
    {
        int first = Steps.FindIndex(s => s.Kind == kind && s.Tree == tree);
        Steps.RemoveRange(0, first);
        return this;
    }

    /// <summary>The steps up to the last one of a kind.</summary>
    public OperationTrace Until(string kind)
    {
        int last = Steps.FindLastIndex(s => s.Kind == kind);
        Steps.RemoveRange(last + 1, Steps.Count - last - 1);
        return this;
    }

    /// <summary>Where the flush comes that the last change of an entry is followed by.</summary>
    public FlushRule FlushOfLastChange()
    {
        int last = Steps.FindLastIndex(s => s.Kind == "write");
        int flush = Steps.FindIndex(Math.Max(last, 0), s => s.Kind == "flush");
        if (flush < 0)
            return FlushRule.None;
        TraceStep step = Steps[flush];
        return step.Lock == LockMode.None ? FlushRule.AfterUnlock : step.IsInRcu ? FlushRule.BeforeRcuExit : FlushRule.BeforeUnlock;
    }

    /// <summary>Times the operation gave way with changes in valid roots that were not flushed; nobody runs on an invalid one.</summary>
    public int UnflushedYields()
    {
        int count = 0;
        bool owes = false;
        foreach (TraceStep step in Steps)
        {
            owes = step.Kind switch { "write" => owes || step.Tree != Trees.DirectInvalid, "flush" => false, _ => owes };
            count += step.Kind == "yield" && owes ? 1 : 0;
        }

        return count;
    }

    void IObserver.Occurred(in SyncEvent happened)
    {
        bool isFlush = false;
        if (happened.Object.Kind == ObjectKind.Kick && Flushes() != _flushes)
        {
            _flushes = Flushes();
            isFlush = true;
        }

        TdpMmu mmu = _vm.Mmu;
        LockMode mode = mmu.MmuLock.IsWriteHeld(_actor) ? LockMode.Write : mmu.MmuLock.IsReadHeld(_actor) ? LockMode.Read : LockMode.None;
        _events.Add((happened, mode, mmu.Rcu.IsReading(_actor), isFlush));
    }

    private long Flushes() => _vm.Mmu.Statistics[MmuCounter.FlushAll] + _vm.Mmu.Statistics[MmuCounter.FlushRange];

    // Tables come and go during an operation: what was there before or is there afterwards is known by name. A root keeps the name it had first.
    private void Learn()
    {
        foreach (Root root in _vm.Mmu.Roots)
        {
            ulong name = NameOf(root.Table.Frame);
            if (!_roots.TryGetValue(name, out Trees tree))
            {
                tree = root.IsMirror ? Trees.Mirror : root.IsInvalid ? Trees.DirectInvalid : root.AddressSpace == 1 ? Trees.DirectSmm : Trees.Direct;
                _roots[name] = tree;
                _tables[name] = (tree, root.Level.Value);
                _roles[((ulong)_vm.Number << 32) | (uint)root.Number] = tree;
            }

            _vm.Mmu.ForEachSpte(root, visit =>
            {
                if (visit.Kind == SpteKind.Table)
                    _tables[NameOf(visit.Spte.Address)] = (tree, visit.Level.Value - 1);
            });
        }
    }

    // Recovery takes the lock and gives it up in one and the same method; walks give it up in one of their own.
    private static bool IsTakenAgain(string site, ref int recoveries) => site == "Yield" || (site == "RecoverNxPages" && recoveries++ > 0);

    private ulong NameOf(Hpa frame) => _vm.Kernel.Machine.Memory.Record(frame.Frame).Name;

    private void Read()
    {
        int recoveries = 0;
        foreach ((SyncEvent e, LockMode mode, bool inRcu, bool isFlush) in _events)
        {
            if (isFlush)
                Steps.Add(new TraceStep("flush", Trees.None, 0, mode, inRcu));
            if (e.Object.Kind == ObjectKind.Entry && e.Changed && (e.Kind is EventKind.Write or EventKind.Update) && _tables.TryGetValue(e.Object.Owner, out (Trees Tree, int Level) table))
                Steps.Add(new TraceStep("write", table.Tree, table.Level, mode, inRcu));
            else if (e.Object.Kind == ObjectKind.Cell && e.Object.Name == "root_role" && e.Kind == EventKind.Write)
                Steps.Add(new TraceStep("role", _roles.GetValueOrDefault(e.Object.Owner), 0, mode, inRcu));
            else if (e.Object.Kind == ObjectKind.Kick && (e.After & ~e.Before & FreeObsoleteRoots) != 0)
                Steps.Add(new TraceStep("request", Trees.None, 0, mode, inRcu));
            else if (e.Kind is EventKind.LockShared or EventKind.LockExclusive && e.Object.Name == "mmu_lock" && IsTakenAgain(e.Site, ref recoveries))
                Steps.Add(new TraceStep("yield", Trees.None, 0, mode, inRcu));
        }
    }
}
