using System.Globalization;
using System.Linq;

namespace Tdp.Harness.Conformance;

/// <summary>The Secure EPT entries and PAMT entries that a call was about, as they are after it.</summary>
internal static class ModuleEntries
{
    /// <summary>One line each: the way through the Secure EPT to the address of the call, then the pages named by the call and the page the way ends at.</summary>
    public static List<string> Involved(ModuleCall call, TdxModule module, RecordedModuleState state)
    {
        var lines = new List<string>();
        var pages = new SortedSet<ulong>();
        SeamRegisters registers = call.Before;
        if (call.Kind == CallKind.Seamcall)
        {
            for (int i = 1; i < 16; i++)
                AddPage(pages, module, registers[(Gpr)i]);
        }

        if (AddressOf(call, module) is (ulong tdr, ulong gpa, int level))
            Walk(lines, pages, module, state, tdr, gpa, level);
        foreach (ulong page in pages)
        {
            if (module.Pamt(new Hpa(page)) is { } found)
            {
                string lockBits = (found.LockBits & ~(uint)TryLock.Biased) == 0 ? string.Empty : Text($", lock 0x{found.LockBits:x}");
                string recorded = state.Recorded(page) is { } text ? $"; recorded {text}" : string.Empty;
                lines.Add(Text($"PAMT 0x{page:x}: {found.Type}, owner 0x{found.Owner.Value:x}, {found.Level}, BEPOCH {found.Bepoch}") + lockBits + recorded);
            }
        }

        return lines;
    }

    private static void Walk(List<string> lines, SortedSet<ulong> pages, TdxModule module, RecordedModuleState state, ulong tdr, ulong gpa, int level)
    {
        if (module.Td(new Hpa(tdr)) is not { Eptp: not 0 } td)
            return;
        for (Level at = td.RootLevel; ; at = at.Down)
        {
            SeptView view = module.FindSeptEntry(new Hpa(tdr), new Gpa(gpa), at);
            if (view.Level != at)
                return;
            SeptRow recorded = state.Recorded(tdr, view.Gpa.Value, at.Tdx);
            var found = new SeptRow(view.State, view.Hpa.Value, view.AcceptedPages);
            string other = (found.State == SeptState.FREE ? SeptRow.Free : found) == recorded ? string.Empty : $"; recorded {recorded}";
            lines.Add(Text($"Secure EPT of 0x{tdr:x}, level {at.Tdx} ({at}), GPA 0x{view.Gpa.Value:x}: {found}, entry 0x{view.Raw:x}") + other);
            if (at.Tdx == level || at == Level.K4)
            {
                AddPage(pages, module, view.Hpa.Value);
                return;
            }
        }
    }

    private static (ulong Tdr, ulong Gpa, int Level)? AddressOf(ModuleCall call, TdxModule module)
    {
        if (call.Kind == CallKind.Seamcall)
        {
            SeamRegisters r = call.Before;
            return (TdhLeaf)(ushort)r.Rax switch
            {
                TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_RELOCATE or TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_RANGE_UNBLOCK
                    or TdhLeaf.MEM_PAGE_DEMOTE or TdhLeaf.MEM_PAGE_PROMOTE or TdhLeaf.MEM_PAGE_REMOVE or TdhLeaf.MEM_SEPT_REMOVE or TdhLeaf.MEM_SEPT_RD
                    => (r.Rdx & ~0xFFFUL, r.Rcx & ~0xFFFUL, (int)(r.Rcx & 7)),
                TdhLeaf.MEM_RD or TdhLeaf.MEM_WR or TdhLeaf.MR_EXTEND => (r.Rdx & ~0xFFFUL, r.Rcx & ~0xFFFUL, 0),
                _ => null,
            };
        }

        // The TD whose vCPU is associated with the processor and ran there last.
        foreach (VcpuView vcpu in module.Vcpus().Where(v => v.AssociatedLp == call.Lp).OrderByDescending(v => v.State == TdVcpuState.ACTIVE))
        {
            if (call.Operation == "GUEST.ACCESS")
                return (vcpu.Tdr.Value, call.In("gpa") & ~0xFFFUL, 0);
            if (call.Operation == TdgLeaf.MEM_PAGE_ACCEPT.FullName())
                return (vcpu.Tdr.Value, call.Before.Rcx & ~0xFFFUL, (int)(call.Before.Rcx & 7));
        }

        return null;
    }

    private static void AddPage(SortedSet<ulong> pages, TdxModule module, ulong value)
    {
        ulong page = value & ~0xFFFUL;
        if (page != 0 && module.Pamt(new Hpa(page)) is not null)
            pages.Add(page);
    }

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
