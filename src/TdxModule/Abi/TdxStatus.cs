namespace Tdp.Module;

/// <summary>
/// A 64-bit completion status of the TDX module (tdx-module 1.4). Bit 63 error, 62 non-recoverable, 61 fatal, 60 host recoverability hint;
/// 47:40 class, 39:32 number within the class; 31:0 operand, level or exit reason.
/// </summary>
/// <param name="Value">The value as it stands in RAX.</param>
public readonly partial record struct TdxStatus(ulong Value)
{
    private const ulong UpperHalf = 0xFFFF_FFFF_0000_0000;

    /// <summary>True when bit 63 is clear: done, or nothing was left to do.</summary>
    public bool IsSuccess => (Value >> 63) == 0;

    /// <summary>True when bit 63 is set: the call failed.</summary>
    public bool IsError => (Value >> 63) != 0;

    /// <summary>Bit 62: doing the same again is pointless. Linux's TDX_NON_RECOVERABLE.</summary>
    public bool IsNonRecoverable => (Value & (1UL << 62)) != 0;

    /// <summary>
    /// True for <c>TDX_OPERAND_BUSY</c> whatever the operand: what KVM answers with -EBUSY. <c>PREVIOUS_TLB_EPOCH_BUSY</c> is not busy in this sense.
    /// </summary>
    public bool IsBusy => (Value & UpperHalf) == OPERAND_BUSY.Value;

    /// <summary>The status without its lower half.</summary>
    public TdxStatus Class => new(Value & UpperHalf);

    /// <summary>The operand that is blamed; meaningful for classes that have one.</summary>
    public OperandId Operand => (OperandId)(uint)Value;

    /// <summary>Bits 31:0.</summary>
    public uint Details => (uint)Value;

    /// <summary>The name of the class, such as <c>TDX_OPERAND_BUSY</c>; null when there is none.</summary>
    public string? Name => StatusNames.Find((uint)(Value >> 32));

    /// <summary>The status that blames an operand.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TdxStatus operator |(TdxStatus status, OperandId operand) => new(status.Value | (uint)operand);

    /// <summary>The status with further details in its lower half: a level, an MSR number, an index.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TdxStatus operator |(TdxStatus status, uint details) => new(status.Value | details);

    /// <summary>The status as people write it, such as <c>TDX_OPERAND_BUSY | OPERAND_ID_SEPT_TREE</c>.</summary>
    public override string ToString()
    {
        if (Name is not { } name)
            return Software() ?? $"0x{Value:x16}";
        return HasOperand(Value >> 32)
            ? Enum.IsDefined(Operand) ? $"{name} | OPERAND_ID_{Operand}" : $"{name} | OPERAND_ID_{Details}"
            : Details == 0 ? name : $"{name} | 0x{Details:x}";
    }

    private static bool HasOperand(ulong upper) => (upper << 32) switch
    {
        // Classes 1 to 3 blame an operand always; in class 0xB those that say where the walk or the entry was.
        0xC0000100_00000000 or 0xC0000101_00000000 or 0x80000200_00000000 or 0x80000204_00000000 or 0xC0000300_00000000 => true,
        0xC0000B00_00000000 or 0xC0000B03_00000000 or 0xC0000B06_00000000 or 0x00000B07_00000000 => true,
        0xC0000B08_00000000 or 0xC0000B09_00000000 or 0xC0000B0D_00000000 or 0xC0000B0E_00000000 => true,
        _ => false,
    };

    private string? Software() => Value switch
    {
        0x8000FF00_FFFF0000 => "TDX_SEAMCALL_VMFAILINVALID",
        0x8000FF00_0000000D => "TDX_SEAMCALL_GP",
        0x8000FF00_00000006 => "TDX_SEAMCALL_UD",
        _ => null,
    };
}
