using Iced.Intel;
using Tdp.Cpu;
using Tdp.Platform;
using Tdp.Sync;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>Small programs for what the oracle cannot execute: control flow, stacks, atomics between vCPUs, strings that fault, code that changes itself.</summary>
public sealed class ProgramTests
{
    private const ulong Far = 0x7000_0000_0000;

    [Fact]
    public void Calls_returns_loops_and_indirect_branches_go_where_they_should()
    {
        using CpuRig rig = new();
        VmExit exit = rig.Run(a =>
        {
            Label fib = a.CreateLabel();
            Label small = a.CreateLabel();
            Label start = a.CreateLabel();
            Label again = a.CreateLabel();
            Label empty = a.CreateLabel();
            a.jmp(start);
            a.Label(ref fib);
            a.cmp(rdi, 2);
            a.jb(small);
            a.push(rdi);
            a.dec(rdi);
            a.call(fib);
            a.pop(rdi);
            a.push(rax);
            a.sub(rdi, 2);
            a.call(fib);
            a.pop(rcx);
            a.add(rax, rcx);
            a.ret();
            a.Label(ref small);
            a.mov(rax, rdi);
            a.ret();
            a.Label(ref start);
            a.mov(edi, 20);
            a.lea(rbx, __[fib]);
            a.call(rbx);
            a.mov(r8, rax);
            a.mov(ecx, 5);
            a.xor(edx, edx);
            a.Label(ref again);
            a.add(edx, ecx);
            a.loop(again);
            a.jrcxz(empty);
            a.ud2();
            a.Label(ref empty);
            a.enter(32, 0);
            a.mov(__qword_ptr[rbp - 8], r8);
            a.mov(r9, __qword_ptr[rsp + 24]);
            a.leave();
            a.push(0x1234);
            a.push(0x5678);
            a.pop(__qword_ptr[rsp]);
            a.pop(r10);
            a.hlt();
        });
        Assert.Equal(ExitReason.Hlt, exit.Reason);
        Assert.Equal((6765UL, 15UL, 6765UL, 0x5678UL), (rig.State[Gpr.R8], rig.State[Gpr.Rdx], rig.State[Gpr.R9], rig.State[Gpr.R10]));
        Assert.Equal(CpuRig.StackTop, rig.State[Gpr.Rsp]);
    }

    [Fact]
    public void Every_jump_condition_agrees_with_SETcc()
    {
        using CpuRig rig = new();
        for (int condition = 0; condition < 16; condition++)
        {
            // setcc bl; jcc +2; mov bh, 0 (skipped) -> bh stays 1 when taken
            rig.Write(CpuRig.Code, [0x0F, (byte)(0x90 + condition), 0xC3, (byte)(0x70 + condition), 0x02, 0xB7, 0x00, 0xF4]);
            for (ulong flags = 0; flags < 64; flags++)
            {
                ulong spread = (flags & 1) | ((flags & 2) << 1) | ((flags & 4) << 2) | ((flags & 0x18) << 3) | ((flags & 0x20) << 6);
                rig.State.Rflags = 2 | spread;
                rig.State[Gpr.Rbx] = 0x100;
                rig.State.Rip = CpuRig.Code;
                rig.Enter();
                Assert.True((rig.State[Gpr.Rbx] >> 8) == (rig.State[Gpr.Rbx] & 0xFF), $"condition {condition}, flags 0x{spread:x}");
                Assert.Equal(2 | spread, rig.State.Rflags);
            }
        }
    }

