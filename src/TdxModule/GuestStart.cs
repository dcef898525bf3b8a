namespace Tdp.Module;

/// <summary>Start states for <see cref="TdxModule.UseEntryState"/> where no guest image supplies one: scripted guests, replay, benchmarks.</summary>
public static class GuestStart
{
    /// <summary>64-bit mode, CPL 0, paging on with an empty CR3: enough for a guest that performs no instructions of its own (decisions D22).</summary>
    public static void Flat64(GuestState state)
    {
        state.Rip = 0;
        state.Cr0 = 0x8005_0033;
        state.Cr4 = 0x26E0;
        state.Efer = 0xD01;
        state.Xcr0 = 3;
        state.Cs = new Segment { Selector = 8, Access = 0xA09B, Limit = uint.MaxValue };
        state.Ss = state.Ds = state.Es = new Segment { Selector = 16, Access = 0xC093, Limit = uint.MaxValue };
    }
}
