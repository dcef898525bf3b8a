namespace Tdp.Kernel;

/// <summary>
/// Architectural state of one vCPU at its first entry: 64-bit mode, CPL 0, paging on ("Direct64"). What is not named here is as after reset.
/// All values are raw register images. Source: td-guest 8.3.
/// </summary>
public sealed record EntryState
{
    /// <summary>vCPU index, also in RSI.</summary>
    public required int VcpuIndex { get; init; }

    /// <summary>First instruction: the kernel's entry for vCPU 0, its waiting loop for the others.</summary>
    public required ulong Rip { get; init; }

    /// <summary>Top of this vCPU's boot stack, 16-aligned.</summary>
    public required ulong Rsp { get; init; }

    /// <summary>Root of the page tables that the loader built.</summary>
    public required ulong Cr3 { get; init; }

    /// <summary>GPA width in a TD (48 or 52), 0 in an ordinary VM.</summary>
    public required ulong Rbx { get; init; }

    /// <summary>CR4: PAE, MCE, PGE, OSFXSR, OSXMMEXCPT, and VMXE as a TD reads it.</summary>
    public required ulong Cr4 { get; init; }

    /// <summary>GPA of the boot-info page.</summary>
    public ulong Rdi => GuestAbi.BootInfo;

    /// <summary>vCPU index.</summary>
    public ulong Rsi => (ulong)VcpuIndex;

    /// <summary>Flags: only the fixed bit, so interrupts are off.</summary>
    public ulong Rflags => 0x2;

    /// <summary>CR0: PE MP ET NE WP AM PG.</summary>
    public ulong Cr0 => 0x8005_0033;

    /// <summary>EFER: SCE LME LMA NXE.</summary>
    public ulong Efer => 0xD01;

    /// <summary>XCR0: x87 only.</summary>
    public ulong Xcr0 => 1;

    /// <summary>IA32_PAT after reset.</summary>
    public ulong Pat => 0x0007_0406_0007_0406;

    /// <summary>DR6 after reset.</summary>
    public ulong Dr6 => 0xFFFF_0FF0;

    /// <summary>DR7 after reset.</summary>
    public ulong Dr7 => 0x400;

    /// <summary>CS selector; base 0, limit 4 GiB - 1.</summary>
    public ulong CsSelector => 0x08;

    /// <summary>CS access rights in VMCS form: present, DPL 0, execute/read, accessed, L, G.</summary>
    public ulong CsAccess => 0xA09B;

    /// <summary>Selector of SS, DS and ES; base 0, limit 4 GiB - 1.</summary>
    public ulong DataSelector => 0x10;

    /// <summary>Access rights of SS, DS and ES in VMCS form: present, DPL 0, read/write, accessed, D/B, G.</summary>
    public ulong DataAccess => 0xC093;

    /// <summary>Limit of CS, SS, DS and ES.</summary>
    public ulong FlatLimit => 0xFFFF_FFFF;

    /// <summary>Selector of FS and GS; their bases are 0.</summary>
    public ulong FsGsSelector => 0;

    /// <summary>LDTR access rights: unusable.</summary>
    public ulong LdtrAccess => 0x1_0082;

    /// <summary>TR access rights: busy 64-bit TSS; selector, base and limit 0 until the kernel executes LTR.</summary>
    public ulong TrAccess => 0x8B;

    /// <summary>Limit of GDTR and IDTR; both bases are 0 until the kernel loads its tables.</summary>
    public ulong TableLimit => 0xFFFF;

    /// <summary>General register by hardware number (0 RAX to 15 R15).</summary>
    /// <param name="number">0 to 15.</param>
    /// <returns>The register's value at entry; 0 for those that the protocol does not name.</returns>
    public ulong Register(int number) => number switch
    {
        3 => Rbx,
        4 => Rsp,
        6 => Rsi,
        7 => Rdi,
        >= 0 and <= 15 => 0,
        _ => throw new ArgumentOutOfRangeException(nameof(number)),
    };
}
