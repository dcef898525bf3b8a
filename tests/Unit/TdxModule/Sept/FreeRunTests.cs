using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// Two host processors and one vCPU at once, without any agreement about who uses which address or page: whatever wins, every answer is one that the tables
/// know, and at the end the books are counted again from the beginning.
/// </summary>
public sealed class FreeRunTests
{
    private const ulong Region = 0x4000_0000;
    private const int Episodes = 40_000;
    private const int Limit = 3_000_000;

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [Trait("spec", "TM01")]
    [Trait("spec", "TM02")]
    [Trait("spec", "TM03")]
    [Trait("spec", "TM05")]
    [Trait("spec", "TM06")]
    [Trait("spec", "TM10")]
    public void Two_hosts_and_a_guest_that_fight_over_pages_leave_exact_books_and_get_only_answers_of_the_table(int seed)
    {
        using ModuleRig rig = new(options: new TdxModuleOptions { TdmrInitPages = 262144 }, machine: SeptMachine.Describe(), bringUp: false);
        rig.BringUp(tdmrs: 1);
        rig.BuildTd(vcpus: 1);
        rig.AddTables(Region);
        for (ulong i = 1; i < 4; i++)
            rig.Call(TdhLeaf.MEM_SEPT_ADD, (Region + (i << 21)) | 1, rig.Tdr.Value, rig.Page().Value);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        ulong[] large = [rig.LargePage().Value, rig.LargePage().Value];
        ulong[] small = new ulong[12];
        for (int i = 0; i < small.Length; i++)
            small[i] = rig.Page().Value;

        SharedCell<int> running = new("hosts", 0, 2);
        SharedCell<bool> accepted = new("accepted", 0);
        List<Actor> actors = [];
        List<Host> hosts = [];
        for (int p = 1; p <= 2; p++)
        {
            Host host = new(rig, p, new SeedStream((ulong)seed, "program", (ulong)p), large, small);
            hosts.Add(host);
            Actor actor = rig.Machine.Actors.Create($"host{p}");
            actors.Add(actor);
            actor.Start(_ =>
            {
                for (int i = 0; i < Episodes || ((!host.HasDoneEverything || !accepted.Read()) && i < Limit); i++)
                    host.Episode();
                host.Finish(running);
            });
        }

        Guest guest = new(rig, new SeedStream((ulong)seed, "program", 9), accepted);
        Actor vcpu = rig.Machine.Actors.Create("vcpu");
        actors.Add(vcpu);
        vcpu.Start(_ =>
        {
            while (running.Read() != 0)
                guest.Stay();
        });
        foreach (Actor actor in actors)
            actor.Join();

        FindingLog findings = new();
        ModuleInvariants.Check(rig.Module, findings, new HpaRange(SeptMachine.Small, 1UL << 30));
        Assert.Empty(findings.All);
        Assert.Empty(rig.Machine.Findings.All);
        CheckAnswers(rig);
        Assert.All(hosts, host => Assert.True(host.HasDoneEverything));
        Assert.True(accepted.Read());
    }

    // Under contention nothing new may be answered.
    private static void CheckAnswers(ModuleRig rig)
    {
        HashSet<string> known = [.. TestData.Lines("sept-statuses.csv")];
        foreach (LeafCount count in rig.Module.Counts())
        {
            string answer = Statuses.Name(count.Status);
            if (known.Any(line => line.StartsWith($"{count.Leaf},", StringComparison.Ordinal)))
                Assert.True(answer == "SUCCESS" || known.Contains($"{count.Leaf},{answer}"), $"{count.Leaf}: {answer}");
        }
    }

    /// <summary>A host thread: short sequences on addresses and pages that the other host uses as well.</summary>
    private sealed class Host(ModuleRig rig, int lp, SeedStream random, ulong[] large, ulong[] small)
    {
        private static readonly TdhLeaf[] s_leaves =
            [
                TdhLeaf.MEM_PAGE_AUG, TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_RANGE_UNBLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_REMOVE, TdhLeaf.MEM_SEPT_REMOVE,
                TdhLeaf.MEM_PAGE_PROMOTE, TdhLeaf.MEM_PAGE_DEMOTE, TdhLeaf.MEM_PAGE_RELOCATE, TdhLeaf.MEM_SEPT_RD,
            ];

        private readonly LogicalProcessor _lp = rig.Lp(lp);
        private readonly HashSet<TdhLeaf> _done = [];

        /// <summary>Every leaf has succeeded for this host: which of them do in a short run is chance.</summary>
        public bool HasDoneEverything => _done.Count == s_leaves.Length;

        public void Episode()
        {
            ulong table = Region + (random.Below(4) << 21);
            ulong at = table + ((random.Below(8) * 64) << 12);
            ulong page = small[random.Below((ulong)small.Length)];
            if (random.Below(100) == 0)
            {
                Sweep(table);
                return;
            }

            switch (random.Below(12))
            {
                case 0 or 1 or 2:
                    Call(TdhLeaf.MEM_PAGE_AUG, at, page);
                    break;
                case 3:
                    // A page inside a range that may be a large one at the same time.
                    Call(TdhLeaf.MEM_PAGE_AUG, at, large[random.Below(2)] + ((random.Below(8) * 64) << 12));
                    break;
                case 4 or 5:
                    Retire(at);
                    Call(TdhLeaf.MEM_PAGE_REMOVE, at);
                    break;
                case 6:
                    Retire(at);
                    Call(TdhLeaf.MEM_PAGE_RELOCATE, at, page);
                    break;
                case 7:
                    Retire(at);
                    Call(TdhLeaf.MEM_RANGE_UNBLOCK, at);
                    break;
                case 8:
                    Call(TdhLeaf.MEM_SEPT_RD, random.Below(2) == 0 ? at : table | 1);
                    break;
                default:
                    LargePage(table | 1, large[random.Below(2)]);
                    break;
            }
        }

