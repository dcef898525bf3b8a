using Iced.Intel;

namespace Tdp.Cpu;

/// <summary>
/// A run of predecoded instructions that lie in one frame and are entered only at their start (td-guest 3.2). It knows its code by host
/// frame and offset, not by linear address, so it survives a change of CR3 and serves every mapping of the frame.
/// </summary>
internal sealed class CodeBlock
{
    /// <summary>Most instructions in a block: bounds the time until an interrupt is looked at.</summary>
    public const int MaxInstructions = 64;

    /// <summary>The steps; the last one ends the block.</summary>
    public required MicroOp[] Ops;

    /// <summary>Decoded instructions that <see cref="MicroKind.Rare"/> steps refer to.</summary>
    public required Instruction[] Rare;

    /// <summary>The code bytes that were decoded.</summary>
    public required byte[] Bytes;

    /// <summary>Host address of the first byte.</summary>
    public required ulong Hpa;

    /// <summary>Host address of the second frame's first byte for an instruction that straddles pages, otherwise 0. Such a block has one instruction.</summary>
    public required ulong SecondFrame;

    /// <summary>Instructions in the block.</summary>
    public required int Count;

    /// <summary>The frame's code mark when the bytes were last compared (<see cref="CodeWatch"/>).</summary>
    public uint Mark;

    /// <summary>The second frame's.</summary>
    public uint SecondMark;

    /// <summary>The block in the same frame that follows when the last branch is taken, once known.</summary>
    public CodeBlock? Taken;

    /// <summary>The block in the same frame that follows when it is not.</summary>
    public CodeBlock? Fall;
}
