using System.Buffers.Binary;
using System.Globalization;
using System.Linq;
using System.Security.Cryptography;
using System.Text;
using Tdp.Harness.Cli;
using Tdp.Harness.Reports;
using Tdp.Kernel;

namespace Tdp.Harness.Running;

/// <summary>One step of a measurement.</summary>
/// <param name="Call">PAGE.ADD or MR.EXTEND.</param>
/// <param name="Gpa">The address that the step measures, in hex.</param>
/// <param name="Segment">The part of the image that the page belongs to.</param>
/// <param name="Digest">SHA-384 of everything up to and with this step: what MRTD would be if it were the last.</param>
internal sealed record MeasuredStep(string Call, string Gpa, string Segment, string Digest);

/// <summary>What <c>tdpmmu measure</c> found.</summary>
/// <param name="Guest">The program.</param>
/// <param name="Vcpus">How many vCPUs.</param>
/// <param name="Memory">Guest memory in bytes.</param>
/// <param name="Accept">eager or lazy.</param>
/// <param name="Seed">The master seed; a word of the boot page comes from it.</param>
/// <param name="Mrtd">The measurement, in hex.</param>
/// <param name="Pages">Pages of the initial image.</param>
/// <param name="Steps">The steps, if they were asked for.</param>
internal sealed record MeasureReport(string Guest, int Vcpus, ulong Memory, string Accept, ulong Seed, string Mrtd, long Pages, IReadOnlyList<MeasuredStep>? Steps);

/// <summary><c>tdpmmu measure</c>: the MRTD that a TD of an image will have, computed from the image alone (tdx-module 9.1).</summary>
internal static class MeasureVerb
{
    private const int Chunk = 256;

    /// <summary>Measures and prints.</summary>
    public static int Run(MeasureSettings settings, Screen screen)
    {
        GuestImage image = GuestRun.Load(new GuestRunSettings(settings.Guest, settings.Vcpus, settings.Memory, OrdinaryVm: false, settings.AcceptEagerly, settings.Seed));
        List<MeasuredStep>? steps = settings.Steps ? [] : null;
        byte[] mrtd = Measure(image, steps);
        MeasureReport report = new(
            settings.Guest, settings.Vcpus, settings.Memory, settings.AcceptEagerly ? "eager" : "lazy", settings.Seed, Convert.ToHexStringLower(mrtd), image.Segments.Sum(s => (long)s.Pages), steps);
        if (settings.Json)
        {
            screen.WriteJson(report);
            return ExitCode.Ok;
        }

        foreach (MeasuredStep step in steps ?? [])
        {
            screen.Line($"{step.Call,-9} {step.Gpa,-10} {step.Digest}  {step.Segment}");
        }

        screen.Line(report.Mrtd);
        return ExitCode.Ok;
    }

    /// <summary>The MRTD of an image: its pages in ascending order, each added and then measured in 16 parts, as the host builds a TD.</summary>
    /// <param name="image">The image.</param>
    /// <param name="steps">Receives the steps, or <see langword="null"/>.</param>
    public static byte[] Measure(GuestImage image, List<MeasuredStep>? steps)
    {
        using IncrementalHash stream = IncrementalHash.CreateHash(HashAlgorithmName.SHA384);
        byte[] content = new byte[4096];
        void Append(string call, string name, ulong gpa, string segment, ReadOnlySpan<byte> data)
        {
            Span<byte> record = stackalloc byte[128];
            record.Clear();
            Encoding.ASCII.GetBytes(name, record);
            BinaryPrimitives.WriteUInt64LittleEndian(record[16..], gpa);
            stream.AppendData(record);
            stream.AppendData(data);
            steps?.Add(new MeasuredStep(call, string.Create(CultureInfo.InvariantCulture, $"0x{gpa:x}"), segment, Convert.ToHexStringLower(stream.GetCurrentHash())));
        }

        foreach (ImageSegment segment in image.Segments)
        {
            for (int page = 0; page < segment.Pages; page++)
            {
                ulong gpa = segment.Gpa + ((ulong)page << 12);
                segment.CopyPage(page, content);
                Append("PAGE.ADD", "MEM.PAGE.ADD", gpa, segment.Name, default);
                for (int at = 0; at < content.Length; at += Chunk)
                {
                    Append("MR.EXTEND", "MR.EXTEND", gpa + (ulong)at, segment.Name, content.AsSpan(at, Chunk));
                }
            }
        }

        return stream.GetHashAndReset();
    }
}
