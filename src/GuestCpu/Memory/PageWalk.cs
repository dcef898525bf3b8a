namespace Tdp.Cpu;

/// <summary>Bits of CR0 that this CPU looks at.</summary>
internal static class Cr0
{
    public const ulong Protection = 1;
    public const ulong MonitorCoprocessor = 2;
    public const ulong Emulation = 4;
    public const ulong TaskSwitched = 8;
    public const ulong ExtensionType = 0x10;
    public const ulong NumericError = 0x20;
    public const ulong WriteProtect = 0x1_0000;
    public const ulong AlignmentMask = 0x4_0000;
    public const ulong NotWriteThrough = 0x2000_0000;
    public const ulong CacheDisable = 0x4000_0000;
    public const ulong Paging = 0x8000_0000;
}

/// <summary>Bits of CR4 that this CPU looks at.</summary>
internal static class Cr4
{
    public const ulong TimeStampDisable = 1 << 2;
    public const ulong PhysicalAddressExtension = 1 << 5;
    public const ulong PageGlobal = 1 << 7;
    public const ulong PerformanceCounter = 1 << 8;
    public const ulong Umip = 1 << 11;
    public const ulong La57 = 1 << 12;
    public const ulong Vmxe = 1 << 13;
    public const ulong FsGsBase = 1 << 16;
    public const ulong ProcessContext = 1 << 17;
    public const ulong OsXsave = 1 << 18;
    public const ulong Smep = 1 << 20;
    public const ulong Smap = 1 << 21;

    /// <summary>Bits that exist on this CPU; the others are reserved: VME..PCE, OSFXSR, OSXMMEXCPT, UMIP, LA57, VMXE, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP.</summary>
    public const ulong Known = 0x7FF | Umip | La57 | Vmxe | FsGsBase | ProcessContext | OsXsave | Smep | Smap;
}

/// <summary>Bits of EFER.</summary>
internal static class Efer
{
    public const ulong SyscallEnable = 1;
    public const ulong LongMode = 1 << 8;
    public const ulong LongModeActive = 1 << 10;
    public const ulong NoExecuteEnable = 1 << 11;
}

/// <content>The walk of the guest's page tables (td-guest 1.2).</content>
internal sealed partial class LinearMemory
{
    private const ulong Present = 1;
    private const ulong Writable = 2;
    private const ulong UserAccessible = 4;
    private const ulong AccessedBit = 0x20;
    private const ulong DirtyBit = 0x40;
    private const ulong PageSize = 0x80;
    private const ulong GlobalBit = 0x100;
    private const ulong NoExecuteBit = 1UL << 63;
    private const uint FaultPresent = 1;
    private const uint FaultWrite = 2;
    private const uint FaultUser = 4;
    private const uint FaultReserved = 8;
    private const uint FaultFetch = 16;

    // The entries of the walk that is going on: their guest and host addresses and values, by level.
    private readonly ulong[] _walkAddresses = new ulong[6];
    private readonly ulong[] _walkPlaces = new ulong[6];
    private readonly ulong[] _walkEntries = new ulong[6];

    // The access is the processor's own (descriptor, task state): EFLAGS.AC does not open user pages for it.
    private bool _implicit;

    // The last translation may go into a front cache. A user page under SMAP may not: whether it is allowed depends on EFLAGS.AC.
    private bool _cacheable;

