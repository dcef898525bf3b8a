using System;
using System.Runtime.CompilerServices;
using System.Threading;
using Tdp.Sync;

namespace Tdp.Tests.HookProbe;

/// <summary>
/// Pairs of methods that do the same once through a primitive of Sync and once through the same primitive without its hooks. The test that starts this program lets the
/// runtime print the size of their tier-1 code: with the hook off, the two of a pair must be equally long (race-explorer 3.1, X6).
/// </summary>
internal static class Program
{
    private static ulong[] s_words = GC.AllocateArray<ulong>(64, pinned: true);

    private static int Main()
    {
        ulong sum = 0;

        // The walk needs a chain that it can follow for ever.
        for (int i = 0; i < s_words.Length; i++)
            s_words[i] = (ulong)((i + 1) % s_words.Length);

        // Long past 30 calls and the tiering delay; the methods are short, so this is a fraction of a second.
        for (int i = 0; i < 400; i++)
        {
            for (int j = 0; j < 2000; j++)
                sum += HookedWalk(ref s_words[0]) + BareWalk(ref s_words[0]) + HookedInstall(ref s_words[8]) + BareInstall(ref s_words[8]) + HookedSet(ref s_words[9]) + BareSet(ref s_words[9]);
            Thread.Yield();
        }

        Console.WriteLine(sum == 0 ? "0" : "done");
        return Explore.On ? 1 : 0;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong HookedWalk(ref ulong table)
    {
        ulong at = 0;
        for (int level = 0; level < 4; level++)
            at = new AtomicWord(ref Unsafe.Add(ref table, (nint)at)).Read();
        return at;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong BareWalk(ref ulong table)
    {
        ulong at = 0;
        for (int level = 0; level < 4; level++)
            at = new BareWord(ref Unsafe.Add(ref table, (nint)at)).Read();
        return at;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong HookedInstall(ref ulong word)
    {
        ulong seen = new AtomicWord(ref word).Read();
        return new AtomicWord(ref word).CompareExchange(ref seen, seen ^ 1) ? 1UL : seen;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong BareInstall(ref ulong word)
    {
        ulong seen = new BareWord(ref word).Read();
        return new BareWord(ref word).CompareExchange(ref seen, seen ^ 1) ? 1UL : seen;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong HookedSet(ref ulong word)
    {
        new AtomicWord(ref word).Write(7);
        Fence.Full();
        return new AtomicWord(ref word).Or(8) + new AtomicWord(ref word).Exchange(1);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong BareSet(ref ulong word)
    {
        new BareWord(ref word).Write(7);
        Interlocked.MemoryBarrier();
        return new BareWord(ref word).Or(8) + new BareWord(ref word).Exchange(1);
    }

    // AtomicWord without its hooks: the same shape of code, so that a difference in size can only come from the hook.
    private readonly ref struct BareWord
    {
        private readonly ref ulong _word;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public BareWord(ref ulong word) => _word = ref word;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ulong Read() => Volatile.Read(ref _word);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Write(ulong value) => Volatile.Write(ref _word, value);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ulong Or(ulong bits) => Interlocked.Or(ref _word, bits);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ulong Exchange(ulong value) => Interlocked.Exchange(ref _word, value);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public bool CompareExchange(ref ulong expected, ulong desired)
        {
            ulong found = Interlocked.CompareExchange(ref _word, desired, expected);
            if (found == expected)
                return true;
            expected = found;
            return false;
        }
    }
}
