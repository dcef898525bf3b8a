using System.Globalization;
using Iced.Intel;
using Tdp.Cpu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>Whatever bytes a guest executes, the outcome is architectural or a clear report; and no instruction of tier 1 is missing.</summary>
public sealed class RandomCodeTests
{
    private static readonly int Pages = int.Parse(Environment.GetEnvironmentVariable("TDPMMU_FUZZ_PAGES") ?? "400", CultureInfo.InvariantCulture);

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Random_bytes_end_in_an_exit_or_in_a_report_of_an_unsupported_instruction(bool isTd)
    {
        SeedStream random = new(7, "program", isTd ? 1UL : 0);
        byte[] bytes = new byte[4096];
        ulong retired = 0;
        GuestCpuOptions options = new() { SliceInstructions = 2000 };
        CpuRig rig = new(isTd, options: options);
        try
        {
            for (int page = 0; page < Pages; page++)
            {
                if (page % 50 == 49)
                {
                    // What the guest did to its tables is part of the fun, but not for ever.
                    rig.Dispose();
                    rig = new CpuRig(isTd, options: options);
                }

                random.Fill(bytes);
                rig.Write(CpuRig.Code, bytes);
                rig.SetState(rig.State);
                rig.State.Activity = ActivityState.Active;
                rig.State.StiShadow = rig.State.MovSsShadow = rig.State.NmiBlocked = false;
                if (rig.Vmcs.VeInfo is { } area)
                    area.IsValid = false;
                for (int i = 0; i < 16; i++)
                {
                    if (i != 4)
                        rig.State.Gpr[i] = random.Below(2) == 0 ? OracleValues.Draw(random) : CpuRig.Data + random.Below(0x4000);
                }

                rig.State.Rip = CpuRig.Code + random.Below(0x800);
                Survive(rig);
                retired += rig.State.Retired;
            }
        }
        finally
        {
            rig.Dispose();
        }

        Assert.True(retired > (ulong)Pages, $"{retired} instructions");
    }

    // Every exit is answered by going on behind the instruction, up to a bound.
    private static void Survive(CpuRig rig)
    {
        try
        {
            for (int exits = 0; exits < 40; exits++)
            {
                rig.Lp.PendingInterrupt.Write(-1);
                ulong before = rig.State.Retired;
                VmExit exit = rig.Enter();
                Assert.True(rig.State.Retired - before < 2000 + 64, "the slice did not end");
                if (exit.Reason is ExitReason.TripleFault or ExitReason.EptViolation or ExitReason.EptMisconfiguration)
                    return;
                rig.State.Rip += exit.InstructionLength;
                rig.State.StiShadow = false;
            }
        }
        catch (UnsupportedGuestInstructionException report)
        {
            Assert.NotEqual(1, report.Tier);
        }
        catch (InvalidOperationException left)
        {
            // Far transfers may leave 64-bit mode only into code segments that the descriptor table has; there is none.
            Assert.Fail(left.Message);
        }
    }

    private static readonly string[] Tier1 =
    [
        "Push", "Pop", "Pushfq", "Popfq", "Leave", "Enter", "Int", "Int3", "Ud2", "Iretq", "Syscall", "Sysretq", "Retf", "Loop", "Loope", "Loopne", "Jrcxz", "Call", "Jmp", "Ret",
        "Lgdt", "Lidt", "Ltr", "Lldt", "Sgdt", "Sidt", "Str", "Sldt", "Smsw", "Lmsw", "Clts", "Invlpg", "Invpcid", "Swapgs", "Cli", "Sti", "Hlt", "Cpuid", "Rdtsc", "Rdtscp", "Rdmsr",
        "Wrmsr", "In", "Out", "Insb", "Insw", "Insd", "Outsb", "Outsw", "Outsd", "Wbinvd", "Wbnoinvd", "Invd", "Rdfsbase", "Wrfsbase", "Rdgsbase", "Wrgsbase", "Vmcall", "Tdcall",
        "Clflush", "Clflushopt", "Clwb", "Prefetchnta", "Prefetcht1", "Prefetcht2", "Stac", "Clac", "Rdpmc", "Monitor", "Mwait", "Xgetbv", "Xsetbv", "Mov", "Nop", "Xchg",
        "Vmlaunch", "Vmresume", "Vmxoff", "Vmread", "Vmwrite", "Vmptrld", "Vmptrst", "Vmclear", "Vmxon", "Invept", "Invvpid", "Vmfunc", "Seamcall", "Encls", "Enclu", "Enclv", "Getsec", "Rsm",
        "Enqcmd", "Enqcmds", "Pconfig",
    ];

