using System.Runtime.InteropServices;

namespace Tdp.Cpu;

/// <summary>
/// One predecoded step. An instruction becomes one to four of them: form an unusual address, load, operate, store back; the last one carries the
/// instruction's only effect that others can see. 32 bytes, two to a cache line.
/// </summary>
/// <remarks>Registers are byte offsets into the <see cref="RegisterFile"/>, so that AH and R15B need no case of their own.</remarks>
[StructLayout(LayoutKind.Sequential, Size = 32)]
internal struct MicroOp
{
    /// <summary>What to do.</summary>
    public MicroKind Kind;

    /// <summary>Destination register.</summary>
    public byte Dst;

    /// <summary>Source register.</summary>
    public byte Src;

    /// <summary>Base register of the address.</summary>
    public byte Base;

    /// <summary>Index register of the address.</summary>
    public byte Index;

    /// <summary>Shift of the index, 0..3.</summary>
    public byte Scale;

    /// <summary>1: the address uses the stack segment, so a bad one is #SS and not #GP.</summary>
    public byte Stack;

    /// <summary>Displacement; of a branch, the target. Relative to the linear address of the page where that applies.</summary>
    public long Disp;

    /// <summary>Immediate, sign-extended from the operand size.</summary>
    public ulong Imm;

    /// <summary>Where the next instruction starts, relative to the page.</summary>
    public ushort Next;

    /// <summary>Length of the instruction.</summary>
    public byte Length;

    /// <summary>Instructions of the block before this one.</summary>
    public byte Ordinal;

    /// <summary>Operation and size of a generic step, condition, or number of the decoded instruction within the block.</summary>
    public int Aux;
}

/// <summary>
/// The registers as the interpreter sees them: sixteen general ones, then a constant zero, the linear address of the current code page, the
/// bases of FS and GS, and two scratch registers of the lowering.
/// </summary>
[InlineArray(32)]
internal struct RegisterFile
{
    public const byte Zero = 16 * 8;
    public const byte PageBase = 17 * 8;
    public const byte FsBase = 18 * 8;
    public const byte GsBase = 19 * 8;
    public const byte Address = 20 * 8;
    public const byte Value = 21 * 8;
    private ulong _first;
}

/// <summary>Operations of the steps that cover several sizes: <see cref="MicroOp.Aux"/> is operation | log2(bytes) &lt;&lt; 8.</summary>
internal enum AluOperation : byte
{
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
    Inc,
    Dec,
    Not,
    Neg,
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
    Bt,
    Bts,
    Btr,
    Btc,
    Bsf,
    Bsr,
    Shld,
    Shrd,
    Mul,
    Imul,
    Div,
    Idiv,
}

/// <summary>
/// Steps. RR: register with register, RI: register with immediate. Nf: without flags, used where the flags are overwritten before anybody can see them.
/// </summary>
internal enum MicroKind : ushort
{
    Nop,
    EndBlock,
    Rare,
    RareEnd,
    Undefined,

    Mov64RR,
    Mov32RR,
    Mov16RR,
    Mov8RR,
    MovRI,
    Mov16RI,
    Mov8RI,
    MovZx8RR,
    MovZx16RR,
    MovSx8To32RR,
    MovSx8To64RR,
    MovSx16To32RR,
    MovSx16To64RR,
    MovSx32To64RR,

    Load64,
    Load32,
    Load16,
    Load8,
    LoadZx16,
    LoadZx8,
    LoadSx8To32,
    LoadSx8To64,
    LoadSx16To32,
    LoadSx16To64,
    LoadSx32To64,
    Store64,
    Store32,
    Store16,
    Store8,
    Store64I,
    Store32I,
    Store16I,
    Store8I,
    LoadRmw64,
    LoadRmw32,
    LoadRmw16,
    LoadRmw8,
    StoreRmw64,
    StoreRmw32,
    StoreRmw16,
    StoreRmw8,

    Lea64,
    Lea32,
    Lea16,

    Add64RR,
    Add64RI,
    Add32RR,
    Add32RI,
    AddNf64RR,
    AddNf64RI,
    AddNf32RR,
    AddNf32RI,
    Sub64RR,
    Sub64RI,
    Sub32RR,
    Sub32RI,
    SubNf64RR,
    SubNf64RI,
    SubNf32RR,
    SubNf32RI,
    And64RR,
    And64RI,
    And32RR,
    And32RI,
    AndNf64RR,
    AndNf64RI,
    AndNf32RR,
    AndNf32RI,
    Or64RR,
    Or64RI,
    Or32RR,
    Or32RI,
    OrNf64RR,
    OrNf64RI,
    OrNf32RR,
    OrNf32RI,
    Xor64RR,
    Xor64RI,
    Xor32RR,
    Xor32RI,
    XorNf64RR,
    XorNf64RI,
    XorNf32RR,
    XorNf32RI,
    Cmp64RR,
    Cmp64RI,
    Cmp32RR,
    Cmp32RI,
    Test64RR,
    Test64RI,
    Test32RR,
    Test32RI,
    Cmp8RR,
    Cmp8RI,
    Test8RR,
    Test8RI,
    Cmp16RR,
    Cmp16RI,

    Inc64,
    Inc32,
    IncNf64,
    IncNf32,
    Dec64,
    Dec32,
    DecNf64,
    DecNf32,
    Not64,
    Not32,
    Neg64,
    Neg32,
    NegNf64,
    NegNf32,

    // One group per operation, each: by immediate 64 and 32, by CL 64 and 32.
    ShlNf64I,
    ShlNf32I,
    ShlNf64C,
    ShlNf32C,
    ShrNf64I,
    ShrNf32I,
    ShrNf64C,
    ShrNf32C,
    SarNf64I,
    SarNf32I,
    SarNf64C,
    SarNf32C,
    RolNf64I,
    RolNf32I,
    RolNf64C,
    RolNf32C,
    RorNf64I,
    RorNf32I,
    RorNf64C,
    RorNf32C,

    ImulNf64RR,
    ImulNf32RR,
    ImulNf64RI,
    ImulNf32RI,
    ImulRR,
    ImulRI,

    AluRR,
    AluRI,
    Unary,
    ShiftI,
    ShiftC,
    BitTestR,
    BitTestI,
    BitScan,
    ShiftDoubleI,
    ShiftDoubleC,
    MulDiv,

    Setcc,
    Cmov64,
    Cmov32,
    Cmov16,
    Bswap64,
    Bswap32,
    Xchg64RR,
    Xchg32RR,
    Cbw,
    Cwde,
    Cdqe,
    Cwd,
    Cdq,
    Cqo,

    Push64R,
    Push64I,
    Pop64R,
    Leave,
    CallRel,
    CallR,
    Ret,
    JmpRel,
    JmpR,

    Jo,
    Jno,
    Jb,
    Jae,
    Je,
    Jne,
    Jbe,
    Ja,
    Js,
    Jns,
    Jp,
    Jnp,
    Jl,
    Jge,
    Jle,
    Jg,
}
