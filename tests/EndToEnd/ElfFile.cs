using System.Buffers.Binary;
using System.IO;

namespace Tdp.Tests.EndToEnd;

/// <summary>Writes small ELF files, right or wrong on purpose.</summary>
internal sealed class ElfFile : IDisposable
{
    private readonly byte[] _bytes = new byte[4096];

    /// <summary>A static 64-bit x86 executable with the given load segments; each holds one HLT.</summary>
    public ElfFile(params (ulong Address, ulong MemoryBytes)[] segments)
    {
        Span<byte> file = _bytes;
        ReadOnlySpan<byte> ident = [0x7F, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1];
        ident.CopyTo(file);
        U16(16, 2);
        U16(18, 62);
        U32(20, 1);
        U64(24, segments[0].Address);
        U64(32, 64);
        U16(52, 64);
        U16(54, 56);
        U16(56, (ushort)segments.Length);
        for (int i = 0; i < segments.Length; i++)
        {
            int at = 64 + (i * 56);
            U32(at, 1);
            U32(at + 4, 5);
            U64(at + 8, 1024);
            U64(at + 16, segments[i].Address);
            U64(at + 24, segments[i].Address);
            U64(at + 32, 16);
            U64(at + 40, segments[i].MemoryBytes);
            U64(at + 48, 4096);
        }

        file.Slice(1024, 16).Fill(0xF4);
    }

    /// <summary>Where it is written.</summary>
    public string Path { get; } = System.IO.Path.Combine(System.IO.Path.GetTempPath(), System.IO.Path.GetRandomFileName());

    /// <summary>Changes bytes before the file is written.</summary>
    public ElfFile With(int offset, params byte[] bytes)
    {
        bytes.CopyTo(_bytes, offset);
        return this;
    }

    /// <summary>Puts other code at the entry point.</summary>
    public ElfFile WithCode(params byte[] code) => With(1024, code);

    /// <summary>Writes the file.</summary>
    public ElfFile Write()
    {
        File.WriteAllBytes(Path, _bytes);
        return this;
    }

    public void Dispose() => File.Delete(Path);

    private void U16(int at, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(_bytes.AsSpan(at), value);

    private void U32(int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(_bytes.AsSpan(at), value);

    private void U64(int at, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(_bytes.AsSpan(at), value);
}
