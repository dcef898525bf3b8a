using System.Text;

namespace Tdp.Harness.Invariants;

/// <summary>
/// Says what holds a run up (I74 to I76): compares two looks at a VM of which nobody has finished anything meanwhile. The looks are taken from outside, without a lock, while the threads run or hang.
/// </summary>
/// <remarks>How long nothing must have been finished before a run counts as stuck is the caller's to say; here only the cause is looked for.</remarks>
public sealed class LivenessWatch
{
    private readonly CheckedVm _vm;
    private Look[] _before = [];

    /// <summary>Makes the watch of a VM and takes the first look.</summary>
    public LivenessWatch(CheckedVm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        _vm = vm;
        Remember();
    }

    // Of one vCPU.
    private readonly record struct Look(ulong Section, ulong Given, ulong Acknowledged, bool IsTold, long Retries, long Ended);

    /// <summary>Progress is made: the next comparison starts here.</summary>
    public void Remember() => _before = Take();

    /// <summary>Compares now with the look remembered, and judges.</summary>
    /// <param name="isStuck">Nothing was finished for longer than anything may take.</param>
    /// <returns>What was judged.</returns>
    public StallView Judge(bool isStuck)
    {
        Look[] now = Take();
        int retrying = -1;
        int holder = -1;
        int unanswered = -1;
        StringBuilder waiting = new();
        bool srcuWaiter = _vm.Vm is { Srcu.Waiters: > 0 };
        for (int id = 0; id < Math.Min(now.Length, _before.Length); id++)
        {
            Look then = _before[id];
            Look current = now[id];
            bool isRetrying = current.Retries > then.Retries && current.Ended == then.Ended;
            retrying = isRetrying && retrying < 0 ? id : retrying;
            bool sameSection = then.Section != 0 && current.Section == then.Section;
            holder = srcuWaiter && sameSection && holder < 0 ? id : holder;

            // Told to leave before the first look, and not outside once since.
            bool isDeaf = then.IsTold && current.IsTold && current.Acknowledged == then.Acknowledged;
            unanswered = isDeaf && unanswered < 0 ? id : unanswered;
            waiting.Append(waiting.Length == 0 ? string.Empty : ", ").Append("vCPU ").Append(id).Append(isDeaf ? " (in the guest)" : isRetrying ? " (retrying)" : sameSection ? " (outside)" : string.Empty);
        }

        StallView view = new(_vm, isStuck, waiting.ToString(), retrying, srcuWaiter, holder, unanswered);
        _vm.Verdicts.Judge(null, LifeCycle.I76, view);
        _vm.Verdicts.Judge(null, LifeCycle.I75, view);
        _vm.Verdicts.Judge(null, LifeCycle.I74, view);
        return view;
    }

    private Look[] Take()
    {
        if (_vm.Vm is not { } vm)
        {
            return [];
        }

        Look[] looks = new Look[vm.Vcpus.Length];
        for (int id = 0; id < looks.Length; id++)
        {
            Vcpu vcpu = vm.VcpuOf(id);
            Actor actor = vcpu.Mmu.Actor;
            MmuStatistics statistics = _vm.Mmu.Statistics;
            (ulong given, ulong acknowledged) = vcpu.Kick.PeekTickets();
            bool isTold = vcpu.Kick.Mode is TargetMode.Exiting && given > acknowledged;
            long ended = statistics.Of(actor, MmuCounter.PfFixed) + statistics.Of(actor, MmuCounter.PfSpurious) + statistics.Of(actor, MmuCounter.PfEmulate) + statistics.Of(actor, MmuCounter.PfOther);
            looks[id] = new Look(vm.Srcu.SectionOf(actor), given, acknowledged, isTold, statistics.Of(actor, MmuCounter.PfRetry), ended);
        }

        return looks;
    }
}