    /// <summary>Translates one byte's address to its host address, with all checks. The address must be canonical.</summary>
    public bool TryTranslate(ulong linear, AccessKind access, bool user, out ulong hpa)
    {
        hpa = 0;
        bool keep = !Explore.On && _lp.Tlb.Mode != TlbMode.Off;
        ref LinearEntry entry = ref keep ? ref _tlb.Find(linear) : ref Unsafe.NullRef<LinearEntry>();
        if (Unsafe.IsNullRef(ref entry) || !IsAllowed(entry.Rights, access, user) || NeedsDirty(entry.Rights, access))
        {
            // The result goes in even if nothing is kept, for the few lines below.
            entry = ref TryWalk(linear, access, user);
            if (Unsafe.IsNullRef(ref entry))
                return false;
        }

        _cacheable = user || (entry.Rights & PageRights.User) == 0 || (_state.Cr4 & Cr4.Smap) == 0;
        ulong gpa = LinearTlb.GpaOf(entry, linear);
        if (access == AccessKind.Fetch && IsForbiddenShared(gpa))
            return Trap.PageFault(linear, FaultPresent | FaultReserved | FaultFetch | (user ? FaultUser : 0));
        if (GuestPhysical.TryTranslate(_machine, _lp, _vmcs, gpa, access, out hpa))
            return true;
        GuestPhysical.DescribeLinear(_vmcs, linear, isPageTable: false);
        return Trap.Exit();
    }

    private static bool NeedsDirty(PageRights rights, AccessKind access) =>
        (access & AccessKind.Write) != AccessKind.None && (rights & PageRights.Dirty) == 0;

    private bool IsAllowed(PageRights rights, AccessKind access, bool user)
    {
        bool userPage = (rights & PageRights.User) != 0;
        if (user)
        {
            if (!userPage)
                return false;
        }
        else if (userPage)
        {
            if (access == AccessKind.Fetch ? (_state.Cr4 & Cr4.Smep) != 0 : IsClosedBySmap())
                return false;
        }

        if ((access & AccessKind.Write) != AccessKind.None && (rights & PageRights.Write) == 0 && (user || (_state.Cr0 & Cr0.WriteProtect) != 0))
            return false;
        return access != AccessKind.Fetch || (rights & PageRights.NoExecute) == 0;
    }

    private bool IsClosedBySmap() =>
        (_state.Cr4 & Cr4.Smap) != 0 && (_implicit || (_state.Rflags & Rflags.AlignmentCheck) == 0);

    private bool IsForbiddenShared(ulong gpa) =>
        _vmcs.IsTd && (gpa & _vmcs.AliasBit.GpaMask) != 0 && _options.SharedFetch == SharedFetchPolicy.PageFault;

    // GPA bits above the shared bit: the module answers the violation with #PF(RSVD) (td-guest 1.2 step 6; G15). Only it could, and only so; done here.
    private bool IsIllegal(ulong gpa) => _vmcs.IsTd && _vmcs.GpaWidth < 52 && gpa >> _vmcs.GpaWidth != 0;

    private bool Fault(ulong linear, uint cause, AccessKind access, bool user)
    {
        uint code = cause | ((access & AccessKind.Write) != AccessKind.None ? FaultWrite : 0) | (user ? FaultUser : 0);
        if (access == AccessKind.Fetch && ((_state.Efer & Efer.NoExecuteEnable) != 0 || (_state.Cr4 & Cr4.Smep) != 0))
            code |= FaultFetch;
        return Trap.PageFault(linear, code);
    }

