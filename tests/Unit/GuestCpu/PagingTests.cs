using Tdp.Platform;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>The guest's page tables, walked through the EPT (td-guest 1.2, 1.3, 1.6).</summary>
public sealed class PagingTests
{
    private const ulong Far = 0x1234_5678_9000;
    private const int PageFault = 14;

    [Fact]
    [Trait("spec", "G01")]
    public void A_walk_makes_one_EPT_translation_per_level_and_one_for_the_data()
    {
        using CpuRig rig = new(mode: TlbMode.Off);
        rig.Allocate(Far, 1);
        ulong before = rig.Lp.Tlb.Fills;
        rig.Run(a => a.hlt());
        ulong fetch = rig.Lp.Tlb.Fills - before;
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.Equal(5UL, fetch);
        Assert.Equal(before + (3 * fetch), rig.Lp.Tlb.Fills);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [Trait("spec", "G01")]
    public void A_table_that_the_EPT_does_not_map_exits_with_the_entry_s_address_and_bit_8_clear(int level)
    {
        using CpuRig rig = new(isTd: true);
        rig.Allocate(Far, 1);
        ulong entry = rig.PteGpa(Far, level);
        rig.EptLeaf(entry) = EptEntry.SuppressVe;
        VmExit exit = rig.Run(a =>
        {
            a.mov(rax, Far + 0x123);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.Equal(ExitReason.EptViolation, exit.Reason);
        Assert.Equal(entry, exit.Gpa);
        Assert.Equal(Far + 0x123, exit.Gla);
        Assert.Equal(0x81UL, exit.Qualification);
        Assert.Equal(CpuRig.Code + 10, rig.State.Rip);
        Assert.False(rig.Vmcs.IdtVectoring.IsValid);
    }

    [Fact]
    public void With_accessed_and_dirty_on_a_table_read_counts_as_a_write()
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 1);
        ulong entry = rig.PteGpa(Far);
        rig.EptLeaf(entry) &= ~EptEntry.Write;
        VmExit exit = rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.Equal(ExitReason.EptViolation, exit.Reason);
        Assert.Equal(entry, exit.Gpa);
        Assert.Equal(0x80UL | 3 | (5 << 3), exit.Qualification);
    }

    [Fact]
    [Trait("spec", "G02")]
    public void Accessed_and_dirty_are_set_when_the_walk_succeeds()
    {
        using CpuRig rig = new();
        rig.Map(Far, rig.NewGpa(), bits: 7);
        ClearAccessed(rig);
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        for (int level = 1; level <= 4; level++)
            Assert.Equal(0x20UL, rig.Machine.Memory.Word(rig.HostOf(rig.PteGpa(Far, level))) & 0x60);
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(__qword_ptr[rax], rcx);
            a.hlt();
        });
        Assert.Equal(0x60UL, rig.Pte(Far) & 0x60);
        Assert.Equal(0x20UL, rig.Machine.Memory.Word(rig.HostOf(rig.PteGpa(Far, 2))) & 0x60);
    }

    [Fact]
    [Trait("spec", "G02")]
    public void A_walk_that_faults_sets_nothing()
    {
        using CpuRig rig = new();
        rig.Map(Far, rig.NewGpa(), bits: 5);
        ClearAccessed(rig);
        rig.StopHandler(PageFault);
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(__qword_ptr[rax], rcx);
            a.hlt();
        });
        Assert.Equal(Far, rig.State.Cr2);
        for (int level = 1; level <= 3; level++)
            Assert.Equal(0UL, rig.Machine.Memory.Word(rig.HostOf(rig.PteGpa(Far, level))) & 0x60);
    }

    public static TheoryData<string, ulong, ulong, bool, uint> Faults => new()
    {
        { "read of a page that is not present", 0, 0, false, 0 },
        { "write to a page that is not present", 0, 0, true, 2 },
        { "supervisor write to a read-only page", 1, 0, true, 3 },
        { "reserved bit 63 without NXE", 3 | (1UL << 63), 1, false, 9 },
    };

    [Theory]
    [MemberData(nameof(Faults))]
    public void A_page_fault_s_error_code_says_what_happened(string what, ulong pte, ulong withoutNx, bool write, uint code)
    {
        using CpuRig rig = new();
        ulong gpa = rig.NewGpa();
        rig.Map(Far, pte == 0 ? 0 : gpa, pte);
        if (withoutNx != 0)
            rig.State.Efer &= ~0x800UL;
        rig.StopHandler(PageFault);
        rig.Run(a =>
        {
            a.mov(rax, Far + 8);
            if (write)
                a.mov(__qword_ptr[rax], rcx);
            else
                a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.True(rig.State.Cr2 == Far + 8, what);
        Assert.Equal(code, (uint)rig.Word(rig.State[Gpr.Rsp]));
        Assert.Equal(CpuRig.Code + 10, rig.Word(rig.State[Gpr.Rsp] + 8));
    }

    [Theory]
    [InlineData(0x67UL, 0x63UL, 5u)]
    [InlineData(0x65UL, 0x65UL, 7u)]
    public void User_accesses_need_a_user_page(ulong readable, ulong target, uint code)
    {
        using CpuRig rig = new();
        rig.Map(Far, rig.NewGpa(), readable);
        rig.Map(Far, rig.Pte(Far) & Hpa.Mask, target);
        rig.StopHandler(PageFault);
        rig.BecomeUser();
        rig.Run(a =>
        {
            a.mov(rax, Far);
            if ((code & 2) != 0)
                a.mov(__dword_ptr[rax], ecx);
            else
                a.mov(ecx, __dword_ptr[rax]);
            a.nop();
        });
        Assert.Equal(code, (uint)rig.Word(rig.State[Gpr.Rsp]));
        Assert.Equal(0, rig.State.Cpl);
    }

    [Fact]
    public void Write_protection_binds_the_supervisor_only_with_CR0_WP()
    {
        using CpuRig rig = new();
        rig.Map(Far, rig.NewGpa(), 1 | 0x60);
        rig.State.Cr0 &= ~(1UL << 16);
        VmExit exit = rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(__qword_ptr[rax], rsp);
            a.hlt();
        });
        Assert.Equal(ExitReason.Hlt, exit.Reason);
        Assert.Equal(CpuRig.StackTop, rig.Machine.Memory.Word(rig.HostOf(rig.Pte(Far) & Hpa.Mask)));
    }

    [Fact]
    public void Smap_closes_user_pages_to_the_supervisor_until_AC_is_set()
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 1);
        rig.Pte(CpuRig.Code) &= ~4UL;
        for (int page = 0; page < 4; page++)
        {
            rig.Pte(CpuRig.Stack + ((ulong)page * 4096)) &= ~4UL;
            rig.Pte(CpuRig.Code + ((ulong)page * 4096)) &= ~4UL;
            rig.Pte(CpuRig.Descriptors + ((ulong)page * 4096)) &= ~4UL;
        }

        rig.StopHandler(PageFault);
        rig.State.Cr4 |= 1UL << 21;
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.stac();
            a.mov(rcx, __qword_ptr[rax]);
            a.mov(rdx, 1);
            a.clac();
            a.mov(rcx, __qword_ptr[rax]);
            a.mov(rdx, 2);
            a.hlt();
        });
        Assert.Equal(1UL, rig.State[Gpr.Rdx]);
        Assert.Equal(Far, rig.State.Cr2);
        Assert.Equal(1u, (uint)rig.Word(rig.State[Gpr.Rsp]));
    }

    [Fact]
    public void Smep_and_NX_stop_fetches()
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 1);
        rig.StopHandler(PageFault);
        for (int page = 0; page < 4; page++)
            rig.Pte(CpuRig.Code + ((ulong)page * 4096)) &= ~4UL;
        rig.State.Cr4 |= 1UL << 20;
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.jmp(rax);
        });
        Assert.Equal(0x11u, (uint)rig.Word(rig.State[Gpr.Rsp]));
        Assert.Equal(Far, rig.Word(rig.State[Gpr.Rsp] + 8));
        rig.State.Cr4 &= ~(1UL << 20);
        rig.State[Gpr.Rsp] = CpuRig.StackTop;
        rig.Pte(Far) |= 1UL << 63;
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.jmp(rax);
        });
        Assert.Equal(0x11u, (uint)rig.Word(rig.State[Gpr.Rsp]));
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Large_pages_map_their_whole_reach(int level)
    {
        using CpuRig rig = new();
        ulong size = level == 2 ? 1UL << 21 : 1UL << 30;
        ulong gpa = size * 2;
        rig.Back(gpa + 0x5000);
        rig.Machine.Memory.Word(rig.HostOf(rig.PteGpa(0x1200_0000_0000, level))) = gpa | 0xE7;
        rig.Machine.Memory.Word(rig.HostOf(gpa + 0x5008)) = 77;
        rig.Run(a =>
        {
            a.mov(rax, 0x1200_0000_5008);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.Equal(77UL, rig.State[Gpr.Rcx]);
    }

    [Fact]
    public void Five_levels_translate_addresses_beyond_48_bits()
    {
        using CpuRig rig = new(fiveLevel: true);
        const ulong High = 0x00AB_1234_5678_9000;
        rig.Allocate(High, 1);
        rig.Word(High + 16) = 99;
        VmExit exit = rig.Run(a =>
        {
            a.mov(rax, High + 16);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.Equal(ExitReason.Hlt, exit.Reason);
        Assert.Equal(99UL, rig.State[Gpr.Rcx]);
    }

    [Fact]
    [Trait("spec", "G04")]
    public void A_straddling_store_whose_second_page_faults_changes_nothing()
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 1);
        rig.Word(Far + 0xFF8) = 0x1111_1111_1111_1111;
        rig.StopHandler(PageFault);
        rig.Run(a =>
        {
            a.mov(rax, Far + 0xFFF);
            a.mov(__word_ptr[rax], cx);
            a.hlt();
        });
        Assert.Equal(Far + 0x1000, rig.State.Cr2);
        Assert.Equal(0x1111_1111_1111_1111UL, rig.Word(Far + 0xFF8));
    }

    [Fact]
    public void A_straddling_access_whose_pages_are_both_there_works_byte_by_byte()
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 2);
        rig.State[Gpr.Rcx] = 0x8877_6655_4433_2211;
        rig.Run(a =>
        {
            a.mov(rax, Far + 0xFFD);
            a.mov(__qword_ptr[rax], rcx);
            a.mov(rdx, __qword_ptr[rax]);
            a.@lock.add(__dword_ptr[rax + 3], ecx);
            a.add(__dword_ptr[rax], ecx);
            a.hlt();
        });
        Assert.Equal(0x8877_6655_4433_2211UL, rig.State[Gpr.Rdx]);
        Assert.Equal("224466884477665588AABBCC"[..6], Convert.ToHexString(rig.Read(Far + 0xFFD, 3)));
    }

    [Fact]
    [Trait("spec", "G03")]
    public void A_compare_exchange_that_would_fail_still_needs_write_permission()
    {
        using CpuRig rig = new();
        rig.Map(Far, rig.NewGpa(), 0x61);
        rig.StopHandler(PageFault);
        rig.Run(a =>
        {
            a.mov(rbx, Far);
            a.mov(eax, 123);
            a.cmpxchg(__dword_ptr[rbx], ecx);
            a.hlt();
        });
        Assert.Equal(3u, (uint)rig.Word(rig.State[Gpr.Rsp]));
        Assert.Equal(123UL, rig.State[Gpr.Rax]);
    }

    [Fact]
    public void A_non_canonical_address_is_a_protection_or_a_stack_fault()
    {
        using CpuRig rig = new();
        rig.StopHandler(13);
        rig.StopHandler(12);
        rig.Run(a =>
        {
            a.mov(rax, 0x8000_0000_0000);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.Equal(CpuRig.Code + 0x3000 + (13 * 16), rig.State.Rip);
        rig.State[Gpr.Rsp] = CpuRig.StackTop;
        rig.Run(a =>
        {
            a.mov(rbp, 0x8000_0000_0000);
            a.mov(rcx, __qword_ptr[rbp]);
            a.hlt();
        });
        Assert.Equal(CpuRig.Code + 0x3000 + (12 * 16), rig.State.Rip);
    }

    [Theory]
    [InlineData(TlbMode.Off)]
    [InlineData(TlbMode.Precise)]
    [InlineData(TlbMode.Adversarial)]
    [Trait("spec", "G09")]
    public void A_guest_that_invalidates_what_it_changes_sees_the_same_in_every_mode(TlbMode mode)
    {
        using CpuRig rig = new(mode: mode);
        rig.Allocate(Far, 2);
        ulong pte = CpuRig.Data + 0x1000;
        rig.Map(pte, rig.PteGpa(Far) & ~0xFFFUL);
        ulong entry = pte + (rig.PteGpa(Far) & 0xFFF);
        rig.Word(Far) = 1;
        rig.Word(Far + 0x1000) = 2;
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(rbx, entry);
            a.mov(rcx, __qword_ptr[rax]);
            a.mov(rdx, __qword_ptr[rbx + 8]);
            a.mov(__qword_ptr[rbx], rdx);
            a.invlpg(__byte_ptr[rax]);
            a.mov(rsi, __qword_ptr[rax]);
            a.hlt();
        });
        Assert.Equal((1UL, 2UL), (rig.State[Gpr.Rcx], rig.State[Gpr.Rsi]));
    }

    [Fact]
    [Trait("spec", "G09")]
    public void Invlpg_drops_exactly_its_page_and_a_new_CR3_keeps_global_ones()
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 3);
        ulong other = rig.NewGpa();
        rig.Machine.Memory.Word(rig.HostOf(other)) = 9;
        rig.Pte(Far) |= 0x100;
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(rcx, __qword_ptr[rax]);
            a.mov(rcx, __qword_ptr[rax + 0x1000]);
            a.mov(rcx, __qword_ptr[rax + 0x2000]);
            a.hlt();
        });

        // The kernel changes all three entries and drops one page: the others may still be stale, and here they are.
        for (ulong page = 0; page < 3; page++)
            rig.Pte(Far + (page * 4096)) = other | (rig.Pte(Far + (page * 4096)) & 0xFFF);
        rig.Run(a =>
        {
            a.mov(rax, Far);
            a.invlpg(__byte_ptr[rax + 0x1000]);
            a.mov(rbx, __qword_ptr[rax]);
            a.mov(rcx, __qword_ptr[rax + 0x1000]);
            a.mov(rdx, __qword_ptr[rax + 0x2000]);
            a.mov(rsi, cr3);
            a.mov(cr3, rsi);
            a.mov(rsi, __qword_ptr[rax]);
            a.mov(rdi, __qword_ptr[rax + 0x2000]);
            a.invlpg(__byte_ptr[rax]);
            a.mov(r8, __qword_ptr[rax]);
            a.hlt();
        });
        GuestState state = rig.State;
        Assert.Equal((0UL, 9UL, 0UL), (state[Gpr.Rbx], state[Gpr.Rcx], state[Gpr.Rdx]));
        Assert.Equal((0UL, 9UL, 9UL), (state[Gpr.Rsi], state[Gpr.Rdi], state[Gpr.R8]));
    }

    [Fact]
    [Trait("spec", "I57")]
    public void Use_of_a_translation_of_a_frame_that_changed_hands_is_a_finding()
    {
        using CpuRig rig = new();
        rig.Allocate(Far, 1);
        Touch();
        Assert.Empty(rig.Machine.Findings.All);
        rig.Machine.Ledger.HandOver(new Hpa(rig.At(Far)), FrameUse.Free, FrameUse.Kernel);
        Touch();
        Assert.Equal("I57", Assert.Single(rig.Machine.Findings.All).Rule);
        rig.Lp.Tlb.FlushAll();
        Touch();
        Assert.Single(rig.Machine.Findings.All);

        void Touch() => rig.Run(a =>
        {
            a.mov(rax, Far);
            a.mov(rcx, __qword_ptr[rax]);
            a.hlt();
        });
    }

    private static void ClearAccessed(CpuRig rig)
    {
        for (int level = 1; level <= 4; level++)
            rig.Machine.Memory.Word(rig.HostOf(rig.PteGpa(Far, level))) &= ~0x60UL;
    }
}
