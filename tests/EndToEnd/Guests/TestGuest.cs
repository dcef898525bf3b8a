using System.IO;
using Iced.Intel;
using Tdp.Kernel;

namespace Tdp.Tests.EndToEnd.Guests;

/// <summary>A payload of a few instructions at 0x400000, as the ELF file that the loader expects.</summary>
internal static class TestGuest
{
    public const ulong Code = 0x40_0000;
    private const int HeaderBytes = 64 + 56;
    private const int FileOffset = 0x1000;

    /// <summary>Assembles; what follows the instructions is <c>return 0</c>.</summary>
    public static ElfImage Assemble(Action<Assembler> program)
    {
        var assembler = new Assembler(64);
        program(assembler);
        assembler.xor(AssemblerRegisters.eax, AssemblerRegisters.eax);
        assembler.ret();
        using var code = new MemoryStream();
        assembler.Assemble(new StreamCodeWriter(code), Code);
        return ElfImage.Parse(Wrap(code.ToArray()));
    }

    private static byte[] Wrap(byte[] code)
    {
        using var file = new MemoryStream();
        using var writer = new BinaryWriter(file);
        writer.Write([0x7F, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        writer.Write((ushort)2);
        writer.Write((ushort)62);
        writer.Write(1u);
        writer.Write(Code);
        writer.Write(64UL);
        writer.Write(0UL);
        writer.Write(0u);
        writer.Write((ushort)64);
        writer.Write((ushort)56);
        writer.Write((ushort)1);
        writer.Write((ushort)64);
        writer.Write(0u);
        writer.Write(1u);
        writer.Write(5u);
        writer.Write((ulong)FileOffset);
        writer.Write(Code);
        writer.Write(Code);
        writer.Write((ulong)code.Length);
        writer.Write((ulong)code.Length);
        writer.Write(0x1000UL);
        writer.Write(new byte[FileOffset - HeaderBytes]);
        writer.Write(code);
        return file.ToArray();
    }
}