    /// <summary>Walks, and puts the result into the linear TLB. A null reference with the trap set when the walk fails.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private ref LinearEntry TryWalk(ulong linear, AccessKind access, bool user)
    {
        bool write = (access & AccessKind.Write) != AccessKind.None;
        bool nx = (_state.Efer & Efer.NoExecuteEnable) != 0;
        int top = (_state.Cr4 & Cr4.La57) != 0 ? 5 : 4;

        // With A/D on in the EPT pointer every read of a guest table entry counts as a write, too (decisions D07).
        bool tableReadsWrite = (_vmcs.Eptp & EptPointer.AccessedDirty) != 0;
        AccessKind tableAccess = tableReadsWrite ? AccessKind.Read | AccessKind.Write : AccessKind.Read;
        ulong[] places = _walkPlaces;
        ulong[] addresses = _walkAddresses;
        ulong[] entries = _walkEntries;
        ulong reserved = _options.PhysicalAddressBits >= 52 || _vmcs.IsTd ? 0 : Hpa.Mask & ~((1UL << _options.PhysicalAddressBits) - 1);
        if (!nx)
            reserved |= NoExecuteBit;

    again:
        ulong table = _state.Cr3 & Hpa.Mask;
        PageRights rights = PageRights.Write | PageRights.User;
        int level = top;
        ulong entry;
        while (true)
        {
            ulong gpa = table | (((linear >> ((9 * (level - 1)) + 12)) & 511) << 3);
            if (IsIllegal(gpa) || IsForbiddenShared(gpa))
                return ref Failed(Fault(linear, FaultPresent | FaultReserved, access, user));
            if (!GuestPhysical.TryTranslate(_machine, _lp, _vmcs, gpa, tableAccess, out ulong hpa))
            {
                GuestPhysical.DescribeLinear(_vmcs, linear, isPageTable: true);
                return ref Failed(Trap.Exit());
            }

            // Other vCPUs change entries at any time: one copy, and every decision is made on it.
            entry = _memory.Entry(new Hpa(hpa & ~0xFFFUL), (int)(hpa >> 3) & 511).Read();
            (addresses[level], places[level], entries[level]) = (gpa, hpa, entry);
            if ((entry & Present) == 0)
                return ref Failed(Fault(linear, 0, access, user));
            bool leaf = level == 1 || ((entry & PageSize) != 0 && level <= 3);
            if ((entry & reserved) != 0
                || (level >= 4 && (entry & PageSize) != 0)
                || (leaf && level > 1 && (entry & ((1UL << ((9 * (level - 1)) + 12)) - 1) & ~0x1FFFUL) != 0))
            {
                return ref Failed(Fault(linear, FaultPresent | FaultReserved, access, user));
            }

            if ((entry & Writable) == 0)
                rights &= ~PageRights.Write;
            if ((entry & UserAccessible) == 0)
                rights &= ~PageRights.User;
            if ((entry & NoExecuteBit) != 0)
                rights |= PageRights.NoExecute;
            if (leaf)
                break;
            table = entry & Hpa.Mask;
            level--;
        }

        if (!IsAllowed(rights, access, user))
            return ref Failed(Fault(linear, FaultPresent, access, user));
        ulong offset = (1UL << ((9 * (level - 1)) + 12)) - 1;
        ulong page = ((entry & Hpa.Mask & ~offset) | (linear & offset)) & ~0xFFFUL;
        if (IsIllegal(page))
            return ref Failed(Fault(linear, FaultPresent | FaultReserved, access, user));

        // Only now that nothing can fault any more are Accessed and Dirty set (G02), top down as hardware does.
        for (int at = top; at >= level; at--)
        {
            ulong wanted = AccessedBit | (at == level && write ? DirtyBit : 0);
            if ((entries[at] & wanted) == wanted)
                continue;
            if (!tableReadsWrite && !GuestPhysical.TryTranslate(_machine, _lp, _vmcs, addresses[at], AccessKind.Write, out places[at]))
            {
                GuestPhysical.DescribeLinear(_vmcs, linear, isPageTable: true);
                return ref Failed(Trap.Exit());
            }

            ulong seen = entries[at];

            // Linearizes at the compare-exchange: if another vCPU or the kernel changed the entry since it was read, what was decided on it is void.
            if (!_memory.Entry(new Hpa(places[at] & ~0xFFFUL), (int)(places[at] >> 3) & 511).CompareExchange(ref seen, entries[at] | wanted))
                goto again;
            entries[at] |= wanted;
        }

        if ((entries[level] & DirtyBit) != 0)
            rights |= PageRights.Dirty;
        if ((entry & GlobalBit) != 0 && (_state.Cr4 & Cr4.PageGlobal) != 0)
            rights |= PageRights.Global;
        return ref _tlb.Add(linear, page, rights, level);
    }

    private static ref LinearEntry Failed(bool never)
    {
        _ = never;
        return ref Unsafe.NullRef<LinearEntry>();
    }
}
