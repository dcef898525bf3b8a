using System.Runtime.InteropServices;

namespace Tdp.Sync;

/// <summary>
/// A value with its cache lines to itself, for the few fields of a managed object that one actor writes all the time: neighbouring objects of other
/// actors would otherwise share the line (performance, "What decides it").
/// </summary>
/// <typeparam name="T">What is kept.</typeparam>
[StructLayout(LayoutKind.Sequential)]
public struct Padded<T>
    where T : unmanaged
{
    private readonly Line _before;

    /// <summary>The value.</summary>
    public T Value;

    private readonly Line _after;

    [InlineArray(16)]
    private struct Line
    {
        private ulong _first;
    }
}
