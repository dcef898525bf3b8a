using Tdp.Host;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>Bring-up of the module as the host's documents tell it (tdp-mmu 9.1, 9.2).</summary>
public sealed class BringUpTests
{
    [Fact]
    [Trait("spec", "B10")]
    public void The_log_says_what_the_documents_say()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        Assert.Equal(
            ["virt/tdx: BIOS enabled: private KeyID range: [16, 64)", "virt/tdx: 8216 KBs allocated for PAMT", "virt/tdx: module initialized"],
            world.Kernel.Log.Lines.Select(l => l[(l.IndexOf(']', StringComparison.Ordinal) + 2)..]));
    }

    [Fact]
    [Trait("spec", "B10")]
    public void Profile_Tdx15_says_what_the_code_says()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20), Profile = BehaviourProfile.Tdx15 });
        Assert.Equal(
            ["virt/tdx: BIOS enabled: private KeyID range [16, 64)", "virt/tdx: 8216 KB allocated for PAMT", "virt/tdx: TDX-Module initialized"],
            world.Kernel.Log.Lines.Select(l => l[(l.IndexOf(']', StringComparison.Ordinal) + 2)..]));
    }

    [Fact]
    [Trait("spec", "tdp-mmu 9.2")]
    public void The_calls_come_in_their_order_and_every_tdmr_is_initialized_to_its_end()
    {
        using Machine machine = new(MachineDescription.Default(3, 16 << 20));
        TdxModule module = new(machine, BehaviourProfile.Documented);
        CallList calls = new();
        module.Observer = calls;
        HostKernel kernel = new(machine, module);
        Actor actor = machine.Actors.Create("host");
        kernel.Processors.Bind(actor);
        Assert.Equal(Errno.None, kernel.BringUp(actor));

        List<string> order = [];
        foreach (TdhLeaf leaf in calls.Leaves)
        {
            if (order.Count == 0 || order[^1] != leaf.FullName())
                order.Add(leaf.FullName());
        }

        Assert.Equal(
            ["TDH.SYS.INIT", "TDH.SYS.LP.INIT", "TDH.SYS.RD", "TDH.SYS.CONFIG", "TDH.SYS.KEY.CONFIG", "TDH.SYS.TDMR.INIT"],
            order);
        Assert.Equal(1, calls.Leaves.Count(l => l == TdhLeaf.SYS_INIT));
        Assert.Equal(4, calls.Leaves.Count(l => l == TdhLeaf.SYS_LP_INIT));
        Assert.Equal(2, calls.Leaves.Count(l => l == TdhLeaf.SYS_KEY_CONFIG));

        // 4 MiB of TDMR for each call, two TDMRs of 1 GiB.
        Assert.Equal(512, calls.Leaves.Count(l => l == TdhLeaf.SYS_TDMR_INIT));

        // The structures of SYS.CONFIG went back: only PAMT is the kernel's.
        Assert.Empty(kernel.Audit(isAfterTeardown: true).Disagreements);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 9.2")]
    public void Enabling_twice_does_the_work_once()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        CallList calls = new();
        world.Module!.Observer = calls;
        Assert.Equal(Errno.None, world.Kernel.BringUp(world.Actor));
        Assert.Empty(calls.Leaves);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 9.5")]
    public void Without_a_module_the_log_says_so_and_only_ordinary_vms_exist()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20), HasModule = false });
        Assert.Equal(Errno.ENODEV, world.Kernel.BringUp(world.Actor));
        Assert.Contains(world.Kernel.Log.Lines, l => l.EndsWith("virt/tdx: module not loaded", StringComparison.Ordinal));
        Assert.Equal(Errno.EOPNOTSUPP, Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Td }, out _));
        Assert.Equal(Errno.None, Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Default }, out Vm? vm));
        vm!.Destroy(world.Actor);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 9.5")]
    [Trait("spec", "I72")]
    public void A_processor_outside_vmx_operation_is_refused_with_EACCES_instead_of_a_crash()
    {
        using Machine machine = new(MachineDescription.Default(1, 16 << 20));
        HostKernel kernel = new(machine, new TdxModule(machine, BehaviourProfile.Documented));
        Actor actor = machine.Actors.Create("host");
        kernel.Processors.Bind(actor);
        Assert.Equal(Errno.EACCES, kernel.CpuEnable(actor, machine.Processors[0]));
    }

    [Theory]
    [InlineData(TdhLeaf.SYS_CONFIG)]
    [InlineData(TdhLeaf.SYS_KEY_CONFIG)]
    [InlineData(TdhLeaf.SYS_TDMR_INIT)]
    [InlineData(TdhLeaf.SYS_RD)]
    [Trait("spec", "tdp-mmu 9.2")]
    public void A_failing_step_is_final_and_leaks_nothing(TdhLeaf failing)
    {
        using Machine machine = new(MachineDescription.Default(1, 16 << 20));
        TdxModule module = new(machine, BehaviourProfile.Documented) { BusyInjector = new Failing(failing) };
        HostKernel kernel = new(machine, module);
        Actor actor = machine.Actors.Create("host");
        kernel.Processors.Bind(actor);
        Assert.Equal(Errno.EIO, kernel.BringUp(actor));
        Assert.Equal(TdxModuleState.Error, kernel.TdxState);
        Assert.EndsWith("virt/tdx: module initialization failed (-5)", kernel.Log.Lines[^1], StringComparison.Ordinal);
        Assert.Contains(kernel.Log.Lines, l => l.Contains($"SEAMCALL ({failing.FullName()}) failed: TDX_OPERAND_INVALID | OPERAND_ID_RAX", StringComparison.Ordinal));
        module.BusyInjector = null;
        Assert.Equal(Errno.EINVAL, kernel.BringUp(actor));
        Assert.Empty(kernel.Audit(isAfterTeardown: true).Disagreements);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.1")]
    public void Lack_of_entropy_is_retried_ten_times_and_no_more()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        NoEntropy injector = new();
        world.Module!.BusyInjector = injector;
        Assert.Equal(TdxStatus.RND_NO_ENTROPY, world.Kernel.Port!.Call(world.Kernel.Processors.Of(world.Actor), TdhLeaf.MNG_CREATE));
        Assert.Equal(11, injector.Asked);
    }

    private sealed class CallList : IModuleObserver
    {
        public List<TdhLeaf> Leaves { get; } = [];

        public void Calling(LogicalProcessor lp, in SeamRegisters registers) => Leaves.Add((TdhLeaf)(ushort)registers.Rax);

        public void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
        {
        }

        public void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
        {
        }
    }

    private sealed class Failing(TdhLeaf failing) : IBusyInjector
    {
        public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
        {
            status = TdxStatus.OPERAND_INVALID | OperandId.RAX;
            return leaf == failing;
        }
    }

    private sealed class NoEntropy : IBusyInjector
    {
        public int Asked { get; private set; }

        public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
        {
            Asked++;
            status = TdxStatus.RND_NO_ENTROPY;
            return true;
        }
    }
}
