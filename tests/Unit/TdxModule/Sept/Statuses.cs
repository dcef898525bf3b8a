using Tdp.Module;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>Names as the tables of these tests use them, with the values of tdx-module 1.4 and 1.5: a second source beside the module's own constants.</summary>
internal static class Statuses
{
    private static readonly Dictionary<string, ulong> s_classes = new(StringComparer.Ordinal)
    {
        ["SUCCESS"] = 0,
        ["INTERRUPTED_RESTARTABLE"] = 0x8000_0004_0000_0000,
        ["OPERAND_INVALID"] = 0xC000_0100_0000_0000,
        ["OPERAND_ADDR_RANGE_ERROR"] = 0xC000_0101_0000_0000,
        ["OPERAND_BUSY"] = 0x8000_0200_0000_0000,
        ["PREVIOUS_TLB_EPOCH_BUSY"] = 0x8000_0201_0000_0000,
        ["SYS_BUSY"] = 0x8000_0202_0000_0000,
        ["PAGE_METADATA_INCORRECT"] = 0xC000_0300_0000_0000,
        ["SYS_NOT_READY"] = 0xC000_0505_0000_0000,
        ["SYS_SHUTDOWN"] = 0xC000_0506_0000_0000,
        ["TD_FATAL"] = 0xE000_0604_0000_0000,
        ["TD_NON_DEBUG"] = 0xC000_0605_0000_0000,
        ["TDCS_NOT_ALLOCATED"] = 0xC000_0606_0000_0000,
        ["OP_STATE_INCORRECT"] = 0xC000_0608_0000_0000,
        ["TD_KEYS_NOT_CONFIGURED"] = 0x8000_0810_0000_0000,
        ["EPT_WALK_FAILED"] = 0xC000_0B00_0000_0000,
        ["EPT_ENTRY_NOT_PRESENT"] = 0xC000_0B03_0000_0000,
        ["GPA_RANGE_NOT_BLOCKED"] = 0xC000_0B06_0000_0000,
        ["GPA_RANGE_ALREADY_BLOCKED"] = 0x0000_0B07_0000_0000,
        ["TLB_TRACKING_NOT_DONE"] = 0xC000_0B08_0000_0000,
        ["EPT_INVALID_PROMOTE_CONDITIONS"] = 0xC000_0B09_0000_0000,
        ["PAGE_ALREADY_ACCEPTED"] = 0x0000_0B0A_0000_0000,
        ["PAGE_SIZE_MISMATCH"] = 0xC000_0B0B_0000_0000,
        ["EPT_ENTRY_STATE_INCORRECT"] = 0xC000_0B0D_0000_0000,
        ["EPT_PAGE_NOT_FREE"] = 0xC000_0B0E_0000_0000,
    };

    private static readonly Dictionary<string, uint> s_operands = new(StringComparer.Ordinal)
    {
        ["RAX"] = 0,
        ["RCX"] = 1,
        ["RDX"] = 2,
        ["R8"] = 8,
        ["R9"] = 9,
        ["R10"] = 10,
        ["R11"] = 11,
        ["TDR"] = 128,
        ["SEPT_TREE"] = 146,
        ["RTMR"] = 168,
        ["TD_EPOCH"] = 169,
        ["OP_STATE"] = 172,
        ["TDMR"] = 185,
        ["KOT"] = 186,
        ["WBCACHE"] = 188,
        ["0"] = 0,
        ["1"] = 1,
        ["2"] = 2,
    };

    /// <summary>The status behind a name such as <c>OPERAND_BUSY|SEPT_TREE</c>; <paramref name="level"/> stands for the operand <c>level</c>.</summary>
    public static TdxStatus Parse(string text, int level = 0)
    {
        string[] parts = text.Split('|');
        uint operand = parts.Length == 1 ? 0 : parts[1] == "level" ? (uint)level : s_operands[parts[1]];
        return new TdxStatus(s_classes[parts[0]] | operand);
    }

    /// <summary>The name of a status as the tables write it: nothing behind the bar where there is no operand, <c>level</c> where there is one.</summary>
    public static string Name(TdxStatus status)
    {
        foreach ((string name, ulong value) in s_classes)
        {
            if (value != (status.Value & 0xFFFF_FFFF_0000_0000))
                continue;
            bool bare = name is "SUCCESS" or "INTERRUPTED_RESTARTABLE" or "PREVIOUS_TLB_EPOCH_BUSY" or "SYS_BUSY" or "SYS_NOT_READY" or "SYS_SHUTDOWN" or "TD_FATAL"
                or "TD_NON_DEBUG" or "TDCS_NOT_ALLOCATED" or "OP_STATE_INCORRECT" or "TD_KEYS_NOT_CONFIGURED";
            bool byLevel = name is "PAGE_ALREADY_ACCEPTED" or "PAGE_SIZE_MISMATCH";
            return bare ? name : byLevel ? $"{name}|level" : $"{name}|{Operand(status.Details)}";
        }

        return status.ToString();
    }

    private static string Operand(uint details)
    {
        foreach ((string name, uint value) in s_operands)
        {
            if (value == details)
                return name;
        }

        return details.ToString(System.Globalization.CultureInfo.InvariantCulture);
    }
}
