namespace Tdp.Platform;

/// <summary>
/// How a processor in non-root mode reaches memory: TLB, then the hardware walk of the tree that the alias bit selects (td-guest 1.3). Used by
/// every engine, so a scripted guest and the real CPU fill the same TLB with the same bytes.
/// </summary>
public static class GuestPhysical
{
    private const ulong DataOfLinear = 1 << 8;
    private const ulong LinearValid = 1 << 7;
    private const ushort LastLogEntry = 511;

    /// <summary>
    /// Translates one guest physical address. On success the page of <paramref name="gpa"/> may be used for <paramref name="access"/>.
    /// On failure <see cref="Vmcs.Exit"/> holds reason 48 or 49 with qualification bits 5:0, GPA and convertibility; the caller adds what it knows of
    /// the linear address with <see cref="DescribeLinear"/>.
    /// </summary>
    /// <param name="machine">The machine.</param>
    /// <param name="lp">The processor; its TLB is used and filled.</param>
    /// <param name="vmcs">The vCPU.</param>
    /// <param name="gpa">Address with its alias bit.</param>
    /// <param name="access">What the access does.</param>
    /// <param name="hpa">Host address of the byte.</param>
    /// <returns>True on success.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryTranslate(Machine machine, LogicalProcessor lp, Vmcs vmcs, ulong gpa, AccessKind access, out ulong hpa)
    {
        ref TlbEntry entry = ref lp.Tlb.Find(vmcs.Eptp, vmcs.VcpuId, gpa, access);
        if (Unsafe.IsNullRef(ref entry))
            return Walk(machine, lp, vmcs, gpa, access, out hpa);
        hpa = entry.Frame | (gpa & ((1UL << ((9 * (entry.Level - 1)) + 12)) - 1));
        if (Checks.On)
            CheckHit(machine, lp, vmcs, ref entry, gpa, hpa);
        if (Explore.On)
            Touch.Read(ObjectId.Frame(machine.Memory.Record(hpa >> 12).Name));
        return true;
    }

    /// <summary>
    /// Completes the exit information of a failed translation: qualification bit 7 (linear address valid) and bit 8 (the access itself, as opposed to
    /// one of its page-table reads).
    /// </summary>
    public static void DescribeLinear(Vmcs vmcs, ulong gla, bool isPageTable)
    {
        vmcs.Exit.Gla = gla;
        vmcs.Exit.Qualification |= LinearValid | (isPageTable ? 0 : DataOfLinear);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool Walk(Machine machine, LogicalProcessor lp, Vmcs vmcs, ulong gpa, AccessKind access, out ulong hpa)
    {
        hpa = 0;
        bool shared = vmcs.AliasBit.Number != 0 && (gpa & vmcs.AliasBit.GpaMask) != 0;
        ulong pointer = shared ? vmcs.SharedEptp : vmcs.Eptp;
        EptWalk walk;
        if (EptPointer.RootOf(pointer).Value == 0 || (vmcs.GpaWidth < 52 && gpa >> vmcs.GpaWidth != 0))
            walk = new EptWalk { Outcome = EptOutcome.Violation, Entry = EptEntry.SuppressVe, Level = EptPointer.LevelOf(pointer), Rights = 0, IsConvertible = false, Address = default };
        else
            walk = EptWalker.WalkToMemory(machine.Memory, pointer, new Gpa(gpa), access, vmcs.LogsDirtyPages && vmcs.PmlIndex > LastLogEntry);

        if (walk.Outcome == EptOutcome.Ok)
        {
            hpa = walk.Address.Value;
            bool writes = (access & AccessKind.Write) != AccessKind.None;
            bool wrote = writes || (pointer & EptPointer.AccessedDirty) == 0;
            if (vmcs.LogsDirtyPages && writes && (walk.Entry & EptEntry.Dirty) == 0)
                LogDirty(machine, vmcs, gpa);
            lp.Tlb.Fill(vmcs.Eptp, vmcs.VcpuId, gpa, walk, wrote, machine.Memory.Record(hpa >> 12).Generation);
            return true;
        }

        vmcs.Exit = new VmExit
        {
            Reason = walk.Outcome switch
            {
                EptOutcome.Violation => ExitReason.EptViolation,
                EptOutcome.LogFull => ExitReason.PageModificationLogFull,
                _ => ExitReason.EptMisconfiguration,
            },
            Qualification = walk.Qualification(access),
            Gpa = gpa,
            IsConvertible = walk.IsConvertible,
            InstructionLength = 0xCC,
        };
        return false;
    }

    // The log belongs to this processor until the guest is left; the host reads it after the exit.
    private static void LogDirty(Machine machine, Vmcs vmcs, ulong gpa) =>
        machine.Memory.Entry(vmcs.PmlPage, vmcs.PmlIndex--).Write(gpa & ~0xFFFUL);

    private static void CheckHit(Machine machine, LogicalProcessor lp, Vmcs vmcs, ref TlbEntry entry, ulong gpa, ulong hpa)
    {
        // Large entries cover frames with generations of their own; only the frame they were filled for is known.
        if (entry.Level == 1 && machine.Memory.Record(hpa >> 12).Generation != entry.Generation)
            ReportStale(machine, lp, vmcs, entry, gpa, hpa);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ReportStale(Machine machine, LogicalProcessor lp, Vmcs vmcs, TlbEntry entry, ulong gpa, ulong hpa)
    {
        FrameRecord record = machine.Memory.Record(hpa >> 12);
        machine.Findings.Add(
            "I57",
            $"LP {lp.Id} vCPU {vmcs.VcpuId} used a stale translation: GPA 0x{gpa:x} -> frame 0x{hpa >> 12:x}, filled at generation {entry.Generation}, now {record.Generation} ({record.Use})");
    }
}
