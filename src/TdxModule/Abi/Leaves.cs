namespace Tdp.Module;

/// <summary>SEAMCALL leaf numbers: RAX bits 15:0 (tdx-module 1.6).</summary>
public enum TdhLeaf : ushort
{
    /// <summary>TDH.VP.ENTER.</summary>
    VP_ENTER = 0,

    /// <summary>TDH.MNG.ADDCX.</summary>
    MNG_ADDCX = 1,

    /// <summary>TDH.MEM.PAGE.ADD.</summary>
    MEM_PAGE_ADD = 2,

    /// <summary>TDH.MEM.SEPT.ADD.</summary>
    MEM_SEPT_ADD = 3,

    /// <summary>TDH.VP.ADDCX.</summary>
    VP_ADDCX = 4,

    /// <summary>TDH.MEM.PAGE.RELOCATE.</summary>
    MEM_PAGE_RELOCATE = 5,

    /// <summary>TDH.MEM.PAGE.AUG.</summary>
    MEM_PAGE_AUG = 6,

    /// <summary>TDH.MEM.RANGE.BLOCK.</summary>
    MEM_RANGE_BLOCK = 7,

    /// <summary>TDH.MNG.KEY.CONFIG.</summary>
    MNG_KEY_CONFIG = 8,

    /// <summary>TDH.MNG.CREATE.</summary>
    MNG_CREATE = 9,

    /// <summary>TDH.VP.CREATE.</summary>
    VP_CREATE = 10,

    /// <summary>TDH.MNG.RD.</summary>
    MNG_RD = 11,

    /// <summary>TDH.MEM.RD.</summary>
    MEM_RD = 12,

    /// <summary>TDH.MNG.WR.</summary>
    MNG_WR = 13,

    /// <summary>TDH.MEM.WR.</summary>
    MEM_WR = 14,

    /// <summary>TDH.MEM.PAGE.DEMOTE.</summary>
    MEM_PAGE_DEMOTE = 15,

    /// <summary>TDH.MR.EXTEND.</summary>
    MR_EXTEND = 16,

    /// <summary>TDH.MR.FINALIZE.</summary>
    MR_FINALIZE = 17,

    /// <summary>TDH.VP.FLUSH.</summary>
    VP_FLUSH = 18,

    /// <summary>TDH.MNG.VPFLUSHDONE.</summary>
    MNG_VPFLUSHDONE = 19,

    /// <summary>TDH.MNG.KEY.FREEID.</summary>
    MNG_KEY_FREEID = 20,

    /// <summary>TDH.MNG.INIT.</summary>
    MNG_INIT = 21,

    /// <summary>TDH.VP.INIT.</summary>
    VP_INIT = 22,

    /// <summary>TDH.MEM.PAGE.PROMOTE.</summary>
    MEM_PAGE_PROMOTE = 23,

    /// <summary>TDH.PHYMEM.PAGE.RDMD.</summary>
    PHYMEM_PAGE_RDMD = 24,

    /// <summary>TDH.MEM.SEPT.RD.</summary>
    MEM_SEPT_RD = 25,

    /// <summary>TDH.VP.RD.</summary>
    VP_RD = 26,

    /// <summary>TDH.MNG.KEY.RECLAIMID.</summary>
    MNG_KEY_RECLAIMID = 27,

    /// <summary>TDH.PHYMEM.PAGE.RECLAIM.</summary>
    PHYMEM_PAGE_RECLAIM = 28,

    /// <summary>TDH.MEM.PAGE.REMOVE.</summary>
    MEM_PAGE_REMOVE = 29,

    /// <summary>TDH.MEM.SEPT.REMOVE.</summary>
    MEM_SEPT_REMOVE = 30,

    /// <summary>TDH.SYS.KEY.CONFIG.</summary>
    SYS_KEY_CONFIG = 31,

    /// <summary>TDH.SYS.INFO.</summary>
    SYS_INFO = 32,

    /// <summary>TDH.SYS.INIT.</summary>
    SYS_INIT = 33,

