namespace Tdp.Cpu;

/// <summary>
/// Memory as instructions of one vCPU see it: linear addresses, through the guest's page tables and the EPT, with the faults in the right
/// order. One thread, the one that runs the vCPU.
/// </summary>
/// <remarks>
/// Methods that can fail return false and leave the reason in <see cref="Trap"/>; nothing has been read or written then. An access that straddles two
/// pages translates both before a byte moves (td-guest 1.6; G04).
/// </remarks>
internal sealed partial class LinearMemory
{
    private readonly Machine _machine;
    private readonly PhysicalMemory _memory;
    private readonly GuestCpuOptions _options;
    private readonly LinearTlb _tlb = new();
    private readonly FrontCache _userRead = new();
    private readonly FrontCache _userWrite = new();
    private readonly FrontCache _kernelRead = new();
    private readonly FrontCache _kernelWrite = new();
    private LogicalProcessor _lp = null!;
    private Vmcs _vmcs = null!;
    private GuestState _state = null!;
    private ulong _cr0, _cr3, _cr4, _efer, _eptp, _sharedEptp;
    private uint _flushCount;
    private bool _checksAlignment;

    public LinearMemory(Machine machine, GuestCpuOptions options)
    {
        _machine = machine;
        _memory = machine.Memory;
        _options = options;
        Read = _kernelRead;
        Write = _kernelWrite;
    }

    /// <summary>Why the last failing method failed.</summary>
    public Trap Trap;

    /// <summary>The front cache for reads at the current privilege.</summary>
    public FrontCache Read { get; private set; }

    /// <summary>The front cache for writes at the current privilege.</summary>
    public FrontCache Write { get; private set; }

    /// <summary>True while the front caches and the caches of blocks by linear address may be filled: not under the hook, and only if the TLB keeps what it learns.</summary>
    public bool MayCache { get; private set; }

    /// <summary>Changes whenever translations were dropped; tags of anything remembered by linear address.</summary>
    public uint Epoch { get; private set; } = 1;

    /// <summary>A store hit a frame that has decoded code: the current block must end.</summary>
    public bool CodeWritten { get; set; }

    /// <summary>True when data accesses are user accesses.</summary>
    public bool IsUser { get; private set; }

    /// <summary>Called at each entry, on the vCPU's thread: adopts the processor and drops what is dead.</summary>
    public void Bind(LogicalProcessor lp, Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        bool same = ReferenceEquals(lp, _lp) && ReferenceEquals(vmcs, _vmcs) && lp.Tlb.FlushCount == _flushCount && vmcs.Eptp == _eptp
            && vmcs.SharedEptp == _sharedEptp && state.Cr0 == _cr0 && state.Cr3 == _cr3 && state.Cr4 == _cr4 && state.Efer == _efer;
        if (!same)
            Adopt(lp, vmcs);
        PrivilegeChanged();
    }

    /// <summary>Called when CPL changed, or EFLAGS.AC at CPL 3.</summary>
    public void PrivilegeChanged()
    {
        IsUser = _state.Cpl == 3;
        _checksAlignment = IsUser && (_state.Rflags & Rflags.AlignmentCheck) != 0 && (_state.Cr0 & Cr0.AlignmentMask) != 0;
        if (_checksAlignment)
        {
            // Alignment is looked at on the slow path only.
            _userRead.Clear();
            _userWrite.Clear();
        }

        Read = IsUser ? _userRead : _kernelRead;
        Write = IsUser ? _userWrite : _kernelWrite;
    }

    /// <summary>Drops every translation: a change of CR0, CR4 or EFER that matters, INVPCID, a flush of the processor's TLB.</summary>
    public void FlushAll()
    {
        _tlb.Clear();
        FlushFront();
        Remember();
    }

    /// <summary>MOV CR3: drops what is not global.</summary>
    public void FlushNonGlobal()
    {
        _tlb.ClearNonGlobal();
        FlushFront();
        Remember();
    }

    /// <summary>INVLPG: drops the page, global or not (G09).</summary>
    public void FlushPage(ulong linear)
    {
        Epoch++;
        ulong reach = _tlb.Drop(linear);
        _userRead.Drop(linear, reach);
        _userWrite.Drop(linear, reach);
        _kernelRead.Drop(linear, reach);
        _kernelWrite.Drop(linear, reach);
    }

