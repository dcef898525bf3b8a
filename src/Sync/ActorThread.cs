using System.Runtime.InteropServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>A place to wait for one's turn. A turn that is given before it is awaited is not lost.</summary>
public sealed class Turn : IDisposable
{
    private readonly SemaphoreSlim _given = new(0);

    /// <summary>Lets the one who waits, or comes to wait, go on. What the giver has written is visible to it.</summary>
    public void Give() => _given.Release();

    /// <summary>Waits for the turn.</summary>
    public void Take() => _given.Wait();

    /// <inheritdoc/>
    public void Dispose() => _given.Dispose();
}

/// <summary>
/// An OS thread that a scheduler keeps for many executions, with a place to park. Exactly one of a scheduler's threads runs at a time; a wake hands
/// the turn over together with everything the waker has written (race-explorer 2).
/// </summary>
public sealed class ActorThread : IDisposable
{
    private readonly Turn _turn = new();
    private readonly Action _body;
    private readonly int _cpu;
    private Thread? _thread;

    /// <summary>Makes the thread; it does not run yet.</summary>
    /// <param name="name">Name for debuggers.</param>
    /// <param name="cpu">The processor of this computer it stays on, or -1 for any. Hand-overs between threads of one processor cost a third.</param>
    /// <param name="body">What it does, once, from the first wake on.</param>
    public ActorThread(string name, int cpu, Action body)
    {
        _cpu = cpu;
        _body = body;
        _thread = new Thread(Run, 1 << 20) { IsBackground = true, Name = name };
        _thread.Start();
    }

    /// <summary>The processor that the calling thread is on.</summary>
    public static int CurrentProcessor() => Thread.GetCurrentProcessorId();

    /// <summary>Lets the thread go on from its <see cref="Park"/>, or start. A wake before the park is not lost.</summary>
    public void Wake() => _turn.Give();

    /// <summary>Stops the calling thread, which must be this one, until the next <see cref="Wake"/>.</summary>
    public void Park() => _turn.Take();

    /// <summary>Waits until the body has ended; whoever disposes has told it to.</summary>
    public void Dispose()
    {
        _thread?.Join();
        _thread = null;
        _turn.Dispose();
    }

    private unsafe void Run()
    {
        if (_cpu >= 0)
        {
            // Of the calling thread alone. A computer that refuses is only slower.
            ulong* mask = stackalloc ulong[16];
            new Span<ulong>(mask, 16).Clear();
            mask[_cpu >> 6] = 1UL << (_cpu & 63);
            _ = sched_setaffinity(0, 128, mask);
        }

        Park();
        _body();
    }

    [DllImport("libc")]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern unsafe int sched_setaffinity(int thread, nuint bytes, ulong* mask);
}