    [Fact]
    public void Syscall_and_sysret_cross_the_privilege_boundary()
    {
        using CpuRig rig = new();
        rig.State.Star = (0x10UL << 48) | (0x08UL << 32);
        rig.State.Lstar = CpuRig.Code + 0x1000;
        rig.State.Fmask = 0x200;
        rig.Assemble(CpuRig.Code + 0x1000, a =>
        {
            a.mov(r8, rcx);
            a.mov(r9, r11);
            a.mov(r10, cs);
            a.sysretq();
        });
        rig.Gate(3, CpuRig.Code + 0x3800, dpl: 3);
        rig.Assemble(CpuRig.Code + 0x3800, a => a.hlt());
        rig.BecomeUser();
        rig.State.Rflags |= 0x200;
        rig.Run(a =>
        {
            a.syscall();
            a.mov(r12, cs);
            a.int3();
        });
        GuestState state = rig.State;
        Assert.Equal((CpuRig.Code + 2, 0x202UL, 0x08UL, (ulong)CpuRig.UserCode), (state[Gpr.R8], state[Gpr.R9], state[Gpr.R10], state[Gpr.R12]));
        Assert.Equal(0x202UL, rig.Word(state[Gpr.Rsp] + 16));
    }

    [Fact]
    public void Segment_bases_of_FS_and_GS_are_added_and_swapped()
    {
        using CpuRig rig = new();
        rig.Word(CpuRig.Data + 0x10) = 11;
        rig.Word(CpuRig.Data + 0x818) = 22;
        rig.State.Cr4 |= 1 << 16;
        rig.State.KernelGsBase = CpuRig.Data + 0x800;
        rig.Run(a =>
        {
            a.mov(rax, CpuRig.Data);
            a.wrfsbase(rax);
            a.mov(rcx, __qword_ptr.fs[0x10]);
            a.swapgs();
            a.mov(ebx, 3);
            a.mov(rdx, __qword_ptr.gs[rbx * 8]);
            a.rdgsbase(rsi);
            a.hlt();
        });
        Assert.Equal((11UL, 22UL, CpuRig.Data + 0x800), (rig.State[Gpr.Rcx], rig.State[Gpr.Rdx], rig.State[Gpr.Rsi]));
        Assert.Equal(CpuRig.Data, rig.State.Fs.Base);
    }

    [Fact]
    public void Descriptor_tables_and_task_register_are_loaded_and_stored()
    {
        using CpuRig rig = new();
        rig.Word(CpuRig.Gdt + 0x28) &= ~(2UL << 40);
        rig.Assemble(CpuRig.Code + 0x1000, a => a.hlt());
        VmExit exit = rig.Run(a =>
        {
            a.mov(rbx, CpuRig.Data);
            a.sgdt(__[rbx]);
            a.sidt(__[rbx + 16]);
            a.lgdt(__[rbx]);
            a.lidt(__[rbx + 16]);
            a.mov(eax, 0x28);
            a.ltr(ax);
            a.str(ecx);
            a.mov(eax, CpuRig.KernelData);
            a.mov(ds, eax);
            a.push(CpuRig.KernelCode);
            a.lea(rax, __[CpuRig.Code + 0x1000]);
            a.push(rax);
            a.AddInstruction(Instruction.Create(Iced.Intel.Code.Retfq));
        });
        Assert.Equal((ExitReason.Hlt, CpuRig.Code + 0x1000), (exit.Reason, rig.State.Rip));
        Assert.Equal(0x28UL, rig.State[Gpr.Rcx] & 0xFFFF);
        Assert.Equal(CpuRig.Tss, rig.State.Tr.Base);
        Assert.Equal(0x8BUL, (rig.Word(CpuRig.Gdt + 0x28) >> 40) & 0xFF);
        Assert.Equal(CpuRig.Gdt, BitConverter.ToUInt64(rig.Read(CpuRig.Data + 2, 8)));
        Assert.Equal(CpuRig.Idt, rig.State.IdtrBase);
    }

