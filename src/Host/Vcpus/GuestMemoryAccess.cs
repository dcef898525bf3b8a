namespace Tdp.Host;

/// <summary>
/// The host reads an ordinary VM's memory the way KVM's emulator does: through the guest's page tables and the memslots, not through the EPT. Never for a
/// TD: its tables are
/// private.
/// </summary>
internal static class GuestMemoryAccess
{
    private const ulong Present = 1;
    private const ulong Large = 1 << 7;
    private const ulong AddressMask = 0x000F_FFFF_FFFF_F000;
    private const ulong Paging = 1UL << 31;
    private const ulong La57 = 1UL << 12;

    /// <summary>Reads instruction bytes.</summary>
    /// <returns>How many bytes could be read; 0 when the first one cannot.</returns>
    public static int Fetch(Vm vm, GuestState state, ulong linear, Span<byte> into)
    {
        int done = 0;
        while (done < into.Length)
        {
            if (!TryTranslate(vm, state, linear + (ulong)done, out ulong gpa))
                break;
            int count = (int)Math.Min((ulong)(into.Length - done), 0x1000 - (gpa & 0xFFF));
            if (!TryRead(vm, gpa, into.Slice(done, count)))
                break;
            done += count;
        }

        return done;
    }

    /// <summary>Reads guest-physical memory through the slots.</summary>
    public static bool TryRead(Vm vm, ulong gpa, Span<byte> into) =>
        Locate(vm, gpa) is { } frame && CopyFrom(vm, frame, gpa, into);

    private static bool CopyFrom(Vm vm, Hpa frame, ulong gpa, Span<byte> into)
    {
        vm.Kernel.Machine.Memory.Frame(frame).Slice((int)(gpa & 0xFFF), into.Length).CopyTo(into);
        return true;
    }

    private static bool TryTranslate(Vm vm, GuestState state, ulong linear, out ulong gpa)
    {
        gpa = linear;
        if ((state.Cr0 & Paging) == 0)
            return true;
        ulong table = state.Cr3 & AddressMask;
        Span<byte> entryBytes = stackalloc byte[8];
        for (int level = (state.Cr4 & La57) != 0 ? 5 : 4; ; level--)
        {
            int shift = 12 + (9 * (level - 1));
            if (!TryRead(vm, table + (((linear >> shift) & 511) << 3), entryBytes))
                return false;
            ulong entry = BitConverter.ToUInt64(entryBytes);
            if ((entry & Present) == 0)
                return false;
            if (level == 1 || (level <= 3 && (entry & Large) != 0))
            {
                ulong offset = (1UL << shift) - 1;
                gpa = (entry & AddressMask & ~offset) | (linear & offset);
                return true;
            }

            table = entry & AddressMask;
        }
    }

    // The frame behind a guest page, through the slot and the VMM's own mapping.
    private static Hpa? Locate(Vm vm, ulong gpa)
    {
        var gfn = new Gfn(gpa >> 12);
        return vm.SlotsOf(0).Active.Find(gfn) is { UserspaceAddress: not 0 } slot ? vm.UserMemory.Peek(slot.HvaOf(gfn)) : null;
    }
}
