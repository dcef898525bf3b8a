using System.Text;
using Tdp.Host;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>The user-space VMM: several vCPUs, policies, ends of a run, and races between all of them.</summary>
public sealed class VmmTests
{
    private const ulong Shared = 1UL << 47;
    private const ulong Memory = 4 << 20;

    [Fact]
    [Trait("spec", "td-guest 4.5")]
    public void A_touch_of_the_other_alias_converts_the_page_or_ends_the_run_as_the_policy_says()
    {
        using HostWorld world = World(1);
        GuestStep[] steps = [GuestStep.Write(Shared | 0x5000, 0x77), GuestStep.Read(Shared | 0x5000)];
        RunReport converted = Run(world, steps, MemoryFaultPolicy.Convert, out ScriptedGuest guest);
        Assert.Equal(RunOutcome.ScriptEnd, converted.Outcome);
        Assert.Equal([0x77UL], guest.Values);
        Assert.Equal((1L, 0L, 1L), converted.Conversions);
        Assert.Equal(1, converted.Faults.MemoryFaultExits);

        RunReport stopped = Run(world, steps, MemoryFaultPolicy.Stop, out _);
        Assert.Equal(RunOutcome.InternalError, stopped.Outcome);
        Assert.Equal("vCPU 0: shared access to GPA 0x5000, which is private", stopped.Message);
        Assert.True(stopped.IsClean);
    }

    [Fact]
    [Trait("spec", "I71")]
    public void Many_runs_on_one_host_leave_it_as_it_was()
    {
        using HostWorld world = World(2);
        for (int i = 0; i < 5; i++)
        {
            RunReport report = Run(world, [GuestStep.Accept(0x1000), GuestStep.Write(0x20_0000, 1)], MemoryFaultPolicy.Convert, out _);
            Assert.True(report.IsClean);
            Assert.Equal((2L, 2L, 2L), (report.PagesAugmented, report.PagesAccepted, report.PagesRemoved));
            Assert.Equal(0, world.Machine.Frames.Live);
        }
    }

    [Fact]
    [Trait("spec", "I19")]
    [Trait("spec", "I49")]
    [Trait("spec", "I57")]
    public void Faults_conversions_punches_notifiers_and_fast_zaps_race_and_the_books_balance()
    {
        const int Vcpus = 2;
        const ulong Pages = Memory >> 12;
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(Vcpus + 1, Memory), TlbMode = TlbMode.Adversarial });
        Vmm vmm = new(world, new VmmOptions { Vcpus = Vcpus, MemoryBytes = Memory, HugePages = true, Engine = (machine, i) => new ScriptedGuest(machine, Chaos(i)) });
        vmm.Build();
        Vm vm = vmm.Vm;
        Actor host = world.Machine.Actors.Create("chaos");
        bool stop = false;
        host.Start(a =>
        {
            world.Kernel.Processors.Bind(a, Vcpus);
            SeedStream random = new(5, "schedule");
            while (!System.Threading.Volatile.Read(ref stop))
            {
                ulong page = random.Below(Pages);
                ulong count = Math.Min(1 + random.Below(32), Pages - page);
                switch (random.Below(6))
                {
                    case 0:
                        vmm.Convert(a, page << 12, count << 12, toPrivate: random.Chance(0.5));
                        break;
                    case 1:
                        vm.Memory.SetAttributes(a, page << 12, count << 12, random.Chance(0.5) ? 8UL : 0);
                        break;
                    case 2:
                        vmm.Memfd!.PunchHole(a, page, count);
                        break;
                    case 3:
                        vm.UserMemory.Discard(a, vmm.MemoryHva + (page << 12), count);
                        break;
                    case 4:
                        vm.UserMemory.Migrate(a, vmm.MemoryHva + (page << 12), count);
                        break;
                    default:
                        vm.Memory.ZapAllFast(a);
                        break;
                }
            }

            world.Kernel.Frames.Drain(a);
            world.Kernel.Processors.Unbind(a);
        });
        vmm.Run();
        System.Threading.Volatile.Write(ref stop, true);
        host.Join();
        RunReport report = vmm.TearDown();
        Assert.True(report.Outcome == RunOutcome.ScriptEnd, $"{report.Outcome}: {report.Message}");
        Assert.Empty(report.Findings);
        Assert.Empty(report.Leaks);
        Assert.Empty(report.Frames.Disagreements);
        Assert.Equal(report.PagesAugmented, report.PagesRemoved);
    }

    [Fact]
    [Trait("spec", "td-guest 8.3")]
    public void Console_bytes_arrive_in_order_and_the_exit_port_ends_the_run()
    {
        using HostWorld world = World(1);
        StringBuilder seen = new();
        Vmcall[] calls = new Vmcall[6];
        for (int i = 0; i < 5; i++)
            calls[i] = new Vmcall(0, 30, 1, 1, 0xE9, (ulong)"hello"[i]);
        calls[5] = new Vmcall(0, 30, 4, 1, 0xF4, 0x1234_5678);
        Vmm vmm = new(world, new VmmOptions { Vcpus = 1, MemoryBytes = Memory, Engine = (_, _) => new VmcallGuest(calls), Console = b => seen.Append((char)b) });
        vmm.Build();
        vmm.Run();
        RunReport report = vmm.TearDown();
        Assert.Equal((RunOutcome.Exited, 0x1234_5678u), (report.Outcome, report.ExitCode));
        Assert.Equal("hello", seen.ToString());
        Assert.Equal("hello", vmm.Devices.OutputText);
    }

    [Fact]
    [Trait("spec", "td-guest 7.9")]
    public void When_every_vcpu_halts_the_run_ends_and_says_so()
    {
        using HostWorld world = World(2);
        Vmm vmm = new(world, new VmmOptions { Vcpus = 2, MemoryBytes = Memory, Engine = (_, _) => new VmcallGuest(new Vmcall(0, 12)) });
        vmm.Build();
        vmm.Run();
        RunReport report = vmm.TearDown();
        Assert.Equal(RunOutcome.AllHalted, report.Outcome);
        Assert.True(report.IsClean);
    }

    [Fact]
    [Trait("spec", "D31")]
    public void The_scripted_fault_reports_ok()
    {
        Assert.StartsWith("ok: outcome ScriptEnd, read 0x5eed000000000001", ScriptedFault.Run(), StringComparison.Ordinal);
    }

    private static GuestStep[] Chaos(int vcpu)
    {
        SeedStream random = new(11, "program", (ulong)vcpu);
        GuestStep[] steps = new GuestStep[6000];
        for (int i = 0; i < steps.Length; i++)
        {
            ulong page = random.Below(Memory >> 12) << 12;
            steps[i] = random.Below(8) switch
            {
                < 4 => GuestStep.Write(page, (ulong)i),
                4 => GuestStep.Read(page),
                5 => GuestStep.Accept(page),
                6 => GuestStep.Write(page | Shared, (ulong)i),
                _ => GuestStep.Read(page | Shared),
            };
        }

        return steps;
    }

    private static HostWorld World(int vcpus) => HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(vcpus, 16 << 20) });

    private static RunReport Run(HostWorld world, GuestStep[] steps, MemoryFaultPolicy policy, out ScriptedGuest guest)
    {
        ScriptedGuest? made = null;
        Vmm vmm = new(world, new VmmOptions
        {
            Vcpus = 1,
            MemoryBytes = Memory,
            MemoryFaults = policy,
            Engine = (machine, _) => made = new ScriptedGuest(machine, steps),
        });
        vmm.Build();
        vmm.Run();
        guest = made!;
        return vmm.TearDown();
    }
}
