using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>Rows of guest leaves and of plain guest accesses, which go through the hardware walk.</summary>
internal static class GuestRowCheck
{
    private const ulong Violation = 48;

    public static string Call(in SeptRowRun run, SeptScene scene)
    {
        (SeptRow row, SceneSetup setup, int request, _, _) = run;
        Vmcs vmcs = scene.EnterGuest();
        ulong gpa = scene.Gpa;
        ModuleState expected = scene.Snapshot();
        ulong word = expected.Entries.TryGetValue((scene.Tdr, scene.Gpa, setup.Level), out ulong found) ? found : SeptFormat.Free;
        if (SeptFormat.IsLeaf(row.From))
            scene.Rig.Machine.Memory.Word(scene.Page + 8) = 0x77;
        GuestState state = vmcs.State;
        bool attributes = row.Leaf == "TDG.MEM.PAGE.ATTR.RD";
        state[Gpr.Rax] = row.Leaf switch { "TDG.MEM.PAGE.ACCEPT" => 6, "TDG.MEM.PAGE.ATTR.RD" => 23, _ => 24 };
        state[Gpr.Rcx] = attributes ? gpa + 0x234 : gpa | (uint)request;
        state[Gpr.Rdx] = 0;
        state[Gpr.R8] = 0;
        ulong rip = state.Rip;
        vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 };
        SeamRegisters host = default;
        bool stays = scene.Rig.Module.HandleExit(scene.Rig.Lp(0), ref host);

        // A walk that goes on below the entry finds the children, or a FREE entry one level lower.
        bool walked = row.Answer == "WALK" && setup.Children == SceneChildren.None;
        string answer = row.Answer != "WALK" ? row.Answer : walked ? "EXIT NONE" : "SUCCESS";
        if (answer.StartsWith("EXIT ", StringComparison.Ordinal))
        {
            Assert.False(stays, $"RAX 0x{state[Gpr.Rax]:x}");
            Assert.Equal(rip, state.Rip);
            bool bare = answer == "EXIT NONE";
            ulong info = (uint)request | ((ulong)setup.Level << 3) | (SeptFormat.Public(row.From) << 6) | (SeptFormat.IsLeaf(row.From) ? 1UL << 14 : 0);
            AssertExit(host, bare ? 0 : 2 | ((word & 7) << 3), bare ? 0 : (answer == "EXIT ACCEPT" ? 1UL : 5) | (info << 32), gpa);
            Left(expected, scene);
        }
        else
        {
            Assert.True(stays, host.Status.ToString());
            Assert.Equal(Statuses.Parse(answer, row.Answer.StartsWith("PAGE_ALREADY", StringComparison.Ordinal) ? setup.Level : request).Value, state[Gpr.Rax]);
            Assert.Equal(rip + 4, state.Rip);
            if (row.To != "=")
                SeptEffect.Apply(row.Leaf, scene, row.From, setup.Level, 0, expected);
            if (attributes)
                CheckAttributes(state, setup, row.From, gpa);
        }

