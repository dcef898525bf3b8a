using System.Text;

namespace Tdp.Host;

/// <summary>
/// The devices of the user-space VMM (td-guest 8.3): console port 0xE9, exit port 0xF4, and an 8-byte scratch register at the start of the MMIO window
/// that reads back
/// what was written. Used by all vCPUs.
/// </summary>
public sealed class VmmDevices
{
    private readonly SyncGate _gate = new();
    private readonly List<byte> _output = [];
    private readonly Action<byte>? _console;
    private ulong _scratch = GuestAbi.MmioScratchReset;
    private uint _exitCode;

    internal VmmDevices(Action<byte>? console) => _console = console;

    /// <summary>Everything that the guest printed, as bytes.</summary>
    public byte[] Output
    {
        get
        {
            using (_gate.Hold())
                return [.. _output];
        }
    }

    /// <summary>Everything that the guest printed, as text.</summary>
    public string OutputText => Encoding.Latin1.GetString(Output);

    /// <summary>The exit code, once written.</summary>
    public uint ExitCode => _exitCode;

    /// <summary>The scratch register.</summary>
    public ulong Scratch
    {
        get
        {
            using (_gate.Hold())
                return _scratch;
        }
    }

    /// <summary>MMIO accesses served.</summary>
    public long MmioAccesses { get; private set; }

    internal static void Mmio(VmmDevices devices, VcpuRunState run)
    {
        using (devices._gate.Hold())
        {
            devices.MmioAccesses++;
            ulong offset = run.Gpa - GuestAbi.MmioScratch;
            if (offset < 8 && offset + (ulong)run.Size <= 8)
            {
                int shift = 8 * (int)offset;
                ulong mask = run.Size == 8 ? ulong.MaxValue : ((1UL << (8 * run.Size)) - 1) << shift;
                if (run.IsWrite)
                    devices._scratch = (devices._scratch & ~mask) | ((run.Value << shift) & mask);
                else
                    run.Value = (devices._scratch & mask) >> shift;
                return;
            }

            // Nobody there: reads float high, writes are lost.
            if (!run.IsWrite)
                run.Value = ulong.MaxValue;
        }
    }

    internal static string Printable(ReadOnlySpan<byte> text)
    {
        var result = new StringBuilder();
        foreach (byte b in text)
        {
            if (b == 0)
                break;
            result.Append(b is >= 0x20 and < 0x7F ? (char)b : '.');
        }

        return result.ToString();
    }

    // False: the guest has ended.
    internal bool Io(VcpuRunState run)
    {
        using (_gate.Hold())
        {
            switch (run.Port)
            {
                case GuestAbi.ConsolePort when run.IsWrite:
                    for (int i = 0; i < run.Size; i++)
                        Print((byte)(run.Value >> (8 * i)));
                    return true;
                case GuestAbi.ExitPort when run.IsWrite:
                    _exitCode = (uint)run.Value;
                    return false;
                default:
                    if (!run.IsWrite)
                        run.Value = ulong.MaxValue;
                    return true;
            }
        }
    }

    private void Print(byte b)
    {
        _output.Add(b);
        _console?.Invoke(b);
    }
}
