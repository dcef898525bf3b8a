namespace Tdp.Harness.Reports;

/// <summary>One measured combination of a fault-in run.</summary>
/// <param name="Root">direct or mirror, with what the row leaves out or adds in words.</param>
/// <param name="Order">seq, random or overlap.</param>
/// <param name="Threads">Faulting threads.</param>
/// <param name="FloorNs">Nanoseconds per page of the floor loop, one thread, same order, same run.</param>
/// <param name="NsPerFault">Nanoseconds per fault and thread: wall time x threads / faults.</param>
/// <param name="RatioToFloor"><paramref name="NsPerFault"/> / <paramref name="FloorNs"/>.</param>
/// <param name="FaultsPerS">Faults per second, all threads together.</param>
/// <param name="BytesPerPage">Bytes of tables and bookkeeping per mapped page; the simulator's own frame ledger apart.</param>
/// <param name="AllocatedBytesPerFault">Managed bytes allocated per fault.</param>
/// <param name="Zeroing">Whether ACCEPT zeroes the page, as the architecture says; without it the row shows the page-table code alone.</param>
public sealed record BenchRow(
    string Root, string Order, int Threads, double FloorNs, double NsPerFault, double RatioToFloor, double FaultsPerS, double BytesPerPage, double AllocatedBytesPerFault, bool? Zeroing);

/// <summary>All rows of one run.</summary>
/// <param name="Rows">The rows.</param>
public sealed record BenchReport(IReadOnlyList<BenchRow> Rows);
