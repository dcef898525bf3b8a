using Iced.Intel;
using Tdp.Kernel;

namespace Tdp.Tests.Unit.GuestKernel;

/// <summary>The kernel's machine code, decoded again: what it consists of and what it must not contain.</summary>
public sealed class KernelCodeTests
{
    /// <summary>Tier 1 of td-guest 2.2, as far as a kernel without floating point may want it.</summary>
    private static readonly HashSet<Mnemonic> s_tier1 =
    [
        Mnemonic.Mov, Mnemonic.Movzx, Mnemonic.Movsx, Mnemonic.Movsxd, Mnemonic.Lea, Mnemonic.Xchg, Mnemonic.Push, Mnemonic.Pop, Mnemonic.Pushfq,
        Mnemonic.Popfq, Mnemonic.Leave, Mnemonic.Enter, Mnemonic.Bswap, Mnemonic.Cbw, Mnemonic.Cwde, Mnemonic.Cdqe, Mnemonic.Cwd, Mnemonic.Cdq,
        Mnemonic.Cqo, Mnemonic.Cmova, Mnemonic.Cmovae, Mnemonic.Cmovb, Mnemonic.Cmovbe, Mnemonic.Cmove, Mnemonic.Cmovg, Mnemonic.Cmovge,
        Mnemonic.Cmovl, Mnemonic.Cmovle, Mnemonic.Cmovne, Mnemonic.Cmovno, Mnemonic.Cmovnp, Mnemonic.Cmovns, Mnemonic.Cmovo, Mnemonic.Cmovp,
        Mnemonic.Cmovs, Mnemonic.Seta, Mnemonic.Setae, Mnemonic.Setb, Mnemonic.Setbe, Mnemonic.Sete, Mnemonic.Setg, Mnemonic.Setge, Mnemonic.Setl,
        Mnemonic.Setle, Mnemonic.Setne, Mnemonic.Setno, Mnemonic.Setnp, Mnemonic.Setns, Mnemonic.Seto, Mnemonic.Setp, Mnemonic.Sets,
        Mnemonic.Add, Mnemonic.Adc, Mnemonic.Sub, Mnemonic.Sbb, Mnemonic.Inc, Mnemonic.Dec, Mnemonic.Neg, Mnemonic.Cmp, Mnemonic.Test, Mnemonic.And,
        Mnemonic.Or, Mnemonic.Xor, Mnemonic.Not, Mnemonic.Mul, Mnemonic.Imul, Mnemonic.Div, Mnemonic.Idiv, Mnemonic.Shl, Mnemonic.Shr, Mnemonic.Sar,
        Mnemonic.Rol, Mnemonic.Ror, Mnemonic.Rcl, Mnemonic.Rcr, Mnemonic.Shld, Mnemonic.Shrd, Mnemonic.Bt, Mnemonic.Bts, Mnemonic.Btr, Mnemonic.Btc,
        Mnemonic.Bsf, Mnemonic.Bsr, Mnemonic.Clc, Mnemonic.Stc, Mnemonic.Cmc, Mnemonic.Cld, Mnemonic.Std, Mnemonic.Lahf, Mnemonic.Sahf,
        Mnemonic.Jmp, Mnemonic.Ja, Mnemonic.Jae, Mnemonic.Jb, Mnemonic.Jbe, Mnemonic.Je, Mnemonic.Jg, Mnemonic.Jge, Mnemonic.Jl, Mnemonic.Jle,
        Mnemonic.Jne, Mnemonic.Jno, Mnemonic.Jnp, Mnemonic.Jns, Mnemonic.Jo, Mnemonic.Jp, Mnemonic.Js, Mnemonic.Jrcxz, Mnemonic.Call, Mnemonic.Ret,
        Mnemonic.Loop, Mnemonic.Int, Mnemonic.Int3, Mnemonic.Ud2, Mnemonic.Iretq, Mnemonic.Syscall, Mnemonic.Sysretq, Mnemonic.Nop, Mnemonic.Pause,
        Mnemonic.Endbr64, Mnemonic.Movsb, Mnemonic.Movsq, Mnemonic.Stosb, Mnemonic.Stosq, Mnemonic.Cmpxchg, Mnemonic.Xadd, Mnemonic.Mfence,
        Mnemonic.Lfence, Mnemonic.Sfence, Mnemonic.Lgdt, Mnemonic.Lidt, Mnemonic.Ltr, Mnemonic.Str, Mnemonic.Invlpg, Mnemonic.Cli, Mnemonic.Sti,
        Mnemonic.Hlt, Mnemonic.Cpuid, Mnemonic.Rdtsc, Mnemonic.Rdmsr, Mnemonic.Wrmsr, Mnemonic.In, Mnemonic.Out, Mnemonic.Tdcall, Mnemonic.Clflush,
    ];

