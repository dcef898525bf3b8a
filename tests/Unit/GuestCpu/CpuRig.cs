using System.IO;
using Iced.Intel;
using Tdp.Cpu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>
/// The smallest world a CPU can run in: a machine, an EPT and guest page tables that the test fills by hand, flat 64-bit state, and code from an assembler. Linear addresses
/// and guest-physical addresses are independent; frames come from the machine's memory in order.
/// </summary>
internal sealed class CpuRig : IDisposable
{
    public const ulong Rwx = EptEntry.Rwx | EptEntry.WriteBack | EptEntry.IgnorePat;
    public const ulong SharedBit = 1UL << 47;
    public const ulong PageTables = 0x1_0000;
    public const ulong Descriptors = 0x6000_0000;
    public const ulong Code = 0x6010_0000;
    public const ulong Data = 0x6020_0000;
    public const ulong Stack = 0x6030_0000;
    public const ulong StackTop = Stack + 0x4000;
    public const ulong Gdt = Descriptors;
    public const ulong Tss = Descriptors + 0x800;
    public const ulong Idt = Descriptors + 0x1000;
    public const ushort KernelCode = 0x08;
    public const ushort KernelData = 0x10;
    public const ushort UserData = 0x1B;
    public const ushort UserCode = 0x23;
    private ulong _nextFrame = 4UL << 30;
    private ulong _nextGpa = 0x200_0000;
    private ulong _nextTable = PageTables;
    private readonly ulong _eptRoot;
    private readonly ulong _sharedRoot;

    public CpuRig(bool isTd = false, TlbMode mode = TlbMode.Precise, GuestCpuOptions? options = null, bool accessedDirty = true, bool fiveLevel = false, int processors = 1)
    {
        Machine = new Machine(MachineDescription.Default(processors, 64 << 20), 1, mode);
        Lp = Machine.Processors[0];
        _eptRoot = NewFrame();
        _sharedRoot = NewFrame();
        Vmcs = new Vmcs
        {
            VcpuId = 0,
            Eptp = EptPointer.Make(new Hpa(_eptRoot), Level.G512, accessedDirty && !isTd),
            SharedEptp = isTd ? EptPointer.Make(new Hpa(_sharedRoot), Level.G512, false) : 0,
            AliasBit = isTd ? AliasBit.Bit47 : AliasBit.None,
            IsTd = isTd,
            VeInfo = isTd ? new VeInfo() : null,
        };
        IsFiveLevel = fiveLevel;
        Root = NewTable();
        SetState(Vmcs.State);
        Cpu = new GuestCpu(Machine, options);
        Allocate(Descriptors, 4);
        Allocate(Code, 4);
        Allocate(Data, 4);
        Allocate(Stack, 4);
        BuildDescriptors();
    }

    public Machine Machine { get; }

    public LogicalProcessor Lp { get; }

    public Vmcs Vmcs { get; }

    public GuestCpu Cpu { get; }

    public ulong Root { get; }

    public bool IsFiveLevel { get; }

    public GuestState State => Vmcs.State;

    public void SetState(GuestState state)
    {
        state.Cr0 = 0x8005_0033;
        state.Cr3 = Root;
        state.Cr4 = 0x6E0 | (IsFiveLevel ? 1UL << 12 : 0);
        state.Efer = 0xD01;
        state.Rflags = 2;
        state.Cs = new Segment { Selector = KernelCode, Access = 0xA09B, Limit = uint.MaxValue };
        state.Ss = state.Ds = state.Es = new Segment { Selector = KernelData, Access = 0xC093, Limit = uint.MaxValue };
        state.Fs = state.Gs = new Segment { Access = 0x10000 };
        state.Ldtr = new Segment { Access = 0x1_0082 };
        state.Tr = new Segment { Selector = 0x28, Access = 0x8B, Limit = 0x67, Base = Tss };
        (state.GdtrBase, state.GdtrLimit) = (Gdt, 0x37);
        (state.IdtrBase, state.IdtrLimit) = (Idt, 0xFFF);
        state[Gpr.Rsp] = StackTop;
        state.Rip = Code;
    }

    public ulong NewFrame()
    {
        ulong frame = _nextFrame;
        _nextFrame += 4096;
        return frame;
    }

    /// <summary>The EPT leaf of a guest page, made if need be; the test changes it as the host would.</summary>
    public ref ulong EptLeaf(ulong gpa)
    {
        bool shared = (gpa & SharedBit) != 0 && Vmcs.IsTd;
        ulong table = shared ? _sharedRoot : _eptRoot;
        for (int level = 4; level > 1; level--)
        {
            ref ulong entry = ref Machine.Memory.Word(table + (((gpa >> (12 + (9 * (level - 1)))) & 511) << 3));
            if ((entry & 7) == 0)
                entry = NewFrame() | 7;
            table = entry & Hpa.Mask;
        }

        return ref Machine.Memory.Word(table + (((gpa >> 12) & 511) << 3));
    }

    /// <summary>Gives a guest page a frame of its own.</summary>
    public ulong Back(ulong gpa)
    {
        ulong frame = NewFrame();
        EptLeaf(gpa) = frame | Rwx;
        return frame;
    }

    public ulong NewGpa()
    {
        ulong gpa = _nextGpa;
        _nextGpa += 4096;
        Back(gpa);
        return gpa;
    }

    private ulong NewTable()
    {
        ulong gpa = _nextTable;
        _nextTable += 4096;
        Back(gpa);
        return gpa;
    }