    [Fact]
    public void No_code_of_tier_1_is_unsupported()
    {
        HashSet<string> names = new(Tier1, StringComparer.Ordinal);
        List<string> missing = [];
        int tried = 0;
        foreach (Code code in Enum.GetValues<Code>())
        {
            OpCodeInfo info = code.ToOpCode();
            if (!info.IsInstruction || !info.Mode64 || info.Encoding != EncodingKind.Legacy || !names.Contains(info.Mnemonic.ToString()) || IsOfAnotherMode(code))
                continue;
            byte[]? bytes = Encode(code, info);
            if (bytes is null)
            {
                missing.Add($"{code}: cannot be encoded");
                continue;
            }

            tried++;
            using CpuRig rig = new(isTd: true);
            rig.Write(CpuRig.Code, bytes);
            for (int i = 0; i < 16; i++)
                rig.State.Gpr[i] = CpuRig.Data + 0x800;
            rig.State[Gpr.Rsp] = CpuRig.StackTop - 0x100;
            try
            {
                rig.Enter();
            }
            catch (UnsupportedGuestInstructionException report)
            {
                missing.Add($"{code}: {report.Message}");
            }
        }

        Assert.True(missing.Count == 0, string.Join('\n', missing));
        Assert.True(tried > 150, $"{tried} codes");
    }

    // Branches with a 16-bit operand are AMD's; ENQCMD, whose address is a register, is tested by its bytes elsewhere.
    private static bool IsOfAnotherMode(Code code) =>
        code is Code.Enterw_imm16_imm8 or Code.Mov_tr_r32 or Code.Mov_r32_tr or Code.Call_rel16 or Code.Jmp_rel16
            or Code.Enqcmd_r32_m512 or Code.Enqcmd_r64_m512 or Code.Enqcmds_r32_m512 or Code.Enqcmds_r64_m512
        || code.ToString().Contains("rel8_16", StringComparison.Ordinal);

    private static byte[]? Encode(Code code, OpCodeInfo info)
    {
        Instruction instruction = default;
        instruction.Code = code;
        for (int i = 0; i < info.OpCount; i++)
        {
            string kind = info.GetOpKind(i).ToString();
            if (kind.StartsWith("br64", StringComparison.Ordinal) || kind is "br32_1" or "br16_1" or "br16_2" or "br32_4")
            {
                instruction.SetOpKind(i, OpKind.NearBranch64);
                instruction.NearBranch64 = CpuRig.Code + 0x10;
            }
            else if (kind.StartsWith("imm8_const", StringComparison.Ordinal))
            {
                instruction.SetOpKind(i, OpKind.Immediate8);
                instruction.Immediate8 = 1;
            }
            else if (kind.StartsWith("imm", StringComparison.Ordinal))
            {
                instruction.SetOpKind(i, Immediate(kind, i, code));
            }
            else if (kind.Contains("mem", StringComparison.Ordinal) && kind is not "mem_offs")
            {
                instruction.SetOpKind(i, OpKind.Memory);
                instruction.MemoryBase = Register.RBX;
            }
            else if (kind == "mem_offs")
            {
                instruction.SetOpKind(i, OpKind.Memory);
                instruction.MemoryDisplSize = 8;
                instruction.MemoryDisplacement64 = CpuRig.Data;
            }
            else if (kind is "seg_rSI")
            {
                instruction.SetOpKind(i, OpKind.MemorySegRSI);
            }
            else if (kind is "es_rDI")
            {
                instruction.SetOpKind(i, OpKind.MemoryESRDI);
            }
            else
            {
                instruction.SetOpKind(i, OpKind.Register);
                instruction.SetOpRegister(i, RegisterOf(kind));
            }
        }

        return OracleInstructions.Encode(instruction, CpuRig.Code, out _);
    }

    private static OpKind Immediate(string kind, int operand, Code code) => kind switch
    {
        "imm8" when operand == 1 && code.ToString().StartsWith("Enter", StringComparison.Ordinal) => OpKind.Immediate8_2nd,
        "imm8" => OpKind.Immediate8,
        "imm8sex16" => OpKind.Immediate8to16,
        "imm8sex32" => OpKind.Immediate8to32,
        "imm8sex64" => OpKind.Immediate8to64,
        "imm16" => OpKind.Immediate16,
        "imm32" => OpKind.Immediate32,
        "imm32sex64" => OpKind.Immediate32to64,
        _ => OpKind.Immediate64,
    };

    private static Register RegisterOf(string kind) => kind switch
    {
        "al" => Register.AL,
        "ax" => Register.AX,
        "eax" => Register.EAX,
        "rax" => Register.RAX,
        "dx" => Register.DX,
        "fs" => Register.FS,
        "gs" => Register.GS,
        "seg_reg" => Register.DS,
        "cr_reg" => Register.CR3,
        "dr_reg" => Register.DR0,
        _ when kind.StartsWith("r8", StringComparison.Ordinal) => Register.CL,
        _ when kind.StartsWith("r16", StringComparison.Ordinal) => Register.CX,
        _ when kind.StartsWith("r32", StringComparison.Ordinal) => Register.ECX,
        _ => Register.RCX,
    };
}