    private static readonly GuestImage s_image = GuestImage.Build(
        ElfImage.Parse(ElfBytes.Sample("hello.elf")),
        new GuestBootOptions { IsTd = true, VcpuCount = 1, RamBytes = 16 << 20 });

    [Fact]
    public void The_kernel_consists_of_tier_1_instructions()
    {
        List<Instruction> code = Decode("kernel_entry", "kernel_text_end");
        Assert.InRange(code.Count, 1000, 4000);
        Assert.All(code, i => Assert.True(s_tier1.Contains(i.Mnemonic), $"{i} at {s_image.Symbols.Describe(i.IP)}"));
        Assert.All(code, i => Assert.True(IsGeneral(i.Op0Register) && IsGeneral(i.Op1Register), $"{i} at {s_image.Symbols.Describe(i.IP)}"));
    }

    [Theory]
    [InlineData("hello.elf")]
    [InlineData("convert.elf")]
    [InlineData("mmio.elf")]
    [InlineData("workload.elf")]
    public void The_samples_consist_of_tier_1_instructions(string name)
    {
        ElfImage sample = ElfImage.Parse(ElfBytes.Sample(name));
        foreach (ElfSegment segment in sample.Segments.Where(s => s.IsExecutable))
            Assert.All(Decode(segment.FileBytes.ToArray(), segment.Address), i => Assert.True(s_tier1.Contains(i.Mnemonic), $"{i} at 0x{i.IP:x}"));
    }

    [Fact]
    [Trait("spec", "G45")]
    public void Entry_up_to_VEINFO_GET_can_raise_no_exception_of_its_own()
    {
        // Entry stubs, the common entry and the start of the #VE handler: moves, pushes and jumps on the own stack, then the one TDCALL.
        List<Instruction> entry = [.. Decode("trap_stubs", "trap_return"), .. Decode("ve_entry", "ve_info_taken")];
        Assert.Equal(Mnemonic.Tdcall, entry[^1].Mnemonic);
        foreach (Instruction i in entry)
        {
            Assert.Contains(i.Mnemonic, new[] { Mnemonic.Push, Mnemonic.Jmp, Mnemonic.Je, Mnemonic.Jne, Mnemonic.Sub, Mnemonic.Mov, Mnemonic.Cld, Mnemonic.Cmp, Mnemonic.Str, Mnemonic.Imul, Mnemonic.Add, Mnemonic.Inc, Mnemonic.Tdcall });
            if (i.Op0Kind == OpKind.Memory || i.Op1Kind == OpKind.Memory)
                Assert.Contains(i.MemoryBase, new[] { Register.RSP, Register.RBP, Register.RAX });
        }
    }

    [Fact]
    public void Traps_end_with_interrupts_off_until_IRETQ()
    {
        List<Instruction> exit = Decode("trap_return", "trap_fault");
        Assert.Equal(Mnemonic.Cli, exit[0].Mnemonic);
        Assert.Equal(Mnemonic.Iretq, exit[^1].Mnemonic);
    }

    [Fact]
    [Trait("spec", "G54")]
    public void Every_TDVMCALL_exposes_the_same_registers_and_never_RBP()
    {
        List<Instruction> code = Decode("kernel_entry", "kernel_text_end");
        int masks = 0;
        for (int i = 1; i < code.Count; i++)
        {
            if (code[i].Mnemonic != Mnemonic.Tdcall)
                continue;
            Instruction before = code[i - 1];
            if (before.Mnemonic == Mnemonic.Mov && before.Op0Register == Register.ECX && before.Op1Kind == OpKind.Immediate32)
            {
                Assert.Equal(0xFFCCu, before.Immediate32);
                masks++;
            }
        }
        Assert.Equal(2, masks);
    }

