using System.Globalization;

namespace Tdp.Harness.Conformance;

/// <summary>Says what the operands of a recorded call are (tdx-module 1.6, 1.7).</summary>
internal static class ModuleOperands
{
    private const ulong HpaBits = 0x000F_FFFF_FFFF_F000;

    /// <summary>The operands that a call was given, in the order of the registers.</summary>
    public static List<ReplayOperand> Decode(ModuleCall call)
    {
        var operands = new List<ReplayOperand>();
        if (call.Kind is CallKind.Seamcall or CallKind.Tdcall)
        {
            SeamRegisters registers = call.Before;
            ulong version = (registers.Rax >> 16) & 0xFF;
            if (call.Operation == "RAW")
                operands.Add(new ReplayOperand("rax", Hex(registers.Rax), Text($"leaf {(ushort)registers.Rax}, version {version}")));
            else if (version != 0)
                operands.Add(new ReplayOperand("version", version.ToString(CultureInfo.InvariantCulture), null));
            for (int i = 1; i < 16; i++)
            {
                Gpr register = (Gpr)i;
                string name = ModuleCall.NameOf(register);
                if (registers[register] != 0 || call.Has(name))
                    operands.Add(new ReplayOperand(name, Hex(registers[register]), Meaning(call, register, registers[register])));
            }
        }
        else
        {
            foreach (System.Text.Json.JsonProperty input in call.Record.Inputs.Json.EnumerateObject())
                operands.Add(new ReplayOperand(input.Name, input.Value.ToString(), null));
        }

        return operands;
    }

    private static string? Meaning(ModuleCall call, Gpr register, ulong value)
    {
        if (call.Operation == "RAW")
            return null;
        return call.Kind == CallKind.Tdcall ? Guest((TdgLeaf)(ushort)call.Before.Rax, register, value) : Host((TdhLeaf)(ushort)call.Before.Rax, register, value);
    }

