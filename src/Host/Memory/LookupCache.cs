namespace Tdp.Host;

/// <summary>
/// What one vCPU's last fault found: the slot, good as long as the set it came from is the published one, and the bitmap of the attributes, which lives as
/// long as the VM. Used by the vCPU's actor alone.
/// </summary>
internal sealed class LookupCache
{
    /// <summary>The set that <see cref="LastSlot"/> was found in.</summary>
    public MemslotSet? LastSet;

    /// <summary>See <see cref="LastSet"/>.</summary>
    public Memslot? LastSlot;

    /// <summary>The bitmap that the last lookup used.</summary>
    public MemoryAttributes.Cache Attributes;
}