    /// <summary>Host address behind a guest-physical address, as the EPT has it now.</summary>
    public ulong HostOf(ulong gpa) => (EptLeaf(gpa) & Hpa.Mask) | (gpa & 0xFFF);

    /// <summary>The guest's last-level entry for a linear page, made if need be.</summary>
    public ref ulong Pte(ulong linear) => ref Machine.Memory.Word(HostOf(PteGpa(linear)));

    public ulong PteGpa(ulong linear, int level = 1)
    {
        ulong table = Root;
        for (int at = IsFiveLevel ? 5 : 4; at > level; at--)
        {
            ref ulong entry = ref Machine.Memory.Word(HostOf(table + (((linear >> (12 + (9 * (at - 1)))) & 511) << 3)));
            if ((entry & 1) == 0)
                entry = NewTable() | 0x67;
            table = entry & Hpa.Mask;
        }

        return table + (((linear >> (12 + (9 * (level - 1)))) & 511) << 3);
    }

    public void Map(ulong linear, ulong gpa, ulong bits = 0x67) => Pte(linear) = gpa | bits;

    /// <summary>Backed and mapped pages, supervisor and user, accessed and dirty.</summary>
    public void Allocate(ulong linear, int pages)
    {
        for (int i = 0; i < pages; i++)
            Map(linear + ((ulong)i * 4096), NewGpa());
    }

    /// <summary>Host address of a mapped linear address.</summary>
    public ulong At(ulong linear) => HostOf((Pte(linear) & Hpa.Mask) | (linear & 0xFFF));

    public ref ulong Word(ulong linear) => ref Machine.Memory.Word(At(linear));

    public byte[] Read(ulong linear, int length)
    {
        byte[] bytes = new byte[length];
        for (int i = 0; i < length; i++)
            bytes[i] = Machine.Memory.At(At(linear + (ulong)i));
        return bytes;
    }

    public void Write(ulong linear, ReadOnlySpan<byte> bytes)
    {
        for (int i = 0; i < bytes.Length; i++)
        {
            ulong place = At(linear + (ulong)i);
            Machine.Memory.At(place) = bytes[i];
            Machine.Ledger.ContentChanged(new Hpa(place & ~0xFFFUL));
        }
    }

    /// <summary>Assembles code to a linear address; returns the address behind it.</summary>
    public ulong Assemble(ulong linear, Action<Assembler> program)
    {
        byte[] bytes = Encode(linear, program);
        Write(linear, bytes);
        return linear + (ulong)bytes.Length;
    }

    public static byte[] Encode(ulong linear, Action<Assembler> program)
    {
        Assembler assembler = new(64);
        program(assembler);
        using MemoryStream stream = new();
        assembler.Assemble(new StreamCodeWriter(stream), linear);
        return stream.ToArray();
    }

    /// <summary>Assembles at <see cref="Code"/> and runs from there.</summary>
    public VmExit Run(Action<Assembler> program)
    {
        Assemble(Code, program);
        State.Rip = Code;
        return Enter();
    }

    public VmExit Enter() => Cpu.Enter(Lp, Vmcs);

    /// <summary>Writes a 64-bit gate.</summary>
    public void Gate(int vector, ulong target, int ist = 0, int type = 0xE, int dpl = 0, ushort selector = KernelCode)
    {
        Word(Idt + ((ulong)vector * 16)) = (target & 0xFFFF) | ((ulong)selector << 16) | ((ulong)ist << 32)
            | ((ulong)(0x80 | (dpl << 5) | type) << 40) | ((target & 0xFFFF_0000) << 32);
        Word(Idt + ((ulong)vector * 16) + 8) = target >> 32;
    }

    /// <summary>A handler that stops the run, so that the test can look at the stack and the registers.</summary>
    public ulong StopHandler(int vector, int ist = 0)
    {
        ulong target = Code + 0x3000 + ((ulong)vector * 16);
        Assemble(target, a => a.hlt());
        Gate(vector, target, ist);
        return target;
    }

    /// <summary>Makes CPL 3 the current privilege.</summary>
    public void BecomeUser()
    {
        State.Cs = new Segment { Selector = UserCode, Access = 0xA0FB, Limit = uint.MaxValue };
        State.Ss = new Segment { Selector = UserData, Access = 0xC0F3, Limit = uint.MaxValue };
    }

    public void Dispose() => Machine.Dispose();

    private void BuildDescriptors()
    {
        Word(Gdt + 0x08) = 0x00AF_9B00_0000_FFFF;
        Word(Gdt + 0x10) = 0x00CF_9300_0000_FFFF;
        Word(Gdt + 0x18) = 0x00CF_F300_0000_FFFF;
        Word(Gdt + 0x20) = 0x00AF_FB00_0000_FFFF;
        Word(Gdt + 0x28) = 0x0000_8B00_0000_0067 | ((Tss & 0xFF_FFFF) << 16) | ((Tss & 0xFF00_0000) << 32);
        Word(Gdt + 0x30) = Tss >> 32;

        // RSP0 and IST1..3, four pages of stack in all. The TSS fields are 4-byte aligned.
        Write(Tss + 4, BitConverter.GetBytes(StackTop - 0x1000));
        Write(Tss + 0x24, BitConverter.GetBytes(StackTop - 0x2000));
        Write(Tss + 0x2C, BitConverter.GetBytes(StackTop - 0x2800));
        Write(Tss + 0x34, BitConverter.GetBytes(StackTop - 0x3000));

        // No I/O permission bitmap.
        Write(Tss + 0x66, BitConverter.GetBytes((ushort)0x68));
    }
}
