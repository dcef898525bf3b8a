namespace Tdp.Harness.Conformance;

/// <summary>Brings a module up on a machine the way a host does, with nothing but SEAMCALLs (tdx-module 2.1): the state in which most recordings begin.</summary>
internal static class ModuleBringUp
{
    private const ulong PointerArray = 0x1_5000_0000;
    private const ulong FirstInfo = 0x1_5000_1000;
    private const ulong InfoBytes = 512;

    /// <summary>From module load to SYS_READY with every TDMR initialised.</summary>
    /// <param name="machine">The machine; its processors are in VMX operation.</param>
    /// <param name="module">The module, just loaded.</param>
    /// <param name="globalHkid">The module's own private KeyID.</param>
    public static void Run(Machine machine, TdxModule module, ulong globalHkid)
    {
        LogicalProcessor first = machine.Processors[0];
        Call(module, first, SeamRegisters.Call(TdhLeaf.SYS_INIT));
        foreach (LogicalProcessor lp in machine.Processors)
            Call(module, lp, SeamRegisters.Call(TdhLeaf.SYS_LP_INIT));
        WriteTdmrs(machine);
        Call(module, first, SeamRegisters.Call(TdhLeaf.SYS_CONFIG, PointerArray, (ulong)machine.Description.Tdmrs.Count, globalHkid));
        ulong done = 0;
        foreach (LogicalProcessor lp in machine.Processors)
        {
            if ((done & (1UL << lp.Package)) == 0)
                Call(module, lp, SeamRegisters.Call(TdhLeaf.SYS_KEY_CONFIG));
            done |= 1UL << lp.Package;
        }

        foreach (TdmrDescription tdmr in machine.Description.Tdmrs)
        {
            ulong next;
            do
                next = Call(module, first, SeamRegisters.Call(TdhLeaf.SYS_TDMR_INIT, tdmr.Range.Base)).Rdx;
            while (next < tdmr.Range.End);
        }
    }

    // The host's description of its TDMRs: TDMR_INFO structures and the array of pointers to them (tdx-module 2.3).
    private static void WriteTdmrs(Machine machine)
    {
        for (int i = 0; i < machine.Description.Tdmrs.Count; i++)
        {
            TdmrDescription tdmr = machine.Description.Tdmrs[i];
            ulong info = FirstInfo + ((ulong)i * InfoBytes);
            machine.Memory.Word(PointerArray + ((ulong)i * 8)) = info;
            ulong[] words = [tdmr.Range.Base, tdmr.Range.Size, tdmr.Pamt1G.Base, tdmr.Pamt1G.Size, tdmr.Pamt2M.Base, tdmr.Pamt2M.Size, tdmr.Pamt4K.Base, tdmr.Pamt4K.Size];
            for (int w = 0; w < words.Length; w++)
                machine.Memory.Word(info + ((ulong)w * 8)) = words[w];
            for (int r = 0; r < tdmr.Reserved.Count; r++)
            {
                machine.Memory.Word(info + 64 + ((ulong)r * 16)) = tdmr.Reserved[r].Base - tdmr.Range.Base;
                machine.Memory.Word(info + 72 + ((ulong)r * 16)) = tdmr.Reserved[r].Size;
            }
        }
    }

    private static SeamRegisters Call(TdxModule module, LogicalProcessor lp, SeamRegisters registers)
    {
        string leaf = ((TdhLeaf)(ushort)registers.Rax).FullName();
        module.Seamcall(lp, ref registers);
        return registers.Status.IsError ? throw new InvalidOperationException($"{leaf}: {registers.Status}") : registers;
    }
}