    /// <summary>TDH.SYS.RD.</summary>
    SYS_RD = 34,

    /// <summary>TDH.SYS.LP.INIT.</summary>
    SYS_LP_INIT = 35,

    /// <summary>TDH.SYS.TDMR.INIT.</summary>
    SYS_TDMR_INIT = 36,

    /// <summary>TDH.SYS.RDALL.</summary>
    SYS_RDALL = 37,

    /// <summary>TDH.MEM.TRACK.</summary>
    MEM_TRACK = 38,

    /// <summary>TDH.MEM.RANGE.UNBLOCK.</summary>
    MEM_RANGE_UNBLOCK = 39,

    /// <summary>TDH.PHYMEM.CACHE.WB.</summary>
    PHYMEM_CACHE_WB = 40,

    /// <summary>TDH.PHYMEM.PAGE.WBINVD.</summary>
    PHYMEM_PAGE_WBINVD = 41,

    /// <summary>TDH.VP.WR.</summary>
    VP_WR = 43,

    /// <summary>TDH.SYS.LP.SHUTDOWN.</summary>
    SYS_LP_SHUTDOWN = 44,

    /// <summary>TDH.SYS.CONFIG.</summary>
    SYS_CONFIG = 45,

    /// <summary>TDH.SYS.SHUTDOWN.</summary>
    SYS_SHUTDOWN = 52,

    /// <summary>TDH.SYS.UPDATE.</summary>
    SYS_UPDATE = 53,
}

/// <summary>TDCALL leaf numbers: RAX bits 15:0 (tdx-module 1.7).</summary>
public enum TdgLeaf : ushort
{
    /// <summary>TDG.VP.VMCALL.</summary>
    VP_VMCALL = 0,

    /// <summary>TDG.VP.INFO.</summary>
    VP_INFO = 1,

    /// <summary>TDG.MR.RTMR.EXTEND.</summary>
    MR_RTMR_EXTEND = 2,

    /// <summary>TDG.VP.VEINFO.GET.</summary>
    VP_VEINFO_GET = 3,

    /// <summary>TDG.MR.REPORT.</summary>
    MR_REPORT = 4,

    /// <summary>TDG.VP.CPUIDVE.SET.</summary>
    VP_CPUIDVE_SET = 5,

    /// <summary>TDG.MEM.PAGE.ACCEPT.</summary>
    MEM_PAGE_ACCEPT = 6,

    /// <summary>TDG.VM.RD.</summary>
    VM_RD = 7,

    /// <summary>TDG.VM.WR.</summary>
    VM_WR = 8,

    /// <summary>TDG.VP.RD.</summary>
    VP_RD = 9,

    /// <summary>TDG.VP.WR.</summary>
    VP_WR = 10,

    /// <summary>TDG.SYS.RD.</summary>
    SYS_RD = 11,

    /// <summary>TDG.SYS.RDALL.</summary>
    SYS_RDALL = 12,

    /// <summary>TDG.MR.VERIFYREPORT.</summary>
    MR_VERIFYREPORT = 22,

    /// <summary>TDG.MEM.PAGE.ATTR.RD.</summary>
    MEM_PAGE_ATTR_RD = 23,

    /// <summary>TDG.MEM.PAGE.ATTR.WR.</summary>
    MEM_PAGE_ATTR_WR = 24,
}

/// <summary>Names of leaves as the specifications write them.</summary>
public static class LeafNames
{
    /// <summary>The full name, such as <c>TDH.MEM.PAGE.AUG</c>.</summary>
    public static string FullName(this TdhLeaf leaf) => Enum.IsDefined(leaf) ? "TDH." + leaf.ToString().Replace('_', '.') : $"TDH leaf {(int)leaf}";

    /// <summary>The full name, such as <c>TDG.MEM.PAGE.ACCEPT</c>.</summary>
    public static string FullName(this TdgLeaf leaf) => Enum.IsDefined(leaf) ? "TDG." + leaf.ToString().Replace('_', '.') : $"TDG leaf {(int)leaf}";
}
