using System.Buffers.Binary;
using System.Numerics;
using System.Runtime.InteropServices;

namespace Tdp.Cpu;

/// <content>
/// The interpreter: one switch over predecoded steps (performance: "What decides it"). It stays in here from block to block until something must be
/// looked at from outside: an event, a trap, a block that is not known yet.
/// </content>
/// <remarks>
/// Guest memory is reached through the front cache, whose hit is a compare and an add, or through <see cref="LinearMemory"/>, which does all the rest.
/// Nothing of the guest's state lives in locals, so every way out leaves it exact; RIP and the retired count are settled on the way out.
/// </remarks>
public sealed partial class GuestCpu
{
    private const byte RaxOffset = 0;
    private const byte RcxOffset = 8;
    private const byte RdxOffset = 16;
    private const byte RspOffset = 32;
    private const byte RbpOffset = 40;

    /// <summary>The block that was left by a branch within its page whose successor is not linked yet.</summary>
    private CodeBlock? _unlinked;
    private bool _unlinkedTaken;

    /// <param name="block">Where to begin.</param>
    /// <param name="slice">Instructions after which no further block is entered; 0 for this block alone.</param>
    private void Execute(CodeBlock block, ulong slice)
    {
        LogicalProcessor lp = _lp;
        ref byte r = ref Unsafe.As<RegisterFile, byte>(ref _registers);
        ref byte arena = ref _memory.At(0);
        ref FrontSlot reads = ref MemoryMarshal.GetArrayDataReference(_linear.Read.Slot);
        ref FrontSlot writes = ref MemoryMarshal.GetArrayDataReference(_linear.Write.Slot);
        ulong retired = 0;
        ulong rmw = 0;
        ulong rip;
        ref MicroOp op = ref MemoryMarshal.GetArrayDataReference(block.Ops);
        while (true)
        {
            // Where the operands are; what a step without them does not use costs next to nothing.
            ref ulong d = ref R64(ref r, op.Dst);
            ref ulong s = ref R64(ref r, op.Src);
            switch (op.Kind)
            {
                case MicroKind.Nop:
                    break;
                case MicroKind.Mov64RR:
                    d = s;
                    break;
                case MicroKind.Mov32RR:
                    d = (uint)s;
                    break;
                case MicroKind.Mov16RR:
                    R16(ref r, op.Dst) = (ushort)s;
                    break;
                case MicroKind.Mov8RR:
                    R8(ref r, op.Dst) = (byte)s;
                    break;
                case MicroKind.MovRI:
                    d = op.Imm;
                    break;
                case MicroKind.Mov16RI:
                    R16(ref r, op.Dst) = (ushort)op.Imm;
                    break;
                case MicroKind.Mov8RI:
                    R8(ref r, op.Dst) = (byte)op.Imm;
                    break;
                case MicroKind.MovZx8RR:
                    d = (byte)s;
                    break;
                case MicroKind.MovZx16RR:
                    d = (ushort)s;
                    break;
                case MicroKind.MovSx8To32RR:
                    d = (uint)(sbyte)s;
                    break;
                case MicroKind.MovSx8To64RR:
                    d = (ulong)(sbyte)s;
                    break;
                case MicroKind.MovSx16To32RR:
                    d = (uint)(short)s;
                    break;
                case MicroKind.MovSx16To64RR:
                    d = (ulong)(short)s;
                    break;
                case MicroKind.MovSx32To64RR:
                    d = (ulong)(int)s;
                    break;

                case MicroKind.Load64:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out ulong load64))
                        goto stopped;
                    d = load64;
                    break;
                case MicroKind.Load32:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out uint load32))
                        goto stopped;
                    d = load32;
                    break;
                case MicroKind.Load16:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out ushort load16))
                        goto stopped;
                    R16(ref r, op.Dst) = load16;
                    break;
                case MicroKind.Load8:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out byte load8))
                        goto stopped;
                    R8(ref r, op.Dst) = load8;
                    break;
                case MicroKind.LoadZx16:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out ushort loadZx16))
                        goto stopped;
                    d = loadZx16;
                    break;
                case MicroKind.LoadZx8:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out byte loadZx8))
                        goto stopped;
                    d = loadZx8;
                    break;
                case MicroKind.LoadSx8To32:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out byte loadSx8To32))
                        goto stopped;
                    d = (uint)(sbyte)loadSx8To32;
                    break;
                case MicroKind.LoadSx8To64:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out byte loadSx8To64))
                        goto stopped;
                    d = (ulong)(sbyte)loadSx8To64;
                    break;
                case MicroKind.LoadSx16To32:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out ushort loadSx16To32))
                        goto stopped;
                    d = (uint)(short)loadSx16To32;
                    break;
                case MicroKind.LoadSx16To64:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out ushort loadSx16To64))
                        goto stopped;
                    d = (ulong)(short)loadSx16To64;
                    break;
                case MicroKind.LoadSx32To64:
                    if (!TryLoad(ref r, ref op, ref reads, ref arena, out uint loadSx32To64))
                        goto stopped;
                    d = (ulong)(int)loadSx32To64;
                    break;

                case MicroKind.Store64:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, s))
                        goto stopped;
                    break;
                case MicroKind.Store32:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, (uint)s))
                        goto stopped;
                    break;
                case MicroKind.Store16:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, (ushort)s))
                        goto stopped;
                    break;
                case MicroKind.Store8:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, (byte)s))
                        goto stopped;
                    break;
                case MicroKind.Store64I:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, op.Imm))
                        goto stopped;
                    break;
                case MicroKind.Store32I:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, (uint)op.Imm))
                        goto stopped;
                    break;
                case MicroKind.Store16I:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, (ushort)op.Imm))
                        goto stopped;
                    break;
                case MicroKind.Store8I:
                    if (!TryStore(ref r, ref op, ref writes, ref arena, (byte)op.Imm))
                        goto stopped;
                    break;

                case MicroKind.LoadRmw64:
                    if (!TryBeginRmw(ref r, ref op, ref writes, ref arena, out ulong rmw64, out rmw))
                        goto stopped;
                    d = rmw64;
                    break;
                case MicroKind.LoadRmw32:
                    if (!TryBeginRmw(ref r, ref op, ref writes, ref arena, out uint rmw32, out rmw))
                        goto stopped;
                    d = rmw32;
                    break;
                case MicroKind.LoadRmw16:
                    if (!TryBeginRmw(ref r, ref op, ref writes, ref arena, out ushort rmw16, out rmw))
                        goto stopped;
                    d = rmw16;
                    break;
                case MicroKind.LoadRmw8:
                    if (!TryBeginRmw(ref r, ref op, ref writes, ref arena, out byte rmw8, out rmw))
                        goto stopped;
                    d = rmw8;
                    break;
                case MicroKind.StoreRmw64:
                    if (!EndRmw(ref arena, rmw, s))
                        goto stopped;
                    break;
                case MicroKind.StoreRmw32:
                    if (!EndRmw(ref arena, rmw, (uint)s))
                        goto stopped;
                    break;
                case MicroKind.StoreRmw16:
                    if (!EndRmw(ref arena, rmw, (ushort)s))
                        goto stopped;
                    break;
                case MicroKind.StoreRmw8:
                    if (!EndRmw(ref arena, rmw, (byte)s))
                        goto stopped;
                    break;

                case MicroKind.Lea64:
                    d = Address(ref r, ref op);
                    break;
                case MicroKind.Lea32:
                    d = (uint)Address(ref r, ref op);
                    break;
                case MicroKind.Lea16:
                    R16(ref r, op.Dst) = (ushort)Address(ref r, ref op);
                    break;

                case MicroKind.Add64RR:
                    _flags.Added(d, s, 3);
                    d += s;
                    break;
                case MicroKind.Add64RI:
                    _flags.Added(d, op.Imm, 3);
                    d += op.Imm;
                    break;
                case MicroKind.Add32RR:
                    _flags.Added((ulong)(int)d, (ulong)(int)s, 2);
                    d = (uint)d + (uint)s;
                    break;
                case MicroKind.Add32RI:
                    _flags.Added((ulong)(int)d, op.Imm, 2);
                    d = (uint)d + (uint)op.Imm;
                    break;
                case MicroKind.AddNf64RR:
                    d += s;
                    break;
                case MicroKind.AddNf64RI:
                    d += op.Imm;
                    break;
                case MicroKind.AddNf32RR:
                    d = (uint)d + (uint)s;
                    break;
                case MicroKind.AddNf32RI:
                    d = (uint)d + (uint)op.Imm;
                    break;
                case MicroKind.Sub64RR:
                    _flags.Subtracted(d, s, 3);
                    d -= s;
                    break;
                case MicroKind.Sub64RI:
                    _flags.Subtracted(d, op.Imm, 3);
                    d -= op.Imm;
                    break;
                case MicroKind.Sub32RR:
                    _flags.Subtracted((ulong)(int)d, (ulong)(int)s, 2);
                    d = (uint)d - (uint)s;
                    break;
                case MicroKind.Sub32RI:
                    _flags.Subtracted((ulong)(int)d, op.Imm, 2);
                    d = (uint)d - (uint)op.Imm;
                    break;
                case MicroKind.SubNf64RR:
                    d -= s;
                    break;
                case MicroKind.SubNf64RI:
                    d -= op.Imm;
                    break;
                case MicroKind.SubNf32RR:
                    d = (uint)d - (uint)s;
                    break;
                case MicroKind.SubNf32RI:
                    d = (uint)d - (uint)op.Imm;
                    break;
                case MicroKind.And64RR:
                    d &= s;
                    _flags.Logical(d, 3);
                    break;
                case MicroKind.And64RI:
                    d &= op.Imm;
                    _flags.Logical(d, 3);
                    break;
                case MicroKind.And32RR:
                    d = (uint)d & (uint)s;
                    _flags.Logical((ulong)(int)d, 2);
                    break;
                case MicroKind.And32RI:
                    d = (uint)d & (uint)op.Imm;
                    _flags.Logical((ulong)(int)d, 2);
                    break;
                case MicroKind.AndNf64RR:
                    d &= s;
                    break;
                case MicroKind.AndNf64RI:
                    d &= op.Imm;
                    break;
                case MicroKind.AndNf32RR:
                    d = (uint)d & (uint)s;
                    break;
                case MicroKind.AndNf32RI:
                    d = (uint)d & (uint)op.Imm;
                    break;
                case MicroKind.Or64RR:
                    d |= s;
                    _flags.Logical(d, 3);
                    break;
                case MicroKind.Or64RI:
                    d |= op.Imm;
                    _flags.Logical(d, 3);
                    break;
                case MicroKind.Or32RR:
                    d = (uint)d | (uint)s;
                    _flags.Logical((ulong)(int)d, 2);
                    break;
                case MicroKind.Or32RI:
                    d = (uint)d | (uint)op.Imm;
                    _flags.Logical((ulong)(int)d, 2);
                    break;
                case MicroKind.OrNf64RR:
                    d |= s;
                    break;
                case MicroKind.OrNf64RI:
                    d |= op.Imm;
                    break;
                case MicroKind.OrNf32RR:
                    d = (uint)d | (uint)s;
                    break;
                case MicroKind.OrNf32RI:
                    d = (uint)d | (uint)op.Imm;
                    break;
                case MicroKind.Xor64RR:
                    d ^= s;
                    _flags.Logical(d, 3);
                    break;
                case MicroKind.Xor64RI:
                    d ^= op.Imm;
                    _flags.Logical(d, 3);
                    break;
                case MicroKind.Xor32RR:
                    d = (uint)d ^ (uint)s;
                    _flags.Logical((ulong)(int)d, 2);
                    break;
                case MicroKind.Xor32RI:
                    d = (uint)d ^ (uint)op.Imm;
                    _flags.Logical((ulong)(int)d, 2);
                    break;
                case MicroKind.XorNf64RR:
                    d ^= s;
                    break;
                case MicroKind.XorNf64RI:
                    d ^= op.Imm;
                    break;
                case MicroKind.XorNf32RR:
                    d = (uint)d ^ (uint)s;
                    break;
                case MicroKind.XorNf32RI:
                    d = (uint)d ^ (uint)op.Imm;
                    break;
                case MicroKind.Cmp64RR:
                    _flags.Subtracted(d, s, 3);
                    break;
                case MicroKind.Cmp64RI:
                    _flags.Subtracted(d, op.Imm, 3);
                    break;
                case MicroKind.Cmp32RR:
                    _flags.Subtracted((ulong)(int)d, (ulong)(int)s, 2);
                    break;
                case MicroKind.Cmp32RI:
                    _flags.Subtracted((ulong)(int)d, op.Imm, 2);
                    break;
                case MicroKind.Test64RR:
                    _flags.Logical(d & s, 3);
                    break;
                case MicroKind.Test64RI:
                    _flags.Logical(d & op.Imm, 3);
                    break;
                case MicroKind.Test32RR:
                    _flags.Logical((ulong)(int)((uint)d & (uint)s), 2);
                    break;
                case MicroKind.Test32RI:
                    _flags.Logical((ulong)(int)((uint)d & (uint)op.Imm), 2);
                    break;
                case MicroKind.Cmp8RR:
                    _flags.Subtracted((ulong)(sbyte)d, (ulong)(sbyte)s, 0);
                    break;
                case MicroKind.Cmp8RI:
                    _flags.Subtracted((ulong)(sbyte)d, op.Imm, 0);
                    break;
                case MicroKind.Test8RR:
                    _flags.Logical((ulong)(sbyte)((byte)d & (byte)s), 0);
                    break;
                case MicroKind.Test8RI:
                    _flags.Logical((ulong)(sbyte)((byte)d & (byte)op.Imm), 0);
                    break;
                case MicroKind.Cmp16RR:
                    _flags.Subtracted((ulong)(short)d, (ulong)(short)s, 1);
                    break;
                case MicroKind.Cmp16RI:
                    _flags.Subtracted((ulong)(short)d, op.Imm, 1);
                    break;

                case MicroKind.Inc64:
                    d += 1;
                    _flags.Incremented(d, 3);
                    break;
                case MicroKind.Inc32:
                    d = (uint)d + 1;
                    _flags.Incremented((ulong)(int)d, 2);
                    break;
                case MicroKind.IncNf64:
                    d += 1;
                    break;
                case MicroKind.IncNf32:
                    d = (uint)d + 1;
                    break;
                case MicroKind.Dec64:
                    d -= 1;
                    _flags.Decremented(d, 3);
                    break;
                case MicroKind.Dec32:
                    d = (uint)d - 1;
                    _flags.Decremented((ulong)(int)d, 2);
                    break;
                case MicroKind.DecNf64:
                    d -= 1;
                    break;
                case MicroKind.DecNf32:
                    d = (uint)d - 1;
                    break;
                case MicroKind.Not64:
                    d = ~d;
                    break;
                case MicroKind.Not32:
                    d = ~(uint)d;
                    break;
                case MicroKind.Neg64:
                    _flags.Subtracted(0, d, 3);
                    d = 0 - d;
                    break;
                case MicroKind.Neg32:
                    _flags.Subtracted(0, (ulong)(int)d, 2);
                    d = 0u - (uint)d;
                    break;
                case MicroKind.NegNf64:
                    d = 0 - d;
                    break;
                case MicroKind.NegNf32:
                    d = 0u - (uint)d;
                    break;

                case MicroKind.ShlNf64I:
                    d <<= (int)op.Imm;
                    break;
                case MicroKind.ShlNf32I:
                    d = (uint)d << (int)op.Imm;
                    break;
                case MicroKind.ShlNf64C:
                    d <<= R8(ref r, RcxOffset);
                    break;
                case MicroKind.ShlNf32C:
                    d = (uint)d << R8(ref r, RcxOffset);
                    break;
                case MicroKind.ShrNf64I:
                    d >>= (int)op.Imm;
                    break;
                case MicroKind.ShrNf32I:
                    d = (uint)d >> (int)op.Imm;
                    break;
                case MicroKind.ShrNf64C:
                    d >>= R8(ref r, RcxOffset);
                    break;
                case MicroKind.ShrNf32C:
                    d = (uint)d >> R8(ref r, RcxOffset);
                    break;
                case MicroKind.SarNf64I:
                    d = (ulong)((long)d >> (int)op.Imm);
                    break;
                case MicroKind.SarNf32I:
                    d = (uint)((int)d >> (int)op.Imm);
                    break;
                case MicroKind.SarNf64C:
                    d = (ulong)((long)d >> R8(ref r, RcxOffset));
                    break;
                case MicroKind.SarNf32C:
                    d = (uint)((int)d >> R8(ref r, RcxOffset));
                    break;
                case MicroKind.RolNf64I:
                    d = BitOperations.RotateLeft(d, (int)op.Imm);
                    break;
                case MicroKind.RolNf32I:
                    d = BitOperations.RotateLeft((uint)d, (int)op.Imm);
                    break;
                case MicroKind.RolNf64C:
                    d = BitOperations.RotateLeft(d, R8(ref r, RcxOffset));
                    break;
                case MicroKind.RolNf32C:
                    d = BitOperations.RotateLeft((uint)d, R8(ref r, RcxOffset));
                    break;
                case MicroKind.RorNf64I:
                    d = BitOperations.RotateRight(d, (int)op.Imm);
                    break;
                case MicroKind.RorNf32I:
                    d = BitOperations.RotateRight((uint)d, (int)op.Imm);
                    break;
                case MicroKind.RorNf64C:
                    d = BitOperations.RotateRight(d, R8(ref r, RcxOffset));
                    break;
                case MicroKind.RorNf32C:
                    d = BitOperations.RotateRight((uint)d, R8(ref r, RcxOffset));
                    break;

                case MicroKind.ImulNf64RR:
                    d *= s;
                    break;
                case MicroKind.ImulNf32RR:
                    d = (uint)d * (uint)s;
                    break;
                case MicroKind.ImulNf64RI:
                    d = s * op.Imm;
                    break;
                case MicroKind.ImulNf32RI:
                    d = (uint)s * (uint)op.Imm;
                    break;
                case MicroKind.ImulRR:
                    Multiply(ref r, ref op, d, s);
                    break;
                case MicroKind.ImulRI:
                    Multiply(ref r, ref op, s, op.Imm);
                    break;
                case MicroKind.AluRR:
                    Alu(ref r, ref op, s);
                    break;
                case MicroKind.AluRI:
                    Alu(ref r, ref op, op.Imm);
                    break;
                case MicroKind.Unary:
                    Unary(ref r, ref op);
                    break;
                case MicroKind.ShiftI:
                    Shift(ref r, ref op, (int)op.Imm);
                    break;
                case MicroKind.ShiftC:
                    Shift(ref r, ref op, R8(ref r, RcxOffset));
                    break;
                case MicroKind.BitTestR:
                    BitTest(ref r, ref op, s);
                    break;
                case MicroKind.BitTestI:
                    BitTest(ref r, ref op, op.Imm);
                    break;
                case MicroKind.BitScan:
                    BitScan(ref r, ref op);
                    break;
                case MicroKind.ShiftDoubleI:
                    ShiftDouble(ref r, ref op, (int)op.Imm);
                    break;
                case MicroKind.ShiftDoubleC:
                    ShiftDouble(ref r, ref op, R8(ref r, RcxOffset));
                    break;
                case MicroKind.MulDiv:
                    if (!MulDiv(ref r, ref op))
                        goto stopped;
                    break;

                case MicroKind.Setcc:
                    R8(ref r, op.Dst) = _flags.Test(op.Aux) ? (byte)1 : (byte)0;
                    break;
                case MicroKind.Cmov64:
                    if (_flags.Test(op.Aux))
                        d = s;
                    break;
                case MicroKind.Cmov32:
                    d = _flags.Test(op.Aux) ? (uint)s : (uint)d;
                    break;
                case MicroKind.Cmov16:
                    if (_flags.Test(op.Aux))
                        R16(ref r, op.Dst) = (ushort)s;
                    break;
                case MicroKind.Bswap64:
                    d = BinaryPrimitives.ReverseEndianness(d);
                    break;
                case MicroKind.Bswap32:
                    d = BinaryPrimitives.ReverseEndianness((uint)d);
                    break;
                case MicroKind.Xchg64RR:
                    (d, s) = (s, d);
                    break;
                case MicroKind.Xchg32RR:
                    (d, s) = ((uint)s, (uint)d);
                    break;
                case MicroKind.Cbw:
                    R16(ref r, RaxOffset) = (ushort)(sbyte)R8(ref r, RaxOffset);
                    break;
                case MicroKind.Cwde:
                    R64(ref r, RaxOffset) = (uint)(short)R16(ref r, RaxOffset);
                    break;
                case MicroKind.Cdqe:
                    R64(ref r, RaxOffset) = (ulong)(int)R32(ref r, RaxOffset);
                    break;
                case MicroKind.Cwd:
                    R16(ref r, RdxOffset) = (ushort)((short)R16(ref r, RaxOffset) >> 15);
                    break;
                case MicroKind.Cdq:
                    R64(ref r, RdxOffset) = (uint)((int)R32(ref r, RaxOffset) >> 31);
                    break;
                case MicroKind.Cqo:
                    R64(ref r, RdxOffset) = (ulong)((long)R64(ref r, RaxOffset) >> 63);
                    break;

                case MicroKind.Push64R:
                    if (!TryPush(ref r, ref writes, ref arena, s))
                        goto stopped;
                    break;
                case MicroKind.Push64I:
                    if (!TryPush(ref r, ref writes, ref arena, op.Imm))
                        goto stopped;
                    break;
                case MicroKind.Pop64R:
                    if (!TryPop(ref r, ref reads, ref arena, RspOffset, out ulong popped))
                        goto stopped;
                    d = popped;
                    break;
                case MicroKind.Leave:
                    if (!TryPop(ref r, ref reads, ref arena, RbpOffset, out ulong frame))
                        goto stopped;
                    R64(ref r, RbpOffset) = frame;
                    break;

                case MicroKind.Jb:
                    if (!_flags.Carry)
                        goto fall;
                    goto jump;
                case MicroKind.Jae:
                    if (_flags.Carry)
                        goto fall;
                    goto jump;
                case MicroKind.Je:
                    if (!_flags.Zero)
                        goto fall;
                    goto jump;
                case MicroKind.Jne:
                    if (_flags.Zero)
                        goto fall;
                    goto jump;
                case MicroKind.Jo or MicroKind.Jno or MicroKind.Jbe or MicroKind.Ja or MicroKind.Js or MicroKind.Jns or MicroKind.Jp or MicroKind.Jnp:
                case MicroKind.Jl or MicroKind.Jge or MicroKind.Jle or MicroKind.Jg:
                    if (!_flags.Test(op.Kind - MicroKind.Jo))
                        goto fall;
                    goto jump;
                case MicroKind.JmpRel:
                    goto jump;
                case MicroKind.EndBlock:
                    goto fall;
                case MicroKind.JmpR:
                    rip = s;
                    goto leap;
                case MicroKind.CallR:
                    rip = s;
                    if (!IsTarget(rip) || !TryPush(ref r, ref writes, ref arena, R64(ref r, RegisterFile.PageBase) + op.Next))
                        goto stoppedAt;
                    goto leap;
                case MicroKind.CallRel:
                    rip = R64(ref r, RegisterFile.PageBase) + (ulong)op.Disp;
                    if (!IsTarget(rip) || !TryPush(ref r, ref writes, ref arena, R64(ref r, RegisterFile.PageBase) + op.Next))
                        goto stoppedAt;
                    goto jump;
                case MicroKind.Ret:
                    if (!TryReturn(ref r, ref op, ref reads, ref arena, out rip))
                        goto stopped;
                    goto leap;

                case MicroKind.Rare:
                    if (!ExecuteRare(block.Rare[op.Aux], ref op) || _linear.CodeWritten)
                        goto stopped;
                    break;
                case MicroKind.RareEnd:
                    // What has retired is settled first: the instruction may read the time.
                    Charge(retired + op.Ordinal);
                    retired = 0UL - op.Ordinal;
                    _notRetired = 0;
                    _nextRip = R64(ref r, RegisterFile.PageBase) + op.Next;
                    if (!ExecuteRare(block.Rare[op.Aux], ref op))
                        goto stopped;
                    _linear.CodeWritten = false;
                    rip = _nextRip;
                    retired += (ulong)block.Count - _notRetired;
                    goto leave;
                case MicroKind.Undefined:
                    RaiseUndefined((byte)op.Aux);
                    goto stopped;
            }

            op = ref Unsafe.Add(ref op, 1);
            continue;

        jump:
            if ((ulong)op.Disp >= 0x1000)
            {
                rip = R64(ref r, RegisterFile.PageBase) + (ulong)op.Disp;
                goto leap;
            }

            retired += (ulong)block.Count;
            if (block.Taken is { } taken && retired < slice && !lp.ShouldExit && CodeWatch.Read(_memory, taken.Hpa) == taken.Mark)
            {
                block = taken;
                op = ref MemoryMarshal.GetArrayDataReference(block.Ops);
                continue;
            }

            _unlinked = block;
            _unlinkedTaken = true;
            rip = R64(ref r, RegisterFile.PageBase) + (ulong)op.Disp;
            goto leave;

        fall:
            if (op.Next >= 0x1000)
            {
                rip = R64(ref r, RegisterFile.PageBase) + op.Next;
                goto leap;
            }

            retired += (ulong)block.Count;
            if (block.Fall is { } next && retired < slice && !lp.ShouldExit && CodeWatch.Read(_memory, next.Hpa) == next.Mark)
            {
                block = next;
                op = ref MemoryMarshal.GetArrayDataReference(block.Ops);
                continue;
            }

            _unlinked = block;
            _unlinkedTaken = false;
            rip = R64(ref r, RegisterFile.PageBase) + op.Next;
            goto leave;

        leap:
            if (!IsTarget(rip))
                goto stopped;
            retired += (ulong)block.Count;
            if (retired >= slice || lp.ShouldExit || !TryJumpCache(rip, out CodeBlock? far))
                goto leave;
            block = far;
            R64(ref r, RegisterFile.PageBase) = rip & ~0xFFFUL;
            op = ref MemoryMarshal.GetArrayDataReference(block.Ops);
            continue;

        stoppedAt:
            // A call whose push hit code: the call is complete.
            if (_linear.Trap.Kind == TrapKind.None)
            {
                _linear.CodeWritten = false;
                retired += (ulong)block.Count;
                goto leave;
            }

        stopped:
            if (_linear.Trap.Kind == TrapKind.None)
            {
                // A store hit decoded code, perhaps the next instruction of this block (G08). The instruction itself is complete.
                _linear.CodeWritten = false;
                rip = R64(ref r, RegisterFile.PageBase) + op.Next;
                retired += op.Ordinal + 1UL;
                goto leave;
            }

            rip = R64(ref r, RegisterFile.PageBase) + op.Next - op.Length;
            retired += op.Ordinal;

        leave:
            _state.Rip = rip;
            Charge(retired);
            return;
        }
    }
}
