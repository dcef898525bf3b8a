namespace Tdp.Cpu;

/// <content>From RIP to a block: by linear address, by host address, or by decoding.</content>
public sealed partial class GuestCpu
{
    private const int JumpSlots = 2048;
    private uint _jumpTag;

    /// <summary>A block that was found for a linear address, good for one epoch of translations and one privilege.</summary>
    private struct JumpSlot
    {
        public ulong Rip;
        public uint Tag;
        public uint Generation;
        public CodeBlock? Block;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryJumpCache(ulong rip, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out CodeBlock? block)
    {
        ref JumpSlot slot = ref _jumps[(int)(rip ^ (rip >> 11)) & (JumpSlots - 1)];
        block = slot.Block;
        if (slot.Rip != rip || slot.Tag != _jumpTag || block is null || CodeWatch.Read(_memory, block.Hpa) != block.Mark)
            return false;
        if (Checks.On && _memory.Record(block.Hpa >> 12).Generation != slot.Generation)
            _linear.ReportStale(rip, block.Hpa, slot.Generation);
        return true;
    }

    /// <summary>The block at a linear address; null with the trap set when the fetch fails.</summary>
    private CodeBlock? FindBlock(ulong rip, int limit)
    {
        CodeBlock? before = _unlinked;
        _unlinked = null;
        _jumpTag = (_linear.Epoch << 1) | (_linear.IsUser ? 1u : 0);
        _registers[RegisterFile.PageBase >> 3] = rip & ~0xFFFUL;
        if (limit != 1 && TryJumpCache(rip, out CodeBlock? block))
        {
            Link(before, block);
            return block;
        }

        if (!_linear.IsCanonical(rip))
        {
            _linear.Trap.GeneralProtection();
            return null;
        }

        if (!_linear.TryTranslate(rip, AccessKind.Fetch, _linear.IsUser, out ulong hpa))
            return null;
        block = limit == 1 ? Decode(rip, hpa, limit) : Known(rip, hpa);
        if (block is null || limit == 1 || !_linear.MayCache || block.SecondFrame != 0 || CodeWatch.NeedsCompare(block.Mark))
            return block;
        _jumps[(int)(rip ^ (rip >> 11)) & (JumpSlots - 1)] = new JumpSlot
        {
            Rip = rip,
            Tag = _jumpTag,
            Generation = _memory.Record(hpa >> 12).Generation,
            Block = block,
        };
        Link(before, block);
        return block;
    }

    // A branch within the page leads to the same block whatever the page's linear address is, so the link needs no epoch.
    private void Link(CodeBlock? before, CodeBlock block)
    {
        if (before is null || before.Hpa >> 12 != block.Hpa >> 12 || CodeWatch.NeedsCompare(block.Mark))
            return;
        if (_unlinkedTaken)
            before.Taken = block;
        else
            before.Fall = block;
    }

    private CodeBlock? Known(ulong rip, ulong hpa)
    {
        if (_blocks.TryGetValue(hpa, out CodeBlock? block) && IsCurrent(block, rip, out bool fetched))
            return block;
        if (block is not null && _linear.Trap.Kind != TrapKind.None)
            return null;
        block = Decode(rip, hpa, CodeBlock.MaxInstructions);
        if (block is null)
            return null;
        if (_blocks.Count >= _options.CachedBlocks)
            _blocks.Clear();
        _blocks[hpa] = block;
        return block;

        bool IsCurrent(CodeBlock known, ulong linear, out bool done)
        {
            done = true;
            if (known.SecondFrame != 0)
            {
                done = _linear.TryTranslate((linear & ~0xFFFUL) + 0x1000, AccessKind.Fetch, _linear.IsUser, out ulong second);
                if (!done || second != known.SecondFrame)
                    return false;
            }

            return HasSameBytes(known);
        }
    }

    private bool HasSameBytes(CodeBlock block)
    {
        // The marks are read before the bytes: a store in between leaves a mark that will be found old.
        uint mark = CodeWatch.Read(_memory, block.Hpa);
        uint second = block.SecondFrame != 0 ? CodeWatch.Read(_memory, block.SecondFrame) : 0;
        if (mark == block.Mark && second == block.SecondMark && !CodeWatch.NeedsCompare(mark) && !CodeWatch.NeedsCompare(second))
            return true;
        int offset = (int)(block.Hpa & 0xFFF);
        int first = Math.Min(block.Bytes.Length, 0x1000 - offset);
        if (!_memory.Frame(new Hpa(block.Hpa & ~0xFFFUL)).Slice(offset, first).SequenceEqual(block.Bytes.AsSpan(0, first)))
            return false;
        if (first < block.Bytes.Length && !_memory.Frame(new Hpa(block.SecondFrame))[..(block.Bytes.Length - first)].SequenceEqual(block.Bytes.AsSpan(first)))
            return false;
        (block.Mark, block.SecondMark) = (mark, second);
        return true;
    }

    private CodeBlock? Decode(ulong rip, ulong hpa, int limit)
    {
        uint mark = Announce(hpa);
        BlocksDecoded++;
        if (_builder.Build(hpa, limit, mark) is { } block)
            return block;

        // The first instruction goes on in the next page, whose fetch has faults of its own (td-guest 2.1).
        ulong next = (rip & ~0xFFFUL) + 0x1000;
        if (!_linear.IsCanonical(next))
        {
            _linear.Trap.GeneralProtection();
            return null;
        }

        if (!_linear.TryTranslate(next, AccessKind.Fetch, _linear.IsUser, out ulong second))
            return null;
        return _builder.BuildStraddling(hpa, second, mark, Announce(second));
    }

    private uint Announce(ulong hpa)
    {
        uint mark = CodeWatch.AnnounceDecode(_memory, hpa);
        if (CodeWatch.NeedsCompare(mark))
            _linear.ForgetWriter(hpa & ~0xFFFUL);
        return mark;
    }
}
