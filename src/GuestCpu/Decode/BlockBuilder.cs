using Iced.Intel;

namespace Tdp.Cpu;

/// <summary>Turns code bytes into blocks of steps. Belongs to one vCPU; keeps its buffers between blocks.</summary>
internal sealed partial class BlockBuilder
{
    private const int Window = CodeBlock.MaxInstructions * 15;
    private readonly PhysicalMemory _memory;
    private readonly CodeWindow _code = new();
    private readonly Decoder _decoder;
    private readonly List<MicroOp> _ops = [];
    private readonly List<FlagUse> _uses = [];
    private readonly List<Instruction> _rare = [];
    private ushort _next;
    private byte _length;
    private byte _ordinal;
    private bool _ended;

    public BlockBuilder(PhysicalMemory memory)
    {
        _memory = memory;
        _decoder = Decoder.Create(64, _code);
    }

    /// <summary>What a step has to do with the arithmetic flags.</summary>
    [Flags]
    private enum FlagUse : byte
    {
        None = 0,

        /// <summary>It may fault or leave the block, so all flags before it must be right.</summary>
        Observes = 1,

        /// <summary>It defines all six.</summary>
        Defines = 2,

        /// <summary>It defines all but CF.</summary>
        DefinesButCarry = 4,

        /// <summary>It may define some.</summary>
        Touches = 8,
    }

    /// <summary>
    /// Decodes the block that starts at a host address. Null when the first instruction continues in the next page:
    /// <see cref="BuildStraddling"/> must then be asked, with the next page's host address.
    /// </summary>
    /// <param name="hpa">Host address of the first byte.</param>
    /// <param name="limit">Most instructions; 1 for single steps and interrupt shadows.</param>
    /// <param name="mark">The frame's mark, from <see cref="CodeWatch.AnnounceDecode"/>, taken before this call.</param>
    public CodeBlock? Build(ulong hpa, int limit, uint mark)
    {
        int offset = (int)(hpa & 0xFFF);
        int available = Math.Min(0x1000 - offset, Window);
        _code.Set(_memory.Frame(new Hpa(hpa & ~0xFFFUL)).Slice(offset, available));
        Start(offset);
        while (_ordinal < limit && !_ended)
        {
            int before = _code.Position;
            _decoder.Decode(out Instruction instruction);
            if (_decoder.LastError == DecoderError.NoMoreBytes && _code.Position - before < 15)
            {
                if (_ordinal == 0)
                    return null;
                _code.Position = before;
                break;
            }

            Lower(instruction);
        }

        return Finish(hpa, 0, mark, 0, _code.Position);
    }

    /// <summary>Decodes the one instruction that begins at the end of one page and continues in another.</summary>
    public CodeBlock BuildStraddling(ulong hpa, ulong nextPage, uint mark, uint nextMark)
    {
        int offset = (int)(hpa & 0xFFF);
        Span<byte> bytes = stackalloc byte[32];
        int first = 0x1000 - offset;
        _memory.Frame(new Hpa(hpa & ~0xFFFUL))[offset..].CopyTo(bytes);
        _memory.Frame(new Hpa(nextPage))[..15].CopyTo(bytes[first..]);
        _code.Set(bytes[..(first + 15)]);
        Start(offset);
        _decoder.Decode(out Instruction instruction);
        Lower(instruction);
        return Finish(hpa, nextPage, mark, nextMark, _code.Position);
    }

    private void Start(int offset)
    {
        _ops.Clear();
        _uses.Clear();
        _rare.Clear();
        _ordinal = 0;
        _ended = false;

        // Addresses come out relative to the page, whatever linear address it has.
        _decoder.IP = (ulong)offset;
    }

    private CodeBlock Finish(ulong hpa, ulong nextPage, uint mark, uint nextMark, int length)
    {
        if (!_ended)
        {
            _length = 0;
            Emit(MicroKind.EndBlock, FlagUse.Observes);
        }

        DropDeadFlags();
        return new CodeBlock
        {
            Ops = [.. _ops],
            Rare = [.. _rare],
            Bytes = _code.Copy(length),
            Hpa = hpa,
            SecondFrame = nextPage,
            Count = _ordinal,
            Mark = mark,
            SecondMark = nextMark,
        };
    }

