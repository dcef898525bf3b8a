using System.Buffers.Binary;
using System.IO;
using System.IO.Compression;
using System.Text;
using System.Text.Json;
using Tdp.Harness.Cli;

namespace Tdp.Harness.Conformance;

/// <summary>
/// The records of a trace file: one JSON object per line, UTF-8, plain or gzip. What the bytes are is read from the bytes, not from the name.
/// Everything that is wrong with them is a <see cref="UsageException"/> that says file, line and reason.
/// </summary>
internal sealed class TraceReader : IDisposable
{
    private static readonly UTF8Encoding s_utf8 = new(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true);
    private static ReadOnlySpan<byte> GzipMagic => [0x1F, 0x8B, 8];

    private readonly StreamReader _reader;

    // The decompressor ends quietly where its input does.
    private readonly bool _isCut;

    private TraceReader(string path, StreamReader reader, bool isCut)
    {
        Path = path;
        _reader = reader;
        _isCut = isCut;
    }

    /// <summary>The file as the user named it.</summary>
    public string Path { get; }

    /// <summary>Number of the line that was read last, from 1.</summary>
    public long Line { get; private set; }

    /// <summary>Opens a trace.</summary>
    /// <exception cref="UsageException">It does not exist or cannot be read.</exception>
    public static TraceReader Open(string path)
    {
        FileStream? file = null;
        try
        {
            Stream stream = file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 1 << 16);
            bool isGzip = file.ReadByte() == GzipMagic[0] && file.ReadByte() == GzipMagic[1];
            file.Position = 0;
            if (isGzip)
                stream = new GZipStream(file, CompressionMode.Decompress);
            return new TraceReader(path, new StreamReader(stream, s_utf8, detectEncodingFromByteOrderMarks: false, bufferSize: 1 << 16), isGzip && IsCut(path));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or NotSupportedException)
        {
            file?.Dispose();
            string reason = Directory.Exists(path) ? "is a folder; allowed is a trace file"
                : File.Exists(path) ? e.Message.ReplaceLineEndings(" ")
                : "no such file";
            throw new UsageException($"FILE {path}: {reason}");
        }
    }

    /// <summary>The next record, or <see langword="false"/> at the end of the file. Empty lines are passed over.</summary>
    /// <exception cref="UsageException">The file is damaged, or the line is no JSON object.</exception>
    public bool TryRead(out TraceRecord record)
    {
        string? text;
        do
        {
            Line++;
            try
            {
                text = _reader.ReadLine();
            }
            catch (InvalidDataException)
            {
                throw Wrong("the gzip data is damaged here");
            }
            catch (DecoderFallbackException)
            {
                throw Wrong("not UTF-8 text");
            }
            catch (IOException e)
            {
                throw Wrong(e.Message.ReplaceLineEndings(" "));
            }

            if (_isCut && (text is null || _reader.EndOfStream))
                throw Wrong("the gzip data is truncated here");
            if (text is null)
            {
                record = default;
                return false;
            }
        }
        while (text.AsSpan().IsWhiteSpace());

        record = new TraceRecord(Path, Line, Parse(text));
        return true;
    }

    /// <inheritdoc/>
    public void Dispose() => _reader.Dispose();

    // A gzip member ends with the length of what it holds: a file whose last four bytes are no such length was cut off.
    private static bool IsCut(string path)
    {
        byte[] bytes = File.ReadAllBytes(path);
        uint last = bytes.Length < 18 ? 0 : BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(^4..));
        int start = 0;
        do
        {
            if (TryMeasure(bytes, start, out long length) && (uint)length == last)
                return false;

            // Members may follow each other; only the last one's length is at the end.
            int next = bytes.AsSpan(start + 1).IndexOf(GzipMagic);
            start = next < 0 ? bytes.Length : start + 1 + next;
        }
        while (start < bytes.Length);

        return true;
    }

    private static bool TryMeasure(byte[] bytes, int start, out long length)
    {
        length = 0;
        byte[] piece = new byte[1 << 16];
        try
        {
            using var gzip = new GZipStream(new MemoryStream(bytes, start, bytes.Length - start), CompressionMode.Decompress);
            int read;
            while ((read = gzip.Read(piece, 0, piece.Length)) > 0)
                length += read;
            return true;
        }
        catch (InvalidDataException)
        {
            // Damaged, which reading it line by line will place.
            return false;
        }
    }

    private JsonElement Parse(string text)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            return document.RootElement.ValueKind == JsonValueKind.Object ? document.RootElement.Clone() : throw Wrong("not a JSON object");
        }
        catch (JsonException)
        {
            throw Wrong("not JSON");
        }
    }

    private UsageException Wrong(string reason) => new($"{Path}:{Line}: {reason}");
}
