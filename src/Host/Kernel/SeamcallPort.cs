namespace Tdp.Host;

/// <summary>
/// How the host kernel issues SEAMCALLs: entropy retries, the software error codes of a faulting SEAMCALL, and the errno of the bring-up
/// calls (tdp-mmu 8.1, 9.5). Any actor on its own processor.
/// </summary>
public sealed class SeamcallPort
{
    /// <summary>TDX_RND_NO_ENTROPY is retried this often (RDRAND retry count).</summary>
    public const int EntropyRetries = 10;

    /// <summary>Value of RAX when the module is not loaded (VMFailInvalid).</summary>
    public const ulong VmFailInvalid = 0x8000_FF00_FFFF_0000;

    /// <summary>Value of RAX when SEAMCALL raised #GP: TDX is off in BIOS.</summary>
    public const ulong GeneralProtection = 0x8000_FF00_0000_000D;

    /// <summary>Value of RAX when SEAMCALL raised #UD: the processor is not in VMX operation.</summary>
    public const ulong InvalidOpcode = 0x8000_FF00_0000_0006;

    private readonly KernelLog _log;

    /// <summary>Makes the port to a module.</summary>
    public SeamcallPort(TdxModule module, KernelLog log)
    {
        Module = module;
        _log = log;
    }

    /// <summary>The module behind it, for its typed entry points.</summary>
    public TdxModule Module { get; }

    /// <summary>Issues a call and repeats it while the module lacks entropy.</summary>
    /// <param name="lp">The processor, which nobody else uses now.</param>
    /// <param name="registers">In and out; RAX is restored for a retry.</param>
    /// <returns>The status, also in RAX.</returns>
    public TdxStatus Call(LogicalProcessor lp, ref SeamRegisters registers)
    {
        SeamRegisters request = registers;
        for (int attempt = 0; ; attempt++)
        {
            Module.Seamcall(lp, ref registers);
            if (registers.Status != TdxStatus.RND_NO_ENTROPY || attempt == EntropyRetries)
                return registers.Status;
            registers = request;
        }
    }

    /// <summary>Issues a call whose outputs nobody needs.</summary>
    public TdxStatus Call(LogicalProcessor lp, TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0, int version = 0)
    {
        SeamRegisters registers = SeamRegisters.Call(leaf, rcx, rdx, r8, r9, version);
        return Call(lp, ref registers);
    }

    /// <summary>
    /// A bring-up call: any non-zero status is logged with leaf, operands and decoded status, and becomes an errno: -ENODEV module not loaded,
    /// -EOPNOTSUPP #GP, -EACCES #UD, otherwise -EIO.
    /// </summary>
    public Errno Prerr(LogicalProcessor lp, ref SeamRegisters registers)
    {
        SeamRegisters request = registers;
        TdxStatus status = Call(lp, ref registers);
        return status == TdxStatus.SUCCESS ? Errno.None : Explain(request, status);
    }

    /// <summary>The errno of a failed bring-up call, with its log line.</summary>
    public Errno Explain(in SeamRegisters request, TdxStatus status)
    {
        switch (status.Value)
        {
            case VmFailInvalid:
                _log.Add("virt/tdx", "module not loaded");
                return Errno.ENODEV;
            case GeneralProtection:
                _log.Add("virt/tdx", "SEAMCALL failed: TDX is not enabled by BIOS.");
                return Errno.EOPNOTSUPP;
            case InvalidOpcode:
                _log.Add("virt/tdx", "SEAMCALL failed: CPU is not in VMX operation.");
                return Errno.EACCES;
            default:
                _log.Add("virt/tdx", Describe(request, status));
                return Errno.EIO;
        }
    }

    /// <summary>One line: leaf, operands, status.</summary>
    public static string Describe(in SeamRegisters request, TdxStatus status) =>
        $"SEAMCALL ({((TdhLeaf)(ushort)request.Rax).FullName()}) failed: {status} (0x{status.Value:x16}), "
        + $"RCX 0x{request.Rcx:x} RDX 0x{request.Rdx:x} R8 0x{request.R8:x} R9 0x{request.R9:x}";
}
