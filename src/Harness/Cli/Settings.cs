namespace Tdp.Harness.Cli;

/// <summary>What <c>tdpmmu run</c> was asked to do.</summary>
/// <param name="Guest">Path of the guest's ELF file.</param>
/// <param name="Vcpus">How many vCPUs.</param>
/// <param name="Memory">The guest's memory in bytes.</param>
/// <param name="OrdinaryVm">An ordinary VM instead of a TD.</param>
/// <param name="AcceptEagerly">The guest accepts all of its memory at boot, not at the first touch.</param>
/// <param name="Seed">The master seed.</param>
/// <param name="Json">The report goes to stdout as JSON, the guest's console to stderr.</param>
/// <param name="Trace">Where the exits are written, one per line, or <see langword="null"/>.</param>
internal sealed record RunSettings(string Guest, int Vcpus, ulong Memory, bool OrdinaryVm, bool AcceptEagerly, ulong Seed, bool Json, string? Trace);

/// <summary>What <c>tdpmmu stress</c> was asked to do.</summary>
/// <param name="Duration">How long, or <see langword="null"/> when <paramref name="Iterations"/> limits the run.</param>
/// <param name="Iterations">How many operations in all, or <see langword="null"/>.</param>
/// <param name="Vcpus">How many faulting threads.</param>
/// <param name="Seed">The master seed of programs and injections.</param>
/// <param name="Json">The report goes to stdout as JSON.</param>
/// <param name="Module">The TDX module alone is stressed, with any value in any register.</param>
/// <param name="Round">Only this round of the module's stress, or <see langword="null"/>.</param>
/// <param name="Ops">Names of the operations that are drawn; <see langword="null"/> for all.</param>
/// <param name="BusyPerMillion">So many of a million calls that may answer BUSY do so without a reason.</param>
internal sealed record StressSettings(TimeSpan? Duration, long? Iterations, int Vcpus, ulong Seed, bool Json, bool Module = false, long? Round = null, IReadOnlyList<string>? Ops = null, int BusyPerMillion = 3906);

/// <summary>What <c>tdpmmu bench fault-in</c> was asked to measure.</summary>
/// <param name="Pages">Pages that one thread faults in.</param>
/// <param name="Threads">One thread count, or <see langword="null"/> for 1 and 2.</param>
/// <param name="Root">direct or mirror, or <see langword="null"/> for both.</param>
/// <param name="Order">seq, random or overlap.</param>
/// <param name="Json">The rows go to stdout as JSON.</param>
internal sealed record BenchSettings(int Pages, int? Threads, string? Root, string Order, bool Json);

/// <summary>What <c>tdpmmu inspect</c> was asked to show.</summary>
/// <param name="Guest">Path of the guest's ELF file.</param>
/// <param name="ExitNumber">Stop when the host has handled this exit of vCPU 0, counted from 1; or <see langword="null"/>.</param>
/// <param name="Gpa">Stop when the host has handled the first fault on the page with this guest physical address; or <see langword="null"/>.</param>
/// <param name="Vcpus">How many vCPUs.</param>
/// <param name="Memory">The guest's memory in bytes.</param>
/// <param name="AcceptEagerly">The guest accepts all of its memory at boot.</param>
/// <param name="Seed">The master seed.</param>
internal sealed record InspectSettings(string Guest, long? ExitNumber, ulong? Gpa, int Vcpus, ulong Memory, bool AcceptEagerly, ulong Seed);

/// <summary>What <c>tdpmmu conformance replay</c> was asked to do.</summary>
/// <param name="Files">Trace files.</param>
/// <param name="StopAtFirst">End at the first mismatch.</param>
/// <param name="Json">The report goes to stdout as JSON.</param>
internal sealed record ReplaySettings(IReadOnlyList<string> Files, bool StopAtFirst, bool Json);

/// <summary>What <c>tdpmmu scenario</c> was asked to do.</summary>
/// <param name="Verb">check, run, list or show.</param>
/// <param name="Files">Scenario files, or names of built-in scenarios.</param>
/// <param name="Seed">The master seed.</param>
/// <param name="Repeat">How often each is executed.</param>
/// <param name="Json">The report goes to stdout as JSON.</param>
internal sealed record ScenarioSettings(string Verb, IReadOnlyList<string> Files, ulong Seed, int Repeat, bool Json);

/// <summary>What <c>tdpmmu measure</c> was asked to do.</summary>
/// <param name="Guest">Path of the guest's ELF file.</param>
/// <param name="Vcpus">How many vCPUs.</param>
/// <param name="Memory">The guest's memory in bytes.</param>
/// <param name="AcceptEagerly">The guest accepts all of its memory at boot.</param>
/// <param name="Seed">The master seed.</param>
/// <param name="Steps">The measurement log, step by step.</param>
/// <param name="Json">The report goes to stdout as JSON.</param>
internal sealed record MeasureSettings(string Guest, int Vcpus, ulong Memory, bool AcceptEagerly, ulong Seed, bool Steps, bool Json);

/// <summary>What <c>tdpmmu seamcall</c> was asked to do.</summary>
/// <param name="Script">Path of the script, or <see langword="null"/> for standard input.</param>
/// <param name="Processors">Logical processors of the machine.</param>
/// <param name="Tdx15">Profile Tdx15 instead of Documented.</param>
/// <param name="Json">The calls go to stdout as JSON.</param>
internal sealed record SeamcallSettings(string? Script, int Processors, bool Tdx15, bool Json);
