using System.Runtime.InteropServices;

namespace Tdp.Cpu;

/// <summary>One linear page whose bytes may be reached without any check.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct FrontSlot
{
    /// <summary>Tag of an empty slot: page numbers never have bit 11.</summary>
    public const ulong Empty = 0x800;

    /// <summary>Linear address of the page.</summary>
    public ulong Tag;

    /// <summary>Host address of the page minus its linear address.</summary>
    public ulong Addend;
}

/// <summary>
/// The software TLB in front of the walks: direct-mapped, linear page to host address, for one kind of access at one privilege (td-guest 3.4).
/// </summary>
/// <remarks>
/// It belongs to one vCPU and holds what its processor's <see cref="Tlb"/> would allow; whoever empties that one makes this one dead, too. An access
/// hits when the page of its <em>last</em> byte is in the slot of its first, so an access that straddles pages misses.
/// </remarks>
internal sealed class FrontCache
{
    public const int Slots = 512;
    public readonly FrontSlot[] Slot = new FrontSlot[Slots];

    // Frame generation at the fill, for checkers of stale use (I57); apart, so that a run without checks does not carry it through the caches.
    public readonly uint[] Generation = new uint[Slots];

    public FrontCache() => Clear();

    public void Clear() => Array.Fill(Slot, new FrontSlot { Tag = FrontSlot.Empty });

    public void Fill(ulong linear, ulong hpa, uint generation)
    {
        ulong page = linear & ~0xFFFUL;
        int index = IndexOf(linear);
        Slot[index] = new FrontSlot { Tag = page, Addend = (hpa & ~0xFFFUL) - page };
        Generation[index] = generation;
    }

    /// <summary>Drops the aligned region of <paramref name="reach"/> bytes (a power of two, at least a page) around an address.</summary>
    public void Drop(ulong linear, ulong reach)
    {
        if (reach == 0x1000)
        {
            ref FrontSlot only = ref Slot[IndexOf(linear)];
            if (only.Tag == (linear & ~0xFFFUL))
                only.Tag = FrontSlot.Empty;
            return;
        }

        foreach (ref FrontSlot slot in Slot.AsSpan())
        {
            if (((slot.Tag ^ linear) & ~(reach - 1)) == 0)
                slot.Tag = FrontSlot.Empty;
        }
    }

    public void DropFrame(ulong frame)
    {
        for (int i = 0; i < Slots; i++)
        {
            if (Slot[i].Tag != FrontSlot.Empty && Slot[i].Tag + Slot[i].Addend == frame)
                Slot[i].Tag = FrontSlot.Empty;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int IndexOf(ulong linear) => (int)(linear >> 12) & (Slots - 1);
}
