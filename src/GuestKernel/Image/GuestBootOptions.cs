namespace Tdp.Kernel;

/// <summary>What a guest is built for. Immutable; the same options and payload give the same image, byte by byte. Source: td-guest 8.3.</summary>
public sealed record GuestBootOptions
{
    /// <summary>True for a trust domain, false for an ordinary VM. The image differs in boot-info and page tables only.</summary>
    public required bool IsTd { get; init; }

    /// <summary>Number of vCPUs, 1 to <see cref="GuestAbi.MaxVcpus"/>.</summary>
    public required int VcpuCount { get; init; }

    /// <summary>Bytes of RAM from GPA 0 on: a multiple of 2 MiB, from <see cref="GuestAbi.MinRamBytes"/> to <see cref="GuestAbi.MaxRamBytes"/>.</summary>
    public required ulong RamBytes { get; init; }

    /// <summary>Number of the GPA bit that tells shared from private: 47 or 51. Not used in an ordinary VM.</summary>
    public int AliasBit { get; init; } = 47;

    /// <summary>Guest-physical address width in bits: 48 (with alias bit 47) or 52 (with alias bit 51).</summary>
    public int GpaWidth { get; init; } = 48;

    /// <summary>True: RAM is accepted page by page when it is touched. False: all RAM is accepted before the payload starts.</summary>
    public bool LazyAccept { get; init; }

    /// <summary>True: a touch of unaccepted memory is a TD exit instead of a #VE, so lazy acceptance happens when memory is allocated.</summary>
    public bool PendingVeDisable { get; init; }

    /// <summary>Seed for the payload (boot-info offset 112).</summary>
    public ulong Seed { get; init; }

    /// <summary>Command line for the payload, printable ASCII, at most 1023 characters.</summary>
    public string CommandLine { get; init; } = "";

    /// <summary>Frequency of the time-stamp counter in kHz.</summary>
    public uint TscKhz { get; init; } = 1_000_000;

    /// <summary>The alias bit as a mask; 0 in an ordinary VM.</summary>
    public ulong SharedMask => IsTd ? 1UL << AliasBit : 0;

    /// <summary>Checks every value.</summary>
    /// <exception cref="GuestBootException">A value is impossible; the message names it and what is allowed.</exception>
    public void Validate()
    {
        if (VcpuCount is < 1 or > GuestAbi.MaxVcpus)
            throw new GuestBootException($"{VcpuCount} vCPUs: 1 to {GuestAbi.MaxVcpus} are possible");
        if (RamBytes is < GuestAbi.MinRamBytes or > GuestAbi.MaxRamBytes)
            throw new GuestBootException($"{RamBytes} bytes of guest memory: {GuestAbi.MinRamBytes >> 20} MiB to {GuestAbi.MaxRamBytes >> 20} MiB are possible");
        if (RamBytes % GuestAbi.UnitBytes != 0)
            throw new GuestBootException($"{RamBytes} bytes of guest memory: a multiple of 2 MiB is needed");
        if ((GpaWidth, AliasBit) is not ((48, 47) or (52, 51)))
            throw new GuestBootException($"GPA width {GpaWidth} with alias bit {AliasBit}: 48 with 47, or 52 with 51");
        if (CommandLine.Length > MaxCommandLine)
            throw new GuestBootException($"the guest command line has {CommandLine.Length} characters: at most {MaxCommandLine}");
        foreach (char c in CommandLine)
        {
            if (c is < ' ' or > '~')
                throw new GuestBootException($"the guest command line contains U+{(int)c:X4}: printable ASCII only");
        }
    }

    internal const int MaxCommandLine = 1023;
}

/// <summary>The guest cannot be built as asked for: impossible memory size, number of vCPUs, ... The message is one line.</summary>
public sealed class GuestBootException : Exception
{
    /// <summary>Creates the exception.</summary>
    /// <param name="message">One line: the value and what is allowed.</param>
    public GuestBootException(string message)
        : base(message)
    {
    }
}