        Assert.Empty(ModuleState.Differences(expected, scene.Snapshot()));
        if (row.Leaf == "TDG.MEM.PAGE.ACCEPT" && SeptFormat.IsLeaf(row.From))
            Assert.Equal(answer == "SUCCESS" && setup.Level < 2 ? 0UL : 0x77, scene.Rig.Machine.Memory.Word(scene.Page + 8));
        return stays ? Statuses.Name(new TdxStatus(state[Gpr.Rax])) : answer;
    }

    public static string Access(in SeptRowRun run, SeptScene scene)
    {
        (SeptRow row, SceneSetup setup, _, AccessKind access, _) = run;
        Vmcs vmcs = scene.EnterGuest();
        ulong gpa = scene.Gpa + 0x18;
        if (row.Has("held"))
        {
            Assert.Equal(20, Touch(scene, vmcs, gpa, access, out _).Vector);
            Assert.True(vmcs.VeInfo!.IsValid);
        }

        ModuleState expected = scene.Snapshot();
        string answer = row.Answer != "WALK" ? row.Answer : setup.Children == SceneChildren.None ? "EXIT NONE" : "OK";
        VmEvent injected = Touch(scene, vmcs, gpa, access, out SeamRegisters? exited);
        switch (answer)
        {
            case "OK":
                Assert.False(injected.IsValid);
                Assert.Null(exited);
                break;
            case "VE":
                Assert.Equal((20, false), (injected.Vector, injected.HasErrorCode));
                Assert.Null(exited);
                Assert.Equal((true, 48u, gpa, gpa), (vmcs.VeInfo!.IsValid, vmcs.VeInfo.Reason, vmcs.VeInfo.Gpa, vmcs.VeInfo.Gla));
                break;
            case "DF":
                Assert.Equal((8, 0u), (injected.Vector, injected.ErrorCode));
                Assert.Null(exited);
                break;
            default:
                Assert.False(injected.IsValid);
                AssertExit(exited!.Value, access switch { AccessKind.Read => 1UL, AccessKind.Write => 2, _ => 4 }, answer == "EXIT PENDING" ? 6UL : 0, gpa & ~0xFFFUL);
                Left(expected, scene);
                break;
        }

        Assert.Empty(ModuleState.Differences(expected, scene.Snapshot()));
        return answer;
    }

    // One access as the processor makes it: TLB, walk, and on a violation the module's exit half.
    private static VmEvent Touch(SeptScene scene, Vmcs vmcs, ulong gpa, AccessKind access, out SeamRegisters? exited)
    {
        exited = null;
        if (GuestPhysical.TryTranslate(scene.Rig.Machine, scene.Rig.Lp(0), vmcs, gpa, access, out ulong hpa))
        {
            Assert.Equal(scene.Page + 0x18, hpa);
            return default;
        }

        GuestPhysical.DescribeLinear(vmcs, gpa, isPageTable: false);
        Assert.Equal(ExitReason.EptViolation, vmcs.Exit.Reason);
        Assert.False(vmcs.Exit.IsConvertible, "the CPU would convert a private violation (tdx-module 0.4, fact 8)");
        SeamRegisters host = default;
        if (!scene.Rig.Module.HandleExit(scene.Rig.Lp(0), ref host))
            exited = host;
        VmEvent injected = vmcs.EntryEvent;
        vmcs.EntryEvent = default;
        return injected;
    }

    private static void CheckAttributes(GuestState state, in SceneSetup setup, SeptState from, ulong gpa)
    {
        int level = setup.Children == SceneChildren.None ? setup.Level : setup.Level - 1;
        Assert.Equal(gpa | (uint)level | (from == SeptState.PENDING ? 1UL << 62 : 0), state[Gpr.Rcx]);
        Assert.Equal(0UL, state[Gpr.Rdx]);
    }

    private static void AssertExit(in SeamRegisters host, ulong qualification, ulong extended, ulong gpa) =>
        Assert.Equal((Violation, qualification, extended, gpa, 0UL), (host.Rax, host.Rcx, host.Rdx, host.R8, host.R9));

    // The TD exit itself: the vCPU is ready again and its epoch has one user less (tdx-module 4.10).
    private static void Left(ModuleState expected, SeptScene scene)
    {
        ulong vcpu = scene.Rig.Vcpus[0].Value;
        TdRow td = expected.Tds[scene.Tdr];
        bool odd = (expected.Vcpus[vcpu].Epoch & 1) != 0;
        expected.Tds[scene.Tdr] = td with { Count0 = td.Count0 - (odd ? 0u : 1), Count1 = td.Count1 - (odd ? 1u : 0) };
        expected.Vcpus[vcpu] = expected.Vcpus[vcpu] with { State = TdVcpuState.READY, LastExit = TdExitKind.ASYNC_FAULT, InsideLp = -1 };
    }
}