    [Fact]
    public void The_time_stamp_counter_advances_with_retired_instructions_exactly()
    {
        using CpuRig rig = new();
        rig.Run(a =>
        {
            a.rdtsc();
            a.mov(ecx, eax);
            a.nop();
            a.nop();
            a.rdtsc();
            a.hlt();
        });
        Assert.Equal(4UL, rig.State[Gpr.Rax] - rig.State[Gpr.Rcx]);
        Assert.Equal(5UL, rig.State.Retired);
        Assert.Equal(5UL, rig.Lp.Ticks);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(8)]
    [Trait("spec", "G05")]
    public void A_repeated_move_that_faults_in_the_middle_resumes_at_the_same_element(int bytes)
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 2);
        ulong target = Far + 0x10_0000;
        rig.Allocate(target, 1);
        byte[] content = new byte[0x2000];
        new SeedStream(1, "program").Fill(content);
        rig.Write(Far, content);
        rig.StopHandler(14);
        ulong count = 0x1800UL / (ulong)bytes;
        rig.Run(a =>
        {
            a.mov(rsi, Far + 8);
            a.mov(rdi, target + 0x100);
            a.mov(ecx, (uint)count);
            if (bytes == 1)
                a.rep.movsb();
            else
                a.rep.movsq();
            a.hlt();
        });
        ulong done = 0xF00UL / (ulong)bytes;
        Assert.Equal(target + 0x1000, rig.State.Cr2);
        Assert.Equal((count - done, Far + 8 + 0xF00, target + 0x1000), (rig.State[Gpr.Rcx], rig.State[Gpr.Rsi], rig.State[Gpr.Rdi]));
        rig.Allocate(target + 0x1000, 1);
        rig.State.Rip = rig.Word(rig.State[Gpr.Rsp] + 8);
        rig.State[Gpr.Rsp] = CpuRig.StackTop;
        rig.Enter();
        Assert.Equal(0UL, rig.State[Gpr.Rcx]);
        Assert.Equal(content.AsSpan(8, 0x1800).ToArray(), rig.Read(target + 0x100, 0x1800));
    }

    [Fact]
    public void Overlapping_and_backward_moves_go_element_by_element()
    {
        using CpuRig rig = new();
        rig.Write(CpuRig.Data, [.. Enumerable.Range(0, 64).Select(i => (byte)i)]);
        rig.Run(a =>
        {
            a.mov(rsi, CpuRig.Data);
            a.lea(rdi, __[rsi + 3]);
            a.mov(ecx, 20);
            a.rep.movsb();
            a.std();
            a.mov(rsi, CpuRig.Data + 63);
            a.mov(rdi, CpuRig.Data + 0x100 + 63);
            a.mov(ecx, 8);
            a.rep.movsb();
            a.cld();
            a.mov(rdi, CpuRig.Data + 0x200);
            a.mov(rax, 0x1122334455667788UL);
            a.mov(ecx, 600);
            a.rep.stosq();
            a.mov(rdi, CpuRig.Data + 3);
            a.xor(eax, eax);
            a.mov(ecx, 100);
            a.mov(al, 30);
            a.repne.scasb();
            a.hlt();
        });
        Assert.Equal([.. Enumerable.Range(0, 23).Select(i => (byte)(i % 3))], rig.Read(CpuRig.Data, 23));
        Assert.Equal([56, 57, 58, 59, 60, 61, 62, 63], rig.Read(CpuRig.Data + 0x138, 8));
        Assert.Equal(0x1122334455667788UL, rig.Word(CpuRig.Data + 0x200 + (599 * 8)));
        Assert.Equal(0UL, rig.Word(CpuRig.Data + 0x200 + (600 * 8)));
        Assert.Equal(CpuRig.Data + 31, rig.State[Gpr.Rdi]);
    }

    [Fact]
    [Trait("spec", "G08")]
    public void A_store_into_the_next_instruction_takes_effect_at_once()
    {
        using CpuRig rig = new();
        for (int turn = 0; turn < 3; turn++)
        {
            rig.Run(a =>
            {
                Label patch = a.CreateLabel();
                a.lea(rbx, __[patch]);
                a.mov(__byte_ptr[rbx + 1], 7);
                a.Label(ref patch);
                a.mov(al, 1);
                a.hlt();
            });
            Assert.Equal(7UL, rig.State[Gpr.Rax] & 0xFF);
        }
    }

    [Fact]
    [Trait("spec", "G08")]
    public void Code_that_another_page_mapping_changed_is_decoded_again()
    {
        using CpuRig rig = new();
        rig.Map(CpuRig.Data + 0x10000, rig.Pte(CpuRig.Code + 0x1000) & Hpa.Mask);
        rig.Assemble(CpuRig.Code + 0x1000, a =>
        {
            a.mov(eax, 1);
            a.ret();
        });
        rig.Run(a =>
        {
            Label top = a.CreateLabel();
            a.mov(rbx, CpuRig.Data + 0x10000);
            a.xor(edx, edx);
            a.mov(ecx, 1);
            a.Label(ref top);
            a.mov(__dword_ptr[rbx + 1], ecx);
            a.call(CpuRig.Code + 0x1000);
            a.add(edx, eax);
            a.inc(ecx);
            a.cmp(ecx, 100);
            a.jbe(top);
            a.hlt();
        });
        Assert.Equal(5050UL, rig.State[Gpr.Rdx]);
    }

    [Fact]
    [Trait("spec", "G08")]
    public void Another_vCPU_runs_new_code_after_it_was_told_and_serialised()
    {
        using CpuRig rig = new(processors: 3);
        rig.Assemble(CpuRig.Code + 0x1000, a =>
        {
            a.mov(eax, 0);
            a.ret();
        });

        // vCPU 1 writes the number n into the code and then n into a mailbox; vCPU 0 waits for n, serialises, and must get n from the code.
        rig.Assemble(CpuRig.Code, a =>
        {
            Label top = a.CreateLabel();
            Label wait = a.CreateLabel();
            a.mov(rbx, CpuRig.Data);
            a.mov(ecx, 1);
            a.Label(ref top);
            a.nop();
            a.Label(ref wait);
            a.pause();
            a.cmp(__dword_ptr[rbx], ecx);
            a.jne(wait);
            a.mov(rdx, cr3);
            a.mov(cr3, rdx);
            a.call(CpuRig.Code + 0x1000);
            a.cmp(eax, ecx);
            a.setne(dl);
            a.movzx(edx, dl);
            a.add(r15, rdx);
            a.mov(__dword_ptr[rbx + 64], ecx);
            a.inc(ecx);
            a.cmp(ecx, 2000);
            a.jbe(top);
            a.hlt();
        });
        rig.Assemble(CpuRig.Code + 0x2000, a =>
        {
            Label top = a.CreateLabel();
            Label wait = a.CreateLabel();
            a.mov(rbx, CpuRig.Data);
            a.mov(rsi, CpuRig.Code + 0x1001);
            a.mov(ecx, 1);
            a.Label(ref top);
            a.mov(__dword_ptr[rsi], ecx);
            a.mov(__dword_ptr[rbx], ecx);
            a.Label(ref wait);
            a.pause();
            a.cmp(__dword_ptr[rbx + 64], ecx);
            a.jne(wait);
            a.inc(ecx);
            a.cmp(ecx, 2000);
            a.jbe(top);
            a.hlt();
        });
        RunTogether(rig, (0, CpuRig.Code), (1, CpuRig.Code + 0x2000));
        Assert.Equal(0UL, rig.State[Gpr.R15]);
    }

    [Fact]
    [Trait("spec", "G06")]
    public void Locked_additions_of_several_vCPUs_lose_nothing()
    {
        using CpuRig rig = new(processors: 4);
        const int Turns = 20_000;
        rig.Assemble(CpuRig.Code, a =>
        {
            Label top = a.CreateLabel();
            Label retry = a.CreateLabel();
            a.mov(rsi, CpuRig.Data);
            a.mov(edi, Turns);
            a.Label(ref top);
            a.mov(eax, 1);
            a.@lock.xadd(__qword_ptr[rsi], rax);
            a.@lock.inc(__byte_ptr[rsi + 9]);
            a.@lock.add(__word_ptr[rsi + 10], 3);
            a.@lock.dec(__dword_ptr[rsi + 12]);
            a.mov(rax, __qword_ptr[rsi + 64]);
            a.mov(rdx, __qword_ptr[rsi + 72]);
            a.Label(ref retry);
            a.mov(rbx, rax);
            a.mov(rcx, rdx);
            a.inc(rbx);
            a.dec(rcx);
            a.@lock.cmpxchg16b(__[rsi + 64]);
            a.jne(retry);
            a.dec(edi);
            a.jnz(top);
            a.hlt();
        });
        RunTogether(rig, (0, CpuRig.Code), (1, CpuRig.Code), (2, CpuRig.Code));
        Assert.Equal(3UL * Turns, rig.Word(CpuRig.Data));
        byte[] bytes = rig.Read(CpuRig.Data + 8, 8);
        Assert.Equal(unchecked((byte)(3 * Turns)), bytes[1]);
        Assert.Equal(unchecked((ushort)(9 * Turns)), BitConverter.ToUInt16(bytes, 2));
        Assert.Equal(-3 * Turns, BitConverter.ToInt32(bytes, 4));
        Assert.Equal(3UL * Turns, rig.Word(CpuRig.Data + 64));
        Assert.Equal(unchecked(0UL - (3UL * Turns)), rig.Word(CpuRig.Data + 72));
    }

    [Fact]
    public void A_split_lock_is_an_alignment_check()
    {
        using CpuRig rig = new();
        ulong handler = rig.StopHandler(17);
        rig.Run(a =>
        {
            a.mov(rbx, CpuRig.Data + 61);
            a.@lock.inc(__dword_ptr[rbx]);
            a.hlt();
        });
        Assert.Equal(handler, rig.State.Rip);
    }

    [Theory]
    [InlineData("C5F9FEC1", "vpaddd", 3)]
    [InlineData("660FFEC1", "paddd", 2)]
    [InlineData("D9C0", "fld", 3)]
    [InlineData("C5F877", "vzeroupper", 3)]
    [Trait("spec", "G12")]
    public void An_instruction_this_CPU_does_not_have_ends_the_run_with_its_name_bytes_and_RIP(string bytes, string name, int tier)
    {
        using CpuRig rig = new();
        byte[] code = Convert.FromHexString(bytes);
        rig.Write(CpuRig.Code, [0x90, .. code]);
        rig.State[Gpr.Rax] = 5;
        UnsupportedGuestInstructionException error = Assert.Throws<UnsupportedGuestInstructionException>(() => rig.Enter());
        Assert.Equal((name, CpuRig.Code + 1, tier), (error.Mnemonic, error.Rip, error.Tier));
        Assert.Equal(string.Join(' ', Convert.ToHexStringLower(code).Chunk(2).Select(pair => new string(pair))), error.Bytes);
        Assert.Contains($"unsupported guest instruction {name}", error.Message, StringComparison.Ordinal);
        Assert.Equal(5UL, rig.State[Gpr.Rax]);
    }

    [Fact]
    public void Bytes_that_are_no_instruction_are_UD_and_too_many_are_GP()
    {
        using CpuRig rig = new();
        ulong undefined = rig.StopHandler(6);
        ulong protection = rig.StopHandler(13);
        rig.Write(CpuRig.Code, [0xF0, 0x89, 0xC8]);
        rig.Enter();
        Assert.Equal(undefined, rig.State.Rip);
        rig.State.Rip = CpuRig.Code + 0x100;
        rig.Write(CpuRig.Code + 0x100, [0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90]);
        rig.Enter();
        Assert.Equal(protection, rig.State.Rip);
    }

    [Fact]
    public void An_instruction_that_straddles_pages_fetches_both_and_faults_on_the_second()
    {
        using CpuRig rig = new();
        rig.StopHandler(14);
        ulong start = Far + 0xFFD;
        rig.Allocate(Far, 1);
        byte[] code = CpuRig.Encode(start, a =>
        {
            a.mov(rcx, 0x1122334455667788UL);
            a.hlt();
        });
        rig.Write(start, code.AsSpan(0, 3));
        rig.State.Rip = start;
        rig.Enter();
        Assert.Equal(Far + 0x1000, rig.State.Cr2);
        Assert.Equal(start, rig.Word(rig.State[Gpr.Rsp] + 8));
        rig.Allocate(Far + 0x1000, 1);
        rig.Write(Far + 0x1000, code.AsSpan(3));
        for (int turn = 0; turn < 2; turn++)
        {
            rig.State.Rip = start;
            rig.State[Gpr.Rcx] = 0;
            Assert.Equal(ExitReason.Hlt, rig.Enter().Reason);
            Assert.Equal(0x1122334455667788UL, rig.State[Gpr.Rcx]);
        }

        rig.Write(Far + 0x1001, [0xFF]);
        rig.State.Rip = start;
        rig.Enter();
        Assert.NotEqual(0x1122334455667788UL, rig.State[Gpr.Rcx]);
    }

    [Fact]
    [Trait("spec", "G07")]
    public void A_message_passed_by_plain_stores_is_never_seen_before_its_flag()
    {
        using CpuRig rig = new(processors: 3);
        rig.Assemble(CpuRig.Code, a =>
        {
            Label top = a.CreateLabel();
            a.mov(rbx, CpuRig.Data);
            a.mov(ecx, 1);
            a.Label(ref top);
            a.mov(__qword_ptr[rbx + 64], rcx);
            a.mov(__qword_ptr[rbx], rcx);
            a.inc(rcx);
            a.cmp(ecx, 200_000);
            a.jb(top);
            a.mov(__qword_ptr[rbx + 128], rcx);
            a.hlt();
        });
        rig.Assemble(CpuRig.Code + 0x1000, a =>
        {
            Label top = a.CreateLabel();
            a.mov(rbx, CpuRig.Data);
            a.Label(ref top);
            a.mov(rax, __qword_ptr[rbx]);
            a.mov(rdx, __qword_ptr[rbx + 64]);
            a.cmp(rdx, rax);
            a.setb(cl);
            a.movzx(ecx, cl);
            a.add(r15, rcx);
            a.cmp(__qword_ptr[rbx + 128], 0);
            a.je(top);
            a.hlt();
        });
        GuestState reader = RunTogether(rig, (0, CpuRig.Code), (1, CpuRig.Code + 0x1000))[1];
        Assert.Equal(0UL, reader[Gpr.R15]);
    }

    private static GuestState[] RunTogether(CpuRig rig, params (int Processor, ulong Entry)[] vcpus)
    {
        GuestState[] states = new GuestState[vcpus.Length];
        List<Actor> actors = [];
        for (int i = 0; i < vcpus.Length; i++)
        {
            int index = i;
            Vmcs vmcs = rig.Vmcs;
            Tdp.Cpu.GuestCpu cpu = rig.Cpu;
            if (i > 0)
            {
                vmcs = new Vmcs { VcpuId = i, Eptp = rig.Vmcs.Eptp };
                rig.SetState(vmcs.State);
                vmcs.State[Gpr.Rsp] -= (ulong)i * 0x800;
                cpu = new Tdp.Cpu.GuestCpu(rig.Machine);
            }

            vmcs.State.Rip = vcpus[i].Entry;
            states[i] = vmcs.State;
            Actor actor = rig.Machine.Actors.Create($"vcpu{i}");
            actors.Add(actor);
            actor.Start(_ => Assert.Equal(ExitReason.Hlt, cpu.Enter(rig.Machine.Processors[vcpus[index].Processor], vmcs).Reason));
        }

        foreach (Actor actor in actors)
            actor.Join();
        return states;
    }
}
