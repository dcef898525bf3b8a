namespace Tdp.Module;

/// <summary>Fields of a vCPU, in table order: VMCS, then TDVPS (tdx-module 1.9a). Fields of L2 VMs do not exist without L2 VMs.</summary>
internal static class VpFields
{
    private const ulong M1 = 0xFF;
    private const ulong M2 = 0xFFFF;
    private const ulong M4 = 0xFFFF_FFFF;
    private const ulong M8 = ulong.MaxValue;

    // Id, fields, elements, bytes, stride; masks: host production read, write; host debug read, write; guest read, write.
    public static readonly FieldEntry[] Table =
    [
        new(0x0024000100000000, 1, 1, 2, 2, 0, 0, M2, 0, 0, 0), // VPID
        new(0x0024000100000002, 1, 1, 2, 2, M2, M2, M2, M2, 0, 0), // Posted-interrupt notification vector
        new(0x0024000100000004, 1, 1, 2, 2, 0, 0, M2, 0, 0, 0), // EPTP index
        new(0x0024000100000006, 1, 1, 2, 2, 0, 0, M2, 0, 0, 0), // HLAT prefix size
        new(0x0024000100000800, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest ES selector
        new(0x0024000100000802, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest CS selector
        new(0x0024000100000804, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest SS selector
        new(0x0024000100000806, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest DS selector
        new(0x0024000100000808, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest FS selector
        new(0x002400010000080A, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest GS selector
        new(0x002400010000080C, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest LDTR selector
        new(0x002400010000080E, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest TR selector
        new(0x0024000100000810, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest Interrupt Status
        new(0x0024000100000812, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // PML Index
        new(0x0024000100000814, 1, 1, 2, 2, 0, 0, M2, M2, 0, 0), // Guest UINV
        new(0x0024000300002000, 2, 1, 8, 2, 0, 0, M8, 0, 0, 0), // I/O-Bitmap Address n
        new(0x0024000300002004, 1, 1, 8, 2, M8, 0, M8, 0, 0, 0), // MSR-Bitmap Address
        new(0x0024000300002006, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // VM-exit MSR-store address
        new(0x0024000300002008, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // VM-exit MSR-load address
        new(0x002400030000200A, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // VM-entry MSR-load address
        new(0x002400030000200C, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0), // Executive-VMCS Pointer
        new(0x002400030000200E, 1, 1, 8, 2, M8, 0, M8, 0xfffffffffffff000, 0, 0), // PML address
        new(0x0024000300002010, 1, 1, 8, 2, M8, 0, M8, M8, 0, 0), // Time-Stamp Counter Offset
        new(0x0024000300002012, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0), // Virtual-APIC address
        new(0x0024000300002014, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // APIC-access address
        new(0x0024000300002016, 1, 1, 8, 2, M8, 0xffffffffffffffc0, M8, 0xffffffffffffffc0, 0, 0), // Posted-interrupt descriptor address
        new(0x0024000300002018, 1, 1, 8, 2, M8, 0, M8, 0, 0, 0), // VM-Function Controls
        new(0x002400030000201A, 1, 1, 8, 2, M8, 0, M8, 0, 0, 0), // EPTP
        new(0x002400030000201C, 4, 1, 8, 2, 0, 0, M8, 0, 0, 0), // EOI-exit bitmap n
        new(0x0024000300002024, 1, 1, 8, 2, M8, 0, M8, 0, 0, 0), // EPTP-list address
        new(0x0024000300002026, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // VMREAD-bitmap address
        new(0x0024000300002028, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // VMWRITE-bitmap address
        new(0x002400030000202A, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // Virtualization-exception information address
        new(0x002400030000202C, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // XSS-Exiting Bitmap
        new(0x002400030000202E, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // ENCLS-Exiting Bitmap
        new(0x0024000300002032, 1, 1, 8, 2, M8, 0, M8, M8, 0, 0), // Time-Stamp Counter Multiplier
        new(0x0024000300002034, 1, 1, 8, 2, 0, 0, M8, 1, 0, 0), // Tertiary Processor-Based VM-Execution Controls
        new(0x0024000300002036, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // ENCLV-Exiting Bitmap
        new(0x0024000300002038, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // low PASID directory address
        new(0x002400030000203A, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // high PASID directory address
        new(0x002400030000203C, 1, 1, 8, 2, 0xffffffffff000, 0xffffffffff000, M8, 0xffffffffff000, 0, 0), // Shared EPTP
        new(0x002400030000203E, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // PCONFIG-Exiting Bitmap
        new(0x0024000300002040, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // HLAT pointer
        new(0x002400030000204A, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // IA32_SPEC_CTRL mask
        new(0x002400030000204C, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // IA32_SPEC_CTRL shadow
        new(0x0024000300002400, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // Guest-physical Address
        new(0x0024000300002800, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0), // VMCS Link Pointer
        new(0x0024000300002802, 1, 1, 8, 2, 0, 0, M8, 0xffc7, 0, 0), // IA32_DEBUGCTL
        new(0x0024000300002804, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_PAT
        new(0x0024000300002806, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_EFER
        new(0x0024000300002808, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_PERF_GLOBAL_CTRL
        new(0x002400030000280A, 4, 1, 8, 2, 0, 0, M8, 0, 0, 0), // PDPTEn
        new(0x0024000300002814, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_RTIT_CTL
        new(0x0024000300002816, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_LBR_CTL
        new(0x0024000300002818, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_GUEST_PKRS
        new(0x0024000200004000, 1, 1, 4, 2, 0x80, 0x80, M4, 0x80, 0, 0), // Pin-Based VM-Execution Controls
        new(0x0024000200004002, 1, 1, 4, 2, 0, 0, M4, 0x69999a04, 0, 0), // Primary Processor-Based VM-Execution Controls
        new(0x0024000200004004, 1, 1, 4, 2, 0, 0, M4, 0xfffbffff, 0, 0), // Exception Bitmap
        new(0x0024000200004006, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Page-fault error-code mask
        new(0x0024000200004008, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Page-fault error-code match
        new(0x002400020000400A, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // CR3-Target Count
        new(0x002400020000400C, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-Exit Controls
        new(0x002400020000400E, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-exit MSR-store count
        new(0x0024000200004010, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-exit MSR-load count
        new(0x0024000200004012, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-Entry Controls
        new(0x0024000200004014, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-entry MSR-load count
        new(0x0024000200004016, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-entry interruption information
        new(0x0024000200004018, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-entry exception error code
        new(0x002400020000401A, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-entry instruction length
        new(0x002400020000401C, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // TPR threshold
        new(0x002400020000401E, 1, 1, 4, 2, 0xc0000000, 0xc0000000, M4, 0xc0130c04, 0, 0), // Secondary Processor-Based VM-Execution Controls
        new(0x0024000200004020, 1, 1, 4, 2, M4, 0, M4, M4, 0, 0), // PLE_GAP
        new(0x0024000200004022, 1, 1, 4, 2, M4, 0, M4, M4, 0, 0), // PLE_Window
        new(0x0024000200004024, 1, 1, 4, 2, M4, M4, M4, M4, 0, 0), // Instruction Timeout Control
        new(0x0024000200004026, 1, 1, 4, 2, M4, 0, M4, 0, 0, 0), // TD HKID
        new(0x0024000200004400, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-instruction error
        new(0x0024000200004402, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // Exit reason
        new(0x0024000200004404, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-exit interruption information
        new(0x0024000200004406, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-exit interruption error code
        new(0x0024000200004408, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // IDT-vectoring information
        new(0x002400020000440A, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // IDT-vectoring error code
        new(0x002400020000440C, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-exit instruction length
        new(0x002400020000440E, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // VM-exit instruction information
        new(0x0024000200004800, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest ES limit
        new(0x0024000200004802, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest CS limit
        new(0x0024000200004804, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest SS limit
        new(0x0024000200004806, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest DS limit
        new(0x0024000200004808, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest FS limit
        new(0x002400020000480A, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest GS limit
        new(0x002400020000480C, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest LDTR limit
        new(0x002400020000480E, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest TR limit
        new(0x0024000200004810, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest GDTR limit
        new(0x0024000200004812, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest IDTR limit
        new(0x0024000200004814, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest ES access rights
        new(0x0024000200004816, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest CS access rights
        new(0x0024000200004818, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest SS access rights
        new(0x002400020000481A, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest DS access rights
        new(0x002400020000481C, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest FS access rights
        new(0x002400020000481E, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest GS access rights
        new(0x0024000200004820, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest LDTR access rights
        new(0x0024000200004822, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Guest TR access rights
        new(0x0024000200004824, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // Interruptibility State
        new(0x0024000200004826, 1, 1, 4, 2, 0, 0, M4, 0, 0, 0), // Activity State
        new(0x0024000200004828, 1, 1, 4, 2, 0, 0, 0, 0, 0, 0), // Guest SMBASE
        new(0x002400020000482A, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // IA32_SYSENTER_CS
        new(0x002400020000482E, 1, 1, 4, 2, 0, 0, M4, M4, 0, 0), // VMX-Preemption Timer Value
        new(0x0024000300006000, 1, 1, 8, 2, 0, 0, M8, 0xffffffff9fffffde, 0, 0), // CR0 Guest/Host Mask
        new(0x0024000300006002, 1, 1, 8, 2, 0, 0, M8, 0xffffffffffff9fbf, 0, 0), // CR4 Guest/Host Mask
        new(0x0024000300006004, 1, 1, 8, 2, 0, 0, M8, 0xffffffffffffffde, 0, 0), // CR0 Read Shadow
        new(0x0024000300006006, 1, 1, 8, 2, 0, 0, M8, 0xffffffffffffffbf, 0, 0), // CR4 Read Shadow
        new(0x0024000300006008, 4, 1, 8, 2, 0, 0, M8, M8, 0, 0), // CR3-Target Values
        new(0x0024000300006400, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // Exit qualification
        new(0x0024000300006402, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // I/O RCX
        new(0x0024000300006404, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // I/O RSI
        new(0x0024000300006406, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // I/O RDI
        new(0x0024000300006408, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // I/O RIP
        new(0x002400030000640A, 1, 1, 8, 2, 0, 0, M8, 0, 0, 0), // Guest-Linear Address
        new(0x0024000300006800, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest CR0
        new(0x0024000300006802, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest CR3
        new(0x0024000300006804, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest CR4
        new(0x0024000300006806, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest ES base
        new(0x0024000300006808, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest CS base
        new(0x002400030000680A, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest SS base
        new(0x002400030000680C, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest DS base
        new(0x002400030000680E, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest FS base
        new(0x0024000300006810, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest GS base
        new(0x0024000300006812, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest LDTR base
        new(0x0024000300006814, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest TR base
        new(0x0024000300006816, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest GDTR base
        new(0x0024000300006818, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest IDTR base
        new(0x002400030000681A, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest DR7
        new(0x002400030000681C, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest RSP
        new(0x002400030000681E, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest RIP
        new(0x0024000300006820, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Guest RFLAGS
        new(0x0024000300006822, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // Pending Debug Exceptions
        new(0x0024000300006824, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_SYSENTER_ESP
        new(0x0024000300006826, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // IA32_SYSENTER_EIP
        new(0x0024000300006828, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // GUEST_IA32_S_CET
        new(0x002400030000682A, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // GUEST_SSP
        new(0x002400030000682C, 1, 1, 8, 2, 0, 0, M8, M8, 0, 0), // GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR
        new(0x0024000300006C08, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0), // Host GS Base
        new(0x0024000300006C14, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0), // Host RSP
        new(0x0024000300006C16, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0), // Host RIP
        new(0x0024000300006C1A, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0), // HOST_SSP
        new(0x0120000300000000, 128, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VAPIC
        new(0x0220000200000000, 1, 1, 4, 1, 0, 0, M4, 0, 0, 0), // EXIT_REASON
        new(0x0220000200000001, 1, 1, 4, 1, 0, 0, M4, 0, 0, 0), // VALID
        new(0x0220000300000002, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // EXIT_QUALIFICATION
        new(0x0220000300000003, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // GLA
        new(0x0220000300000004, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // GPA
        new(0x0220000100000005, 1, 1, 2, 1, 0, 0, M2, 0, 0, 0), // EPTP_INDEX
        new(0x8220000200000010, 1, 1, 4, 1, 0, 0, M4, 0, 0, 0), // INSTRUCTION_LENGTH
        new(0x8220000200000011, 1, 1, 4, 1, 0, 0, M4, 0, 0, 0), // INSTRUCTION_INFORMATION
        new(0x1020000300000000, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // RAX
        new(0x1020000300000001, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // RCX
        new(0x1020000300000002, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // RDX
        new(0x1020000300000003, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // RBX
        new(0x1020000300000004, 1, 1, 8, 1, 0, 0, 0, 0, 0, 0), // RSP_PLACEHOLDER
        new(0x1020000300000005, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // RBP
        new(0x1020000300000006, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // RSI
        new(0x1020000300000007, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // RDI
        new(0x1020000300000008, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R8
        new(0x1020000300000009, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R9
        new(0x102000030000000A, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R10
        new(0x102000030000000B, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R11
        new(0x102000030000000C, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R12
        new(0x102000030000000D, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R13
        new(0x102000030000000E, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R14
        new(0x102000030000000F, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // R15
        new(0x1120000300000000, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // DR0
        new(0x1120000300000001, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // DR1
        new(0x1120000300000002, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // DR2
        new(0x1120000300000003, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // DR3
        new(0x1120000300000006, 1, 1, 8, 1, 0, 0, M8, M4, 0, 0), // DR6
        new(0x1120000300000020, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // XCR0
        new(0x1120000300000028, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // CR2
        new(0x9120000300000100, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VCPU_STATE_DETAILS
        new(0x1220000300000000, 1536, 1, 8, 1, 0, 0, M8, M8, 0, 0), // XBUFF
        new(0x1320000300000048, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_SPEC_CTRL
        new(0x13200003000000E1, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_UMWAIT_CONTROL
        new(0x1320000300000122, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_TSX_CTRL
        new(0x1320000300000186, 8, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_PERFEVTSELx
        new(0x13200003000001A6, 2, 1, 8, 1, 0, 0, M8, M8, 0, 0), // MSR_OFFCORE_RSPx
        new(0x13200003000001C4, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_XFD
        new(0x13200003000001C5, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_XFD_ERR
        new(0x1320000300000309, 7, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_FIXED_CTRx
        new(0x1320000300000329, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_PERF_METRICS
        new(0x132000030000038D, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_FIXED_CTR_CTRL
        new(0x132000030000038E, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_PERF_GLOBAL_STATUS
        new(0x13200003000003F1, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_PEBS_ENABLE
        new(0x13200003000003F2, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // MSR_PEBS_DATA_CFG
        new(0x13200003000003F6, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // MSR_PEBS_LD_LAT
        new(0x13200003000003F7, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // MSR_PEBS_FRONTEND
        new(0x13200003000004C1, 8, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_A_PMCx
        new(0x1320000300000600, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_DS_AREA
        new(0x1320000300000DA0, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_XSS
        new(0x13200003000014CF, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_LBR_DEPTH
        new(0x1320000300001B01, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_UARCH_MISC_CTL
        new(0x1320000300002081, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_STAR
        new(0x1320000300002082, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_LSTAR
        new(0x1320000300002084, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_FMASK
        new(0x1320000300002102, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // IA32_KERNEL_GS_BASE
        new(0x1320000300002103, 1, 1, 8, 1, 0, 0, M8, M8, 0, 0), // IA32_TSC_AUX
        new(0xA020000000000000, 1, 1, 1, 1, 0, 0, M1, 0, 0, 0), // VCPU_STATE
        new(0xA020000200000002, 1, 1, 4, 1, M4, 0, M4, 0, M4, 0), // VCPU_INDEX
        new(0xA020000000000003, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // NUM_TDVPS_PAGES
        new(0xA020000200000004, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // ASSOC_LPID
        new(0xA020000300000006, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VCPU_EPOCH
        new(0xA020000000000007, 1, 1, 1, 1, M1, 0, M1, 0, M1, M1), // CPUID_SUPERVISOR_VE
        new(0xA020000000000008, 1, 1, 1, 1, M1, 0, M1, 0, M1, M1), // CPUID_USER_VE
        new(0xA02000030000000A, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // LAST_EXIT_TSC
        new(0x202000000000000B, 1, 1, 1, 1, M1, M1, M1, M1, 0, 0), // PEND_NMI
        new(0x202000030000000C, 1, 1, 8, 1, M8, 0, M8, M8, 0, 0), // XFAM
        new(0xA02000000000000D, 1, 1, 1, 1, 0, 0, M1, 0, 0, 0), // LAST_EPF_GPA_LIST_IDX
        new(0xA02000000000000E, 1, 1, 1, 1, 0, 0, M1, 0, 0, 0), // POSSIBLY_EPF_STEPPING
        new(0xA02000000000000F, 1, 1, 1, 1, 0, 0, M1, 0, 0, 0), // LAST_TD_EXIT
        new(0xA020000300000010, 15, 1, 8, 1, M8, 0, M8, 0, 0, 0), // TDVPS_PAGE_PA
        new(0xA020000300000030, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // HP_LOCK_BUSY_START
        new(0xA020000000000031, 1, 1, 1, 1, 0, 0, M1, 0, 0, 0), // HP_LOCK_BUSY
        new(0xA020000300000032, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // LAST_SEAMDB_INDEX
        new(0xA020000000000040, 1, 1, 1, 1, 0, 0, M1, 0, 0, 0), // NMI_UNBLOCKING_DUE_TO_IRET
        new(0xA020000100000041, 1, 1, 2, 1, 0, 0, M2, 0, 0, 0), // CURR_VM
        new(0xA020000000000042, 1, 1, 1, 1, 0, 0, M1, 0, 0, 0), // L2_EXIT_HOST_ROUTING
        new(0xA020000000000044, 4, 1, 1, 1, 0, 0, M1, 0, 0, 0), // VM_LAUNCHED
        new(0xA020000000000048, 4, 1, 1, 1, 0, 0, M1, 0, 0, 0), // LP_DEPENDENT_HPA_UPDATED
        new(0xA02000000000004C, 4, 1, 1, 1, 0, 0, M1, 0, 0, 0), // MODULE_DEPENDENT_FIELDS_UPDATED
        new(0xA020000300000050, 4, 1, 8, 1, 0, 0, M8, 7, M8, 7), // L2_CTLS
        new(0xA020000300000054, 4, 1, 8, 1, 0, 0, M8, 7, 0, 0), // L2_DEBUG_CTLS
        new(0xA020000300000058, 4, 1, 8, 1, 0, 0, M8, 0, M8, M8), // TSC_DEADLINE
        new(0xA02000030000005C, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SHADOW_TSC_DEADLINE
        new(0xA020000300000080, 1, 1, 8, 1, 0, 0, M8, 0xffffffff9fffffdf, 0, 0), // BASE_L2_CR0_GUEST_HOST_MASK
        new(0xA020000300000081, 1, 1, 8, 1, 0, 0, M8, 0xffffffff9fffffdf, 0, 0), // BASE_L2_CR0_READ_SHADOW
        new(0xA020000300000082, 1, 1, 8, 1, 0, 0, M8, 0xffffffffffff9fbf, 0, 0), // BASE_L2_CR4_GUEST_HOST_MASK
        new(0xA020000300000083, 1, 1, 8, 1, 0, 0, M8, 0xffffffff9fffffdf, 0, 0), // BASE_L2_CR4_READ_SHADOW
        new(0xA020000300000084, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SHADOW_CR0_GUEST_HOST_MASK
        new(0xA020000300000088, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SHADOW_CR0_READ_SHADOW
        new(0xA02000030000008C, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SHADOW_CR4_GUEST_HOST_MASK
        new(0xA020000300000090, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SHADOW_CR4_READ_SHADOW
        new(0xA020000200000094, 4, 1, 4, 1, 0, 0, M4, 0, 0, 0), // SHADOW_INSTRUCTION_TIMEOUT_CONTROL
        new(0xA020000300000098, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SHADOW_PID_HPA
        new(0xA02000020000009C, 4, 1, 4, 1, 0, 0, M4, 0, 0, 0), // SHADOW_PINBASED_EXEC_CTLS
        new(0xA0200002000000A4, 4, 1, 4, 1, 0, 0, M4, 0, 0, 0), // SHADOW_PLE_GAP
        new(0xA0200002000000A8, 4, 1, 4, 1, 0, 0, M4, 0, 0, 0), // SHADOW_PLE_WINDOW
        new(0xA0200001000000AC, 4, 1, 2, 1, 0, 0, M2, 0, 0, 0), // SHADOW_POSTED_INT_NOTIFICATION_VECTOR
        new(0xA0200002000000B0, 4, 1, 4, 1, 0, 0, M4, 0, 0, 0), // SHADOW_PROCBASED_EXEC_CTLS2
        new(0xA0200003000000B4, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SHADOW_SHARED_EPTP
        new(0xA020000300000100, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // L2_ENTER_GUEST_STATE_GPA
        new(0xA020000300000104, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // L2_ENTER_GUEST_STATE_HPA
        new(0xA020000300000108, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VE_INFO_GPA
        new(0xA02000030000010C, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VE_INFO_HPA
        new(0xA020000300000110, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // L2_VAPIC_GPA
        new(0xA020000300000114, 4, 1, 8, 1, 0, 0, M8, 0, 0, 0), // L2_VAPIC_HPA
        new(0xA120000000000000, 128, 1, 1, 1, 0, 0, M1, 0, M1, 3), // CPUID_CONTROL
        new(0xA220000300000200, 32, 1, 8, 1, 0, 0, M8, 0, 0, 0), // LAST_EPF_GPA_LIST
    ];
}
