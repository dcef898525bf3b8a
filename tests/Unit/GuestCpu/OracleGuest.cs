using System.Globalization;
using System.Text;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>What one comparison found.</summary>
internal readonly record struct OracleResult(string? Difference, bool Faulted);

/// <summary>The simulated side of the oracle: the same linear addresses as the host's pages, the same bytes, and HLT behind the code.</summary>
internal sealed class OracleGuest : IDisposable
{
    /// <summary>A flag mask that also leaves the result registers out: the manual defines none.</summary>
    public const ulong SkipResult = ulong.MaxValue;
    private readonly CpuRig _rig = new();
    private readonly byte[] _before = new byte[HostProcessor.ArenaBytes];
    private byte[] _loaded = [];

    public OracleGuest()
    {
        _rig.Allocate(HostProcessor.Base, 4);

        // Nothing can be delivered: an exception ends in a triple fault, which says "faulted".
        _rig.State.IdtrLimit = 0;
    }

    public static ulong[] RandomRegisters(SeedStream random)
    {
        ulong[] registers = new ulong[17];
        for (int i = 0; i < 16; i++)
            registers[i] = OracleValues.Draw(random);
        registers[16] = 2 | (random.Next() & 0x8D5);
        return registers;
    }

    public OracleResult Compare(HostProcessor host, byte[] code, ulong[] registers, SeedStream random, ulong flagMask)
    {
        random.Fill(_before);
        GuestState state = _rig.State;
        Load(code);
        for (int page = 0; page < 3; page++)
            _before.AsSpan(page * 4096, 4096).CopyTo(_rig.Machine.Memory.Frame(new Hpa(_rig.At(HostProcessor.Arena + ((ulong)page * 4096)))));
        for (int i = 0; i < 16; i++)
            state.Gpr[i] = i == 4 ? CpuRig.StackTop : registers[i];
        state.Rflags = registers[16];
        state.Rip = HostProcessor.Test;
        state.Activity = ActivityState.Active;
        VmExit exit = _rig.Enter();
        if (exit.Reason == ExitReason.TripleFault)
            return new OracleResult(null, true);
        if (exit.Reason != ExitReason.Hlt || state.Rip != HostProcessor.Test + (ulong)code.Length)
            return new OracleResult($"ended with {exit.Reason} at 0x{state.Rip:x}", false);

        ulong[] expected = [.. registers];
        _before.CopyTo(HostProcessor.ArenaMemory);
        host.Load(code);
        HostProcessor.Run(expected);
        if (flagMask == SkipResult)
            return default;
        StringBuilder difference = new();
        for (int i = 0; i < 16; i++)
        {
            if (i != 4 && state.Gpr[i] != expected[i])
                difference.Append(CultureInfo.InvariantCulture, $"{(Gpr)i} 0x{state.Gpr[i]:x} instead of 0x{expected[i]:x}; ");
        }

        if (((state.Rflags ^ expected[16]) & (flagMask | 0x400)) != 0)
            difference.Append(CultureInfo.InvariantCulture, $"flags 0x{state.Rflags & 0xCD5:x} instead of 0x{expected[16] & 0xCD5:x} (mask 0x{flagMask:x}); ");
        for (int page = 0; page < 3; page++)
        {
            ReadOnlySpan<byte> mine = _rig.Machine.Memory.Frame(new Hpa(_rig.At(HostProcessor.Arena + ((ulong)page * 4096))));
            if (!mine.SequenceEqual(HostProcessor.ArenaMemory.Slice(page * 4096, 4096)))
                difference.Append(CultureInfo.InvariantCulture, $"memory differs in page {page} at +0x{mine.CommonPrefixLength(HostProcessor.ArenaMemory.Slice(page * 4096, 4096)):x}; ");
        }

        if (difference.Length == 0)
            return default;
        difference.Append("from");
        for (int i = 0; i < 16; i++)
            difference.Append(CultureInfo.InvariantCulture, $" {(Gpr)i}=0x{registers[i]:x}");
        difference.Append(CultureInfo.InvariantCulture, $" flags=0x{registers[16]:x}");
        return new OracleResult(difference.ToString(), false);
    }

    public void Dispose() => _rig.Dispose();

    private void Load(byte[] code)
    {
        if (_loaded.AsSpan().SequenceEqual(code))
            return;
        _loaded = code;
        _rig.Write(HostProcessor.Test, [.. code, 0xF4]);
    }
}