    private static string? Host(TdhLeaf leaf, Gpr register, ulong value) => (leaf, register) switch
    {
        (TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_RELOCATE or TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_RANGE_UNBLOCK
            or TdhLeaf.MEM_PAGE_DEMOTE or TdhLeaf.MEM_PAGE_PROMOTE or TdhLeaf.MEM_PAGE_REMOVE or TdhLeaf.MEM_SEPT_REMOVE or TdhLeaf.MEM_SEPT_RD, Gpr.Rcx) => Page(value),
        (TdhLeaf.MEM_RD or TdhLeaf.MEM_WR or TdhLeaf.MR_EXTEND, Gpr.Rcx) => "GPA",
        (TdhLeaf.MEM_TRACK or TdhLeaf.MNG_CREATE or TdhLeaf.MNG_KEY_CONFIG or TdhLeaf.MNG_INIT or TdhLeaf.MNG_VPFLUSHDONE or TdhLeaf.MNG_KEY_FREEID or TdhLeaf.MNG_RD
            or TdhLeaf.MNG_WR or TdhLeaf.MR_FINALIZE, Gpr.Rcx) => "TDR",
        (TdhLeaf.VP_ENTER, Gpr.Rcx) => Text($"TDVPR 0x{value & HpaBits:x}{((value >> 52) & 1, (value >> 53) & 1) switch { (1, 0) => ", host recoverability hint", (0, 0) => string.Empty, _ => ", resume L1" }}"),
        (TdhLeaf.VP_CREATE or TdhLeaf.VP_INIT or TdhLeaf.VP_FLUSH or TdhLeaf.VP_RD or TdhLeaf.VP_WR, Gpr.Rcx) => "TDVPR",
        (TdhLeaf.MNG_ADDCX or TdhLeaf.VP_ADDCX, Gpr.Rcx) => "TDCX page",
        (TdhLeaf.PHYMEM_PAGE_RDMD or TdhLeaf.PHYMEM_PAGE_RECLAIM or TdhLeaf.PHYMEM_PAGE_WBINVD, Gpr.Rcx) => "page",
        (TdhLeaf.PHYMEM_CACHE_WB, Gpr.Rcx) => value == 0 ? "start" : "resume",
        (TdhLeaf.SYS_TDMR_INIT, Gpr.Rcx) => "TDMR base",
        (TdhLeaf.SYS_CONFIG, Gpr.Rcx) => "array of TDMR_INFO addresses",
        (TdhLeaf.SYS_CONFIG, Gpr.Rdx) => "TDMRs",
        (TdhLeaf.SYS_CONFIG, Gpr.R8) or (TdhLeaf.MNG_CREATE, Gpr.Rdx) => "HKID",
        (TdhLeaf.MNG_INIT, Gpr.Rdx) => "TD_PARAMS",
        (TdhLeaf.MNG_RD or TdhLeaf.MNG_WR or TdhLeaf.VP_RD or TdhLeaf.VP_WR or TdhLeaf.SYS_RD, Gpr.Rdx) => "field",
        (TdhLeaf.MNG_WR or TdhLeaf.VP_WR, Gpr.R8) or (TdhLeaf.MEM_WR, Gpr.R8) => "value",
        (TdhLeaf.MNG_WR or TdhLeaf.VP_WR, Gpr.R9) => "mask",
        (TdhLeaf.VP_ADDCX, Gpr.Rdx) => "TDVPR",
        (TdhLeaf.VP_INIT, Gpr.Rdx) => "initial RCX of the guest",
        (TdhLeaf.MEM_SEPT_ADD, Gpr.Rdx) => (value & 1) != 0 ? "TDR, an existing page is allowed" : "TDR",
        (TdhLeaf.MNG_ADDCX or TdhLeaf.VP_CREATE or TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_PAGE_RELOCATE or TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_RANGE_UNBLOCK
            or TdhLeaf.MEM_PAGE_DEMOTE or TdhLeaf.MEM_PAGE_PROMOTE or TdhLeaf.MEM_PAGE_REMOVE or TdhLeaf.MEM_SEPT_REMOVE or TdhLeaf.MEM_SEPT_RD or TdhLeaf.MEM_RD or TdhLeaf.MEM_WR
            or TdhLeaf.MR_EXTEND, Gpr.Rdx) => "TDR",
        (TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_DEMOTE, Gpr.R8) => "new Secure EPT page",
        (TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_PAGE_RELOCATE, Gpr.R8) => "page",
        (TdhLeaf.MEM_PAGE_ADD, Gpr.R9) => "source page",
        _ => null,
    };

    private static string? Guest(TdgLeaf leaf, Gpr register, ulong value) => (leaf, register) switch
    {
        (TdgLeaf.MEM_PAGE_ACCEPT or TdgLeaf.MEM_PAGE_ATTR_WR, Gpr.Rcx) => Page(value),
        (TdgLeaf.MEM_PAGE_ATTR_RD or TdgLeaf.MR_RTMR_EXTEND or TdgLeaf.MR_REPORT or TdgLeaf.MR_VERIFYREPORT, Gpr.Rcx) => "GPA",
        (TdgLeaf.VP_VMCALL, Gpr.Rcx) => Text($"passes registers 0x{value & 0xFFFF:x}, XMM 0x{(value >> 16) & 0xFFFF:x}"),
        (TdgLeaf.VP_VMCALL, Gpr.R11) => "sub-function",
        (TdgLeaf.VM_RD or TdgLeaf.VM_WR or TdgLeaf.VP_RD or TdgLeaf.VP_WR or TdgLeaf.SYS_RD, Gpr.Rdx) => "field",
        (TdgLeaf.VM_WR or TdgLeaf.VP_WR, Gpr.R8) => "value",
        (TdgLeaf.VM_WR or TdgLeaf.VP_WR, Gpr.R9) => "mask",
        _ => null,
    };

    private static string Page(ulong value) => Text($"GPA 0x{value & ~7UL:x}, level {value & 7}{((value & 7) <= 4 ? $" ({Level.FromTdx((int)(value & 7))})" : string.Empty)}");

    private static string Hex(ulong value) => Text($"0x{value:x}");

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
