using System.Globalization;
using System.IO;
using System.Threading;

namespace Tdp.Harness.Running;

/// <summary>Writes every exit, every fault and every SEAMCALL of a run, one per line, in the order in which they ended.</summary>
internal sealed class TraceFile : IExitObserver, IModuleObserver, IDisposable
{
    private readonly Lock _gate = new();
    private readonly StreamWriter _writer;
    private long _exits;

    /// <summary>Creates the file.</summary>
    /// <exception cref="IOException">It cannot be created.</exception>
    public TraceFile(string path) => _writer = new StreamWriter(path);

    /// <inheritdoc/>
    public void Exited(Vcpu vcpu, ExitReason reason, ulong gpa)
    {
        string fault = reason is ExitReason.EptViolation or ExitReason.EptMisconfiguration ? string.Create(CultureInfo.InvariantCulture, $" gpa 0x{gpa:x}") : string.Empty;
        lock (_gate)
        {
            _writer.WriteLine(string.Create(CultureInfo.InvariantCulture, $"exit {++_exits} vcpu{vcpu.Id} {reason}{fault}"));
        }
    }

    /// <inheritdoc/>
    public void Calling(LogicalProcessor lp, in SeamRegisters registers)
    {
    }

    /// <inheritdoc/>
    public void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
    {
        TdhLeaf leaf = (TdhLeaf)(ushort)before.Rax;
        string line = string.Create(CultureInfo.InvariantCulture, $"lp{lp.Id} {leaf.FullName()} rcx 0x{before.Rcx:x} rdx 0x{before.Rdx:x} r8 0x{before.R8:x} -> {after.Status}");
        lock (_gate)
        {
            _writer.WriteLine(line);
        }
    }

    /// <inheritdoc/>
    public void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
    {
        string line = string.Create(CultureInfo.InvariantCulture, $"lp{lp.Id} {leaf.FullName()} -> {(exited ? "exit" : status.ToString())}");
        lock (_gate)
        {
            _writer.WriteLine(line);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _writer.Dispose();
}