    /// <summary>The frame is being decoded: no store may reach it through a front cache any more.</summary>
    public void ForgetWriter(ulong frame)
    {
        _userWrite.DropFrame(frame);
        _kernelWrite.DropFrame(frame);
    }

    /// <summary>True when the address is canonical for the current paging mode.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsCanonical(ulong linear)
    {
        int spare = (_state.Cr4 & Cr4.La57) != 0 ? 7 : 16;
        return (ulong)((long)(linear << spare) >> spare) == linear;
    }

    /// <summary>Reads 1, 2, 4 or 8 bytes as the current privilege; zero-extended.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public bool TryRead(ulong linear, int size, bool stack, out ulong value)
    {
        value = 0;
        if (!Check(linear, size, stack))
            return false;
        int first = FirstPart(linear, size);
        if (!TryTranslate(linear, AccessKind.Read, IsUser, out ulong hpa))
            return false;
        if (first == size)
        {
            FillFront(Read, linear, hpa);
            value = LoadBytes(hpa, size);
            return true;
        }

        if (!TryTranslate(linear + (ulong)first, AccessKind.Read, IsUser, out ulong next))
            return false;
        value = LoadBytes(hpa, first) | (LoadBytes(next, size - first) << (8 * first));
        return true;
    }

    /// <summary>Writes the low 1, 2, 4 or 8 bytes as the current privilege.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public bool TryWrite(ulong linear, int size, bool stack, ulong value)
    {
        if ((linear & 0xFFF) + (ulong)size > 0x1000)
        {
            if (!TryPrepareWrite(linear, size, stack, AccessKind.Write, out WriteTarget target))
                return false;
            Store(target, value);
            return true;
        }

        if (!Check(linear, size, stack) || !TryTranslate(linear, AccessKind.Write, IsUser, out ulong hpa))
            return false;
        StoreBytes(hpa, size, value);
        if (MayCache && CodeWatch.AnnounceWriter(_memory, hpa))
            FillFront(Write, linear, hpa);
        return true;
    }

    /// <summary>Translates the target of a store and proves that it will not fail.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public bool TryPrepareWrite(ulong linear, int size, bool stack, AccessKind access, out WriteTarget target)
    {
        target = default;
        if (!Check(linear, size, stack))
            return false;
        int first = FirstPart(linear, size);
        if (!TryTranslate(linear, access, IsUser, out ulong hpa))
            return false;
        ulong next = 0;
        if (first != size && !TryTranslate(linear + (ulong)first, access, IsUser, out next))
            return false;
        if (first == size && MayCache && CodeWatch.AnnounceWriter(_memory, hpa))
            FillFront(Write, linear, hpa);
        target = new WriteTarget(hpa, next, size, first);
        return true;
    }

    /// <summary>Stores to a prepared target.</summary>
    public void Store(in WriteTarget target, ulong value)
    {
        StoreBytes(target.Hpa, target.First, value);
        if (target.First != target.Size)
            StoreBytes(target.Next, target.Size - target.First, value >> (8 * target.First));
    }

    /// <summary>Loads from a prepared target.</summary>
    public ulong Load(in WriteTarget target)
    {
        ulong value = LoadBytes(target.Hpa, target.First);
        return target.First == target.Size ? value : value | (LoadBytes(target.Next, target.Size - target.First) << (8 * target.First));
    }

    /// <summary>Reads as the supervisor whatever CPL is: descriptor tables, task state (td-guest 1.8).</summary>
    public bool TryReadSystem(ulong linear, int size, out ulong value)
    {
        bool user = BeginSystem();
        bool done = TryRead(linear, size, stack: false, out value);
        EndSystem(user);
        return done;
    }

    /// <summary>Prepares a write as the supervisor whatever CPL is: event frames, busy task descriptors.</summary>
    public bool TryPrepareSystemWrite(ulong linear, int size, out WriteTarget target)
    {
        bool user = BeginSystem();
        bool done = TryPrepareWrite(linear, size, stack: true, AccessKind.Write, out target);
        EndSystem(user);
        return done;
    }

