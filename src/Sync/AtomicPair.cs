using System.Runtime.InteropServices;

namespace Tdp.Sync;

/// <summary>
/// Two neighbouring 64-bit words of simulated memory that change together: CMPXCHG16B (td-guest 1.6). The framework has no 16-byte compare-exchange,
/// and a lock would not exclude the other processors' 8-byte accesses, so the host's own instruction does it.
/// </summary>
public readonly unsafe ref struct AtomicPair
{
    private static readonly delegate* unmanaged[SuppressGCTransition]<ulong*, ulong*, ulong, ulong, int> s_exchange = MakeExchange();
    private readonly ref ulong _low;

    /// <summary>Wraps the words. The address of <paramref name="low"/> must be a multiple of 16 and must not move.</summary>
    public AtomicPair(ref ulong low) => _low = ref low;

    /// <summary>
    /// Stores the desired pair iff the words hold the expected one; on failure the expected pair becomes what was found. Full fence. One event, on the
    /// low word.
    /// </summary>
    public bool CompareExchange(ref ulong expectedLow, ref ulong expectedHigh, ulong desiredLow, ulong desiredHigh, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, Hook.Resolve(ref _low), site) : default;
        ulong* pair = stackalloc ulong[] { expectedLow, expectedHigh };
        bool won = s_exchange((ulong*)Unsafe.AsPointer(ref _low), pair, desiredLow, desiredHigh) != 0;
        if (Explore.On)
            Hook.Happened(pending, won && (desiredLow != expectedLow || desiredHigh != expectedHigh), pair[0], won ? desiredLow : pair[0]);
        (expectedLow, expectedHigh) = (pair[0], pair[1]);
        return won;
    }

    private static delegate* unmanaged[SuppressGCTransition]<ulong*, ulong*, ulong, ulong, int> MakeExchange()
    {
        // int exchange(ulong* words, ulong* expected, ulong low, ulong high), in the calling convention of Linux on x64.
        ReadOnlySpan<byte> code =
        [
            0x53, // push rbx
            0x49, 0x89, 0xD0, // mov r8, rdx
            0x49, 0x89, 0xC9, // mov r9, rcx
            0x48, 0x8B, 0x06, // mov rax, [rsi]
            0x48, 0x8B, 0x56, 0x08, // mov rdx, [rsi+8]
            0x4C, 0x89, 0xC3, // mov rbx, r8
            0x4C, 0x89, 0xC9, // mov rcx, r9
            0xF0, 0x48, 0x0F, 0xC7, 0x0F, // lock cmpxchg16b [rdi]
            0x48, 0x89, 0x06, // mov [rsi], rax
            0x48, 0x89, 0x56, 0x08, // mov [rsi+8], rdx
            0x0F, 0x94, 0xC0, // sete al
            0x0F, 0xB6, 0xC0, // movzx eax, al
            0x5B, 0xC3, // pop rbx; ret
        ];
        const int ReadWrite = 3;
        const int ReadExecute = 5;
        const int PrivateAnonymous = 0x22;
        void* page = mmap(null, 4096, ReadWrite, PrivateAnonymous, -1, 0);
        if (page == (void*)-1)
            throw new InvalidOperationException($"cannot reserve a page of code (errno {Marshal.GetLastPInvokeError()})");
        code.CopyTo(new Span<byte>(page, 4096));

        // Never writable and executable at once: hardened systems refuse that.
        if (mprotect(page, 4096, ReadExecute) != 0)
            throw new InvalidOperationException($"cannot make a page executable (errno {Marshal.GetLastPInvokeError()})");
        return (delegate* unmanaged[SuppressGCTransition]<ulong*, ulong*, ulong, ulong, int>)page;
    }

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern void* mmap(void* address, nuint length, int protection, int flags, int fd, nint offset);

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern int mprotect(void* address, nuint length, int protection);
}