    [Fact]
    public void Conversions_change_the_entry_and_call_the_host_in_the_safe_order()
    {
        // To shared: shoot-down, entries (LOCK OR), shoot-down, MapGPA. To private: MapGPA, ACCEPT, entries (LOCK AND), shoot-down.
        Assert.Equal(["tlb_shootdown", "or", "tlb_shootdown", "map_gpa"], Steps("convert_to_shared", "convert_to_private"));
        Assert.Equal(["map_gpa", "accept_page", "and", "tlb_shootdown"], Steps("convert_to_private", "convert_leak"));
    }

    [Theory]
    [InlineData("hello.elf")]
    [InlineData("mmio.elf")]
    [Trait("spec", "G49")]
    public void Each_device_accessor_of_a_sample_is_one_MOV(string name)
    {
        ElfImage sample = ElfImage.Parse(ElfBytes.Sample(name));
        int found = 0;
        foreach (GuestSymbol symbol in sample.Symbols.Where(s => s.Name.StartsWith("mmio_", StringComparison.Ordinal)))
        {
            ElfSegment text = sample.Segments.Single(s => s.Address <= symbol.Address && symbol.Address < s.End);
            byte[] bytes = text.FileBytes.Span.Slice((int)(symbol.Address - text.Address), (int)symbol.Bytes).ToArray();
            Instruction access = Assert.Single(Decode(bytes, symbol.Address), i => i.Op0Kind == OpKind.Memory || i.Op1Kind == OpKind.Memory);
            Assert.Equal(Mnemonic.Mov, access.Mnemonic);
            Assert.False(access.HasLockPrefix);
            found++;
        }
        Assert.Equal(8, found);
    }

    [Fact]
    public void Every_vector_has_a_stub_inside_the_kernel_text()
    {
        Assert.True(s_image.Symbols.TryGetAddress("trap_stub_table", out ulong table));
        Assert.True(s_image.Symbols.TryGetAddress("trap_stubs", out ulong stubs));
        Assert.True(s_image.Symbols.TryGetAddress("trap_common", out ulong common));
        GuestMemory memory = new(s_image);
        HashSet<ulong> addresses = [];
        for (ulong i = 0; i < 34; i++)
        {
            ulong stub = memory.U64(table + (i * 8));
            Assert.InRange(stub, stubs, common - 1);
            Assert.True(addresses.Add(stub));
        }
    }

    private static List<string> Steps(string from, string end)
    {
        Dictionary<ulong, string> names = [];
        foreach (GuestSymbol symbol in s_image.Symbols.All)
            names.TryAdd(symbol.Address, symbol.Name);
        List<string> steps = [];
        foreach (Instruction i in Decode(from, end))
        {
            if (i.Mnemonic == Mnemonic.Call && names[i.NearBranch64] is "tlb_shootdown" or "map_gpa" or "accept_page")
                steps.Add(names[i.NearBranch64]);
            else if (i.HasLockPrefix && i.Mnemonic is Mnemonic.Or or Mnemonic.And && i.Op0Kind == OpKind.Memory)
                steps.Add(i.Mnemonic == Mnemonic.Or ? "or" : "and");
        }
        return steps;
    }

    private static bool IsGeneral(Register register) => register is Register.None || register.IsGPR() || register is Register.CR2 or Register.CR3;

    private static List<Instruction> Decode(string from, string end)
    {
        Assert.True(s_image.Symbols.TryGetAddress(from, out ulong first), from);
        Assert.True(s_image.Symbols.TryGetAddress(end, out ulong last), end);
        return Decode(new GuestMemory(s_image).Bytes(first, (int)(last - first)), first);
    }

    private static List<Instruction> Decode(byte[] bytes, ulong address)
    {
        List<Instruction> code = [];
        Decoder decoder = Decoder.Create(64, new ByteArrayCodeReader(bytes), address);
        while (decoder.IP < address + (ulong)bytes.Length)
        {
            decoder.Decode(out Instruction instruction);
            Assert.False(instruction.IsInvalid, $"0x{instruction.IP:x}");
            code.Add(instruction);
        }
        return code;
    }
}
