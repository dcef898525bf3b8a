using System.Security.Cryptography;
using System.Text;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam;

/// <summary>Pages of a TD from SEPT.ADD to reclaim: what the replayed traces do not look at (contents, ledger, measurement), and rows of the checklist by name.</summary>
public sealed class MemoryTests
{
    private const ulong Gpa = 0x4000_0000;

    [Fact]
    [Trait("spec", "TC67")]
    [Trait("spec", "TM09")]
    public void The_measurement_is_the_hash_of_what_was_added_and_extended()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        Hpa source = rig.Page();
        new Random(7).NextBytes(rig.Machine.Memory.Frame(source));
        Hpa page = rig.Page();
        rig.Must(TdhLeaf.MEM_PAGE_ADD, Gpa, rig.Tdr.Value, page.Value, source.Value);
        Assert.True(rig.Machine.Memory.Frame(source).SequenceEqual(rig.Machine.Memory.Frame(page)));

        using var stream = IncrementalHash.CreateHash(HashAlgorithmName.SHA384);
        stream.AppendData(Record("MEM.PAGE.ADD", Gpa));
        for (ulong chunk = 0; chunk < 4096; chunk += 256)
        {
            rig.Must(TdhLeaf.MR_EXTEND, Gpa + chunk, rig.Tdr.Value);
            stream.AppendData(Record("MR.EXTEND", Gpa + chunk));
            stream.AppendData(rig.Machine.Memory.Frame(source).Slice((int)chunk, 256));
        }

        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Assert.Equal(stream.GetHashAndReset(), rig.Module.Td(rig.Tdr)!.Mrtd);
        Assert.Equal(BitConverter.ToUInt64([.. rig.Module.Td(rig.Tdr)!.Mrtd], 8), rig.Must(TdhLeaf.MNG_RD, rig.Tdr.Value, 0x1310000300000001).R8);
    }

    [Fact]
    [Trait("spec", "TC57")]
    public void AUG_leaves_the_content_and_ACCEPT_clears_it()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Hpa page = rig.Page();
        rig.Machine.Memory.Fill(page, 0x5A5A_5A5A_5A5A_5A5A);
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa, rig.Tdr.Value, page.Value);
        Assert.Equal(0x5A5A_5A5A_5A5A_5A5AUL, rig.Machine.Memory.Word(page.Value));
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        Assert.Equal(-1, rig.Machine.Memory.Frame(page).IndexOfAnyExcept((byte)0));
        Assert.Equal(TdxStatus.PAGE_ALREADY_ACCEPTED, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
    }

    [Fact]
    [Trait("spec", "TC36")]
    public void Blocking_a_partly_accepted_large_page_loses_its_progress()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa, lowest: 2);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Hpa page = rig.Aug(Gpa, 1);
        rig.Machine.Memory.Fill(page, 1);
        Vmcs vmcs = rig.EnterTd(0);
        rig.Lp(0).PendingInterrupt.Write(0x20);
        vmcs.State[Gpr.Rax] = (ulong)TdgLeaf.MEM_PAGE_ACCEPT;
        vmcs.State[Gpr.Rcx] = Gpa | 1;
        ulong rip = vmcs.State.Rip;
        Assert.False(rig.Serve(0, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 }).IsValid);
        Assert.Equal(rip, vmcs.State.Rip);
        Assert.Equal(1, rig.Module.FindSeptEntry(rig.Tdr, new Gpa(Gpa), Level.M2).AcceptedPages);
        rig.Lp(0).PendingInterrupt.Write(-1);
        rig.Interrupt(0);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa | 1, rig.Tdr.Value);
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value);
        rig.Must(TdhLeaf.MEM_RANGE_UNBLOCK, Gpa | 1, rig.Tdr.Value);
        Assert.Equal(0, rig.Module.FindSeptEntry(rig.Tdr, new Gpa(Gpa), Level.M2).AcceptedPages);
        rig.Machine.Memory.Fill(page, 1);
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa | 1));
        Assert.Equal(0UL, rig.Machine.Memory.Word(page.Value));
        Assert.Equal(0UL, rig.Machine.Memory.Word(page.Value + 0x1F_F000));
    }

    [Fact]
    [Trait("spec", "TC23")]
    [Trait("spec", "TC24")]
    [Trait("spec", "TC26")]
    public void A_large_page_needs_a_range_in_which_nothing_is_used()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa, lowest: 2);
        ulong own = rig.Tdr.Value & ~0x1F_FFFFUL;
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa | 1, rig.Tdr.Value, own));
        Hpa large = rig.LargePage();
        rig.AddTables(Gpa + 0x20_0000);
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x20_0000, rig.Tdr.Value, large.Value + 0x5000);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa | 1, rig.Tdr.Value, large.Value));
        long before = rig.Module.Td(rig.Tdr)!.ChildCount;
        Hpa free = rig.Aug(Gpa, 1);
        Assert.Equal(before + 512, rig.Module.Td(rig.Tdr)!.ChildCount);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x20_1000, rig.Tdr.Value, free.Value + 0x7000));
    }

    [Fact]
    [Trait("spec", "TC29")]
    [Trait("spec", "TC30")]
    [Trait("spec", "TC31")]
    [Trait("spec", "TC32")]
    [Trait("spec", "I26")]
    public void A_page_of_a_running_TD_is_removed_only_after_block_track_and_the_exit_of_who_entered_before()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Hpa page = rig.Aug(Gpa);
        rig.EnterTd(0);
        rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa);
        Assert.Equal(TdxStatus.GPA_RANGE_NOT_BLOCKED | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value, lp: 1));
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value, lp: 1);
        Assert.Equal(TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value, lp: 1));
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value, lp: 1);
        Assert.Equal(TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value, lp: 1));
        Assert.Equal(TdxStatus.PREVIOUS_TLB_EPOCH_BUSY, rig.Call(TdhLeaf.MEM_TRACK, rig.Tdr.Value, lp: 1));
        rig.Interrupt(0);
        Assert.Equal(page.Value, rig.Must(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value, lp: 1).Rcx);
        Assert.Equal(PageType.NDA, rig.Module.Pamt(page)!.Value.Type);
    }

    [Fact]
    [Trait("spec", "TC46")]
    [Trait("spec", "TM06")]
    public void A_host_that_loses_an_entry_makes_the_guest_step_back_until_a_host_had_it()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        rig.Aug(Gpa);
        rig.EnterTd(0);
        InjectedLock held = rig.Module.TryHold(ModuleLock.SeptEntry, true, rig.Tdr, new Gpa(Gpa), Level.K4)!.Value;
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.RCX, rig.Call(TdhLeaf.MEM_SEPT_RD, Gpa, rig.Tdr.Value, lp: 1));
        rig.Module.Release(held);
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.RCX, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        rig.Must(TdhLeaf.MEM_SEPT_RD, Gpa, rig.Tdr.Value, lp: 1);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        Assert.Equal(0UL, rig.Module.FindSeptEntry(rig.Tdr, new Gpa(Gpa), Level.K4).Raw & ((1UL << 11) | (1UL << 52)));
    }

    [Fact]
    [Trait("spec", "D32")]
    [Trait("spec", "TM01")]
    public void Every_hand_over_stands_in_the_ledger_and_teardown_gives_everything_back()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Hpa page = rig.Aug(Gpa);
        FrameRecord record = rig.Machine.Memory.Record(page.Frame);
        Assert.Equal((FrameUse.Module, (ushort)17, rig.Tdr.Frame), (record.Use, record.Hkid, record.Owner));
        List<Hpa> owned = OwnedPages(rig);
        Assert.Equal(rig.Module.Td(rig.Tdr)!.ChildCount, owned.Count);

        Assert.Equal(TdxStatus.FLUSHVP_NOT_DONE, rig.Call(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value));
        Assert.Equal(TdxStatus.VCPU_NOT_ASSOCIATED, rig.Call(TdhLeaf.VP_FLUSH, rig.Vcpus[0].Value, lp: 1));
        rig.Must(TdhLeaf.VP_FLUSH, rig.Vcpus[0].Value);
        rig.Must(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value);
        Assert.Equal(TdxStatus.TD_KEYS_NOT_CONFIGURED, rig.Call(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value));
        Assert.Equal(TdxStatus.WBCACHE_NOT_COMPLETE, rig.Call(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value));
        rig.OnEachPackage(lp => rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lp));
        rig.Must(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value);
        Assert.Equal(TdxStatus.TD_ASSOCIATED_PAGES_EXIST, rig.Call(TdhLeaf.PHYMEM_PAGE_RECLAIM, rig.Tdr.Value));
        foreach (Hpa each in owned)
            rig.Must(TdhLeaf.PHYMEM_PAGE_RECLAIM, each.Value);
        rig.Must(TdhLeaf.PHYMEM_PAGE_RECLAIM, rig.Tdr.Value);
        Assert.Empty(rig.Module.Tds());
        Assert.Empty(rig.Module.Vcpus());
        Assert.Equal(FrameUse.Kernel, rig.Machine.Ledger.UseOf(page));
        Assert.Empty(OwnedPages(rig));
        rig.BuildTd();
    }

    [Fact]
    [Trait("spec", "PF11")]
    public void The_paths_of_a_fault_and_a_zap_allocate_nothing()
    {
        using ModuleRig rig = new();
        rig.BuildTd(vcpus: 1);
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Hpa[] pages = new Hpa[256];
        for (int i = 0; i < pages.Length; i++)
            pages[i] = rig.Page();
        Round(rig, pages);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Round(rig, pages);
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    private static void Round(ModuleRig rig, Hpa[] pages)
    {
        LogicalProcessor host = rig.Lp(1);
        SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value };
        for (int i = 0; i < pages.Length; i++)
            Check(rig.Module.MemPageAug(host, Gpa + ((ulong)i << 12), rig.Tdr, pages[i], out _, out _));
        if (!rig.Module.BeginEnter(rig.Lp(0), ref registers))
            throw new InvalidOperationException("no entry");
        for (int i = 0; i < pages.Length; i++)
            Check(rig.Module.GuestPageAccept(rig.Lp(0), Gpa + ((ulong)i << 12)));
        for (int i = 0; i < pages.Length; i++)
            Check(rig.Module.MemRangeBlock(host, Gpa + ((ulong)i << 12), rig.Tdr, out _, out _));
        rig.Module.CurrentVmcs(rig.Lp(0))!.Exit = new VmExit { Reason = ExitReason.ExternalInterrupt };
        rig.Module.HandleExit(rig.Lp(0), ref registers);
        Check(rig.Module.MemTrack(host, rig.Tdr));
        for (int i = 0; i < pages.Length; i++)
        {
            Check(rig.Module.MemPageRemove(host, Gpa + ((ulong)i << 12), rig.Tdr, out _, out _));
            Check(rig.Module.PhymemPageWbinvd(host, pages[i], new Hkid(17)));
        }
    }

    private static void Check(TdxStatus status)
    {
        if (status.Value != 0)
            throw new InvalidOperationException(status.ToString());
    }

    private static List<Hpa> OwnedPages(ModuleRig rig)
    {
        List<Hpa> owned = [];
        HpaRange range = rig.Machine.Description.Tdmrs[0].Range;
        for (ulong page = range.Base; page < range.Base + (16 << 20); page += 4096)
        {
            if (rig.Module.Pamt(new Hpa(page)) is { } view && view.Owner == rig.Tdr)
                owned.Add(new Hpa(page));
        }

        return owned;
    }

    private static byte[] Record(string what, ulong gpa)
    {
        byte[] record = new byte[128];
        Encoding.ASCII.GetBytes(what, record);
        BitConverter.TryWriteBytes(record.AsSpan(16), gpa);
        return record;
    }
}