    /// <summary>A front cache hit on a frame that changed hands since the fill is use of a stale translation.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void ReportStale(ulong linear, ulong hpa, uint filled)
    {
        FrameRecord record = _memory.Record(hpa >> 12);
        _machine.Findings.Add(
            "I57",
            $"LP {_lp.Id} vCPU {_vmcs.VcpuId} used a stale translation: linear 0x{linear:x} -> frame 0x{hpa >> 12:x}, filled at generation {filled}, now {record.Generation} ({record.Use}), RIP page 0x{_state.Rip & ~0xFFFUL:x}");
    }

    private bool BeginSystem()
    {
        bool user = IsUser;
        IsUser = false;
        _implicit = true;
        Read = _kernelRead;
        Write = _kernelWrite;
        return user;
    }

    private void EndSystem(bool user)
    {
        IsUser = user;
        _implicit = false;
        Read = user ? _userRead : _kernelRead;
        Write = user ? _userWrite : _kernelWrite;
    }

    private static int FirstPart(ulong linear, int size) => Math.Min(size, 0x1000 - (int)(linear & 0xFFF));

    private void Adopt(LogicalProcessor lp, Vmcs vmcs)
    {
        _lp = lp;
        _vmcs = vmcs;
        _state = vmcs.State;
        MayCache = !Explore.On && lp.Tlb.Mode == TlbMode.Precise;
        FlushAll();
    }

    private void Remember()
    {
        (_cr0, _cr3, _cr4, _efer) = (_state.Cr0, _state.Cr3, _state.Cr4, _state.Efer);
        (_eptp, _sharedEptp, _flushCount) = (_vmcs.Eptp, _vmcs.SharedEptp, _lp.Tlb.FlushCount);
    }

    private void FlushFront()
    {
        Epoch++;
        _userRead.Clear();
        _userWrite.Clear();
        _kernelRead.Clear();
        _kernelWrite.Clear();
    }

    private void FillFront(FrontCache cache, ulong linear, ulong hpa)
    {
        if (MayCache && _cacheable && !_checksAlignment)
            cache.Fill(linear, hpa, _memory.Record(hpa >> 12).Generation);
    }

    private bool Check(ulong linear, int size, bool stack)
    {
        if (!IsCanonical(linear) || !IsCanonical(linear + (ulong)(size - 1)))
            return stack ? Trap.Raise(Vector.StackFault, 0) : Trap.GeneralProtection();
        if (_checksAlignment && IsUser && (linear & (ulong)(size - 1)) != 0)
            return Trap.Raise(Vector.AlignmentCheck, 0);
        return true;
    }

    private ulong LoadBytes(ulong hpa, int size)
    {
        // An unaligned load of the host tears where the guest's would. Under the hook every word touched must be an event of its own.
        if (size is 1 or 2 or 4 or 8 && (!Explore.On || (hpa & 7) + (ulong)size <= 8))
            return _memory.Load(hpa, size);
        ulong value = 0;
        for (int i = 0; i < size; i++)
            value |= _memory.Load(hpa + (ulong)i, 1) << (8 * i);
        return value;
    }

    private void StoreBytes(ulong hpa, int size, ulong value)
    {
        if (size is 1 or 2 or 4 or 8 && (!Explore.On || (hpa & 7) + (ulong)size <= 8))
        {
            _memory.Store(hpa, size, value);
        }
        else
        {
            for (int i = 0; i < size; i++)
                _memory.Store(hpa + (ulong)i, 1, value >> (8 * i));
        }

        NoteStore(hpa);
    }

    /// <summary>Every store that did not go through the front cache ends here: the decoders of the frame must learn of it.</summary>
    public void NoteStore(ulong hpa)
    {
        if (!CodeWatch.IsCode(_memory, hpa))
            return;
        CodeWatch.Stored(_memory, hpa);
        CodeWritten = true;
    }
}

/// <summary>Host addresses of a store that cannot fail any more.</summary>
/// <param name="Hpa">First byte.</param>
/// <param name="Next">First byte in the second page, if it straddles.</param>
/// <param name="Size">Bytes in all.</param>
/// <param name="First">Bytes in the first page.</param>
internal readonly record struct WriteTarget(ulong Hpa, ulong Next, int Size, int First);
