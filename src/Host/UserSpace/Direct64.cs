namespace Tdp.Host;

/// <summary>Puts the entry state of boot protocol TDG1 into a vCPU's architectural state (decisions D22; td-guest 8.3).</summary>
public static class Direct64
{
    /// <summary>The state of a scripted guest: 64-bit mode, CPL 0, first step. RIP counts the steps.</summary>
    public static void ApplyScript(GuestState state)
    {
        state.Rip = 0;
        state.Rflags = 2;
        state.Cr0 = 0x8005_0033;
        state.Efer = 0xD01;
        state.Cs = new Segment { Selector = 8, Access = 0xA09B, Limit = uint.MaxValue };
        state.Ss = new Segment { Selector = 16, Access = 0xC093, Limit = uint.MaxValue };
    }

    /// <summary>Overwrites the state.</summary>
    public static void Apply(EntryState entry, GuestState state)
    {
        for (int i = 0; i < 16; i++)
            state.Gpr[i] = entry.Register(i);
        state.Rip = entry.Rip;
        state.Rflags = entry.Rflags;
        state.Cr0 = entry.Cr0;
        state.Cr2 = 0;
        state.Cr3 = entry.Cr3;
        state.Cr4 = entry.Cr4;
        state.Cr8 = 0;
        state.Xcr0 = entry.Xcr0;
        state.Efer = entry.Efer;
        state.Pat = entry.Pat;
        state.Dr6 = entry.Dr6;
        state.Dr7 = entry.Dr7;
        var code = new Segment { Selector = (ushort)entry.CsSelector, Access = (uint)entry.CsAccess, Limit = (uint)entry.FlatLimit };
        var data = new Segment { Selector = (ushort)entry.DataSelector, Access = (uint)entry.DataAccess, Limit = (uint)entry.FlatLimit };
        var fsGs = new Segment { Selector = (ushort)entry.FsGsSelector, Access = (uint)entry.DataAccess, Limit = (uint)entry.FlatLimit };
        state.Cs = code;
        state.Ss = data;
        state.Ds = data;
        state.Es = data;
        state.Fs = fsGs;
        state.Gs = fsGs;
        state.Ldtr = new Segment { Access = (uint)entry.LdtrAccess };
        state.Tr = new Segment { Access = (uint)entry.TrAccess, Limit = 0xFFFF };
        state.GdtrBase = 0;
        state.GdtrLimit = (ushort)entry.TableLimit;
        state.IdtrBase = 0;
        state.IdtrLimit = (ushort)entry.TableLimit;
        state.KernelGsBase = 0;
        state.Activity = ActivityState.Active;
    }
}