        public void Finish(SharedCell<int> running)
        {
            int seen = running.Read();
            while (true)
            {
                int found = running.CompareExchange(seen, seen - 1);
                if (found == seen)
                    return;
                seen = found;
            }
        }

        private void LargePage(ulong operand, ulong page)
        {
            ulong spare = small[random.Below((ulong)small.Length)];
            if (random.Below(2) == 0)
            {
                Retire(operand);
                Call(TdhLeaf.MEM_SEPT_REMOVE, operand);
                Call(TdhLeaf.MEM_PAGE_AUG, operand, page);
            }

            Retire(operand);
            switch (random.Below(4))
            {
                case 0:
                    Call(TdhLeaf.MEM_PAGE_REMOVE, operand);
                    Call(TdhLeaf.MEM_SEPT_ADD, operand, spare);
                    break;
                case 1:
                    Call(TdhLeaf.MEM_PAGE_DEMOTE, operand, spare);
                    break;
                case 2:
                    Call(TdhLeaf.MEM_PAGE_DEMOTE, operand, spare);
                    Call(TdhLeaf.MEM_RANGE_BLOCK, operand);
                    for (int i = 0; i < 8 && Call(TdhLeaf.MEM_PAGE_PROMOTE, operand) is { IsError: true } status && (status.IsBusy || status.Class == TdxStatus.TLB_TRACKING_NOT_DONE); i++)
                        Call(TdhLeaf.MEM_TRACK, operand);
                    break;
                default:
                    Call(TdhLeaf.MEM_RANGE_UNBLOCK, operand);
                    break;
            }
        }

        // Empties a table: after a split its 512 entries would keep it for ever.
        private void Sweep(ulong table)
        {
            for (ulong i = 0; i < 512; i++)
                Call(TdhLeaf.MEM_RANGE_BLOCK, table + (i << 12));
            for (int i = 0; i < 8; i++)
                Call(TdhLeaf.MEM_TRACK, table);
            for (ulong i = 0; i < 512; i++)
                Call(TdhLeaf.MEM_PAGE_REMOVE, table + (i << 12));
        }

        // BLOCK, then as many TRACKs as the guest needs to leave between them; the other host may undo any of it.
        private void Retire(ulong operand)
        {
            if (!Call(TdhLeaf.MEM_RANGE_BLOCK, operand).IsError)
            {
                for (int i = 0; i < 3; i++)
                    Call(TdhLeaf.MEM_TRACK, operand);
            }
        }

        private TdxStatus Call(TdhLeaf leaf, ulong operand, ulong page = 0)
        {
            SeamRegisters registers = leaf == TdhLeaf.MEM_TRACK ? SeamRegisters.Call(leaf, rig.Tdr.Value) : SeamRegisters.Call(leaf, operand, rig.Tdr.Value, page);
            rig.Module.Seamcall(_lp, ref registers);
            if (registers.Status.IsSuccess)
                _done.Add(leaf);
            return registers.Status;
        }
    }

    /// <summary>A vCPU that accepts and touches what the hosts give and take, and leaves often.</summary>
    private sealed class Guest(ModuleRig rig, SeedStream random, SharedCell<bool> accepted)
    {
        public void Stay()
        {
            LogicalProcessor lp = rig.Lp(0);
            SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value };
            if (!rig.Module.BeginEnter(lp, ref registers))
                return;
            Vmcs vmcs = rig.Module.CurrentVmcs(lp)!;
            ulong last = Region + (random.Below(4) << 21);
            for (ulong i = random.Below(64) == 0 ? 512 : random.Below(8); ; i--)
            {
                vmcs.Exit = i == 0 ? new VmExit { Reason = ExitReason.ExternalInterrupt }
                    : i >= 8 ? Accept(vmcs, last + ((i - 1) << 12))
                    : Step(lp, vmcs);

                // Any exit that the module serves moves on: there is no zero-stepping in this guest.
                vmcs.State.Rip += 4;
                bool isCall = vmcs.Exit.Reason == ExitReason.Tdcall;
                if (vmcs.Exit.Reason != 0 && !rig.Module.HandleExit(lp, ref registers))
                    return;
                if (isCall && vmcs.State[Gpr.Rax] == 0)
                    accepted.Write(true);
                vmcs.EntryEvent = default;
            }
        }

        private VmExit Step(LogicalProcessor lp, Vmcs vmcs)
        {
            ulong table = Region + (random.Below(4) << 21);
            ulong gpa = table + ((random.Below(8) * 64) << 12);
            if (random.Below(3) == 0)
                return GuestPhysical.TryTranslate(rig.Machine, lp, vmcs, gpa, AccessKind.Write, out _) ? default : vmcs.Exit;
            return Accept(vmcs, random.Below(4) == 0 ? table | 1 : gpa);
        }

        private static VmExit Accept(Vmcs vmcs, ulong operand)
        {
            vmcs.VeInfo!.IsValid = false;
            vmcs.State[Gpr.Rax] = (ulong)TdgLeaf.MEM_PAGE_ACCEPT;
            vmcs.State[Gpr.Rcx] = operand;
            return new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 };
        }
    }
}