    private void Lower(in Instruction instruction)
    {
        _next = (ushort)_decoder.IP;
        _length = (byte)instruction.Length;
        if (instruction.IsInvalid)
        {
            // Longer than 15 bytes is #GP, anything else that does not decode is #UD.
            bool tooLong = instruction.Length >= 15;
            Emit(MicroKind.Undefined, FlagUse.Observes, aux: tooLong ? Vector.GeneralProtection : Vector.InvalidOpcode);
            _ended = true;
        }
        else
        {
            LowerValid(instruction);
        }

        _ordinal++;
    }

    /// <summary>Backwards over the block: a step whose flags nobody can see is replaced by its form without flags.</summary>
    private void DropDeadFlags()
    {
        bool carry = true;
        bool rest = true;
        Span<MicroOp> ops = System.Runtime.InteropServices.CollectionsMarshal.AsSpan(_ops);
        for (int i = ops.Length - 1; i >= 0; i--)
        {
            FlagUse use = _uses[i];
            bool seen = (use & FlagUse.DefinesButCarry) != 0 ? rest : carry || rest;
            if ((use & (FlagUse.Defines | FlagUse.DefinesButCarry | FlagUse.Touches)) != 0 && !seen)
                ops[i].Kind = WithoutFlags(ops[i]);
            if ((use & FlagUse.Defines) != 0)
                carry = rest = false;
            if ((use & FlagUse.DefinesButCarry) != 0)
                rest = false;
            if ((use & FlagUse.Observes) != 0)
                carry = rest = true;
        }
    }

    private static MicroKind WithoutFlags(in MicroOp op)
    {
        MicroKind kind = op.Kind;
        if (kind is >= MicroKind.Add64RR and <= MicroKind.Xor32RI)
            return (MicroKind)((int)kind + ((((int)kind - (int)MicroKind.Add64RR) & 4) == 0 ? 4 : 0));
        switch (kind)
        {
            case MicroKind.Inc64 or MicroKind.Inc32 or MicroKind.Dec64 or MicroKind.Dec32 or MicroKind.Neg64 or MicroKind.Neg32:
                return kind + 2;
            case MicroKind.ImulRR:
                return SizeOf(op) switch { 3 => MicroKind.ImulNf64RR, 2 => MicroKind.ImulNf32RR, _ => kind };
            case MicroKind.ImulRI:
                return SizeOf(op) switch { 3 => MicroKind.ImulNf64RI, 2 => MicroKind.ImulNf32RI, _ => kind };
            case MicroKind.ShiftI or MicroKind.ShiftC when SizeOf(op) >= 2:
                int group = (AluOperation)(byte)op.Aux switch
                {
                    AluOperation.Shl => 0,
                    AluOperation.Shr => 1,
                    AluOperation.Sar => 2,
                    AluOperation.Rol => 3,
                    AluOperation.Ror => 4,
                    _ => -1,
                };
                if (group < 0)
                    return kind;
                return (MicroKind)((int)MicroKind.ShlNf64I + (4 * group) + (kind == MicroKind.ShiftC ? 2 : 0) + (SizeOf(op) == 2 ? 1 : 0));
            default:
                return kind;
        }
    }

    private static int SizeOf(in MicroOp op) => op.Aux >> 8;

    /// <summary>The bytes being decoded.</summary>
    private sealed class CodeWindow : CodeReader
    {
        private readonly byte[] _bytes = new byte[Window];
        private int _count;

        public int Position { get; set; }

        public void Set(ReadOnlySpan<byte> bytes)
        {
            bytes.CopyTo(_bytes);
            _count = bytes.Length;
            Position = 0;
        }

        public byte[] Copy(int length) => _bytes.AsSpan(0, length).ToArray();

        public override int ReadByte() => Position < _count ? _bytes[Position++] : -1;
    }
}
