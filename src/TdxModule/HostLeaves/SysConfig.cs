using System.Buffers.Binary;

namespace Tdp.Module;

// SYS.CONFIG and SYS.TDMR.INIT (tdx-module 2.2, 2.3): the host's memory layout is read from memory, checked in the documented order and recorded.
public sealed partial class TdxModule
{
    private const ulong GibBytes = 1UL << 30;
    private const int MaxTdmrs = 64;
    private const int MaxReservedAreas = 16;
    private readonly List<Tdmr> _tdmrs = [];
    private WordBlock? _tdmrLocks;

    /// <summary>Bytes of PAMT that the configured TDMRs need and got, for the host's log.</summary>
    public ulong PamtBytes
    {
        get
        {
            ulong sum = 0;
            foreach (Tdmr tdmr in _tdmrs)
            {
                foreach (HpaRange area in tdmr.PamtAreas)
                    sum += area.Size;
            }

            return sum;
        }
    }

    private TdxStatus SysConfig(LpContext ctx, ulong array, ulong entries, ulong hkid)
    {
        if (GlobalLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return TdxStatus.SYS_BUSY;
        TdxStatus status = Configure(array, entries, hkid);
        if (!status.IsError)
            State = SystemState.SYSCONFIG_DONE;
        GlobalLock.ReleaseExclusive();
        return status;
    }

    private TdxStatus Configure(ulong array, ulong entries, ulong hkid)
    {
        if (State != SystemState.SYSINIT_DONE || !AreProcessorsInitialized())
            return TdxStatus.SYS_CONFIG_NOT_PENDING;
        if (!IsSharedHpa(array, 512))
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if (entries is 0 or > MaxTdmrs)
            return TdxStatus.OPERAND_INVALID | OperandId.RDX;
        if (hkid > ushort.MaxValue || !Machine.IsPrivate((int)hkid))
            return TdxStatus.OPERAND_INVALID | OperandId.R8;

        // A failure below leaves the KeyID reserved and earlier TDMRs recorded; the host may call again (tdx-module 2.3).
        _kot.Set((int)hkid, HkidState.RESERVED);
        _tdmrs.Clear();
        for (int i = 0; i < (int)entries; i++)
        {
            ulong info = _memory.Word(WithoutHkid(array) + ((ulong)i * 8));
            if (!IsSharedHpa(info, 512))
                return TdxStatus.OPERAND_INVALID | OperandId.RCX;
            TdxStatus status = CheckTdmr(i, _memory.Bytes(new Hpa(WithoutHkid(info)), 512), out Tdmr? tdmr);
            if (tdmr is null)
                return status;
            _tdmrs.Add(tdmr);
        }

        _tdmrLocks = new WordBlock(2, separateLines: false, [.. System.Linq.Enumerable.Repeat("tdmr", _tdmrs.Count)]);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus CheckTdmr(int index, ReadOnlySpan<byte> info, out Tdmr? result)
    {
        result = null;
        uint number = (uint)index;
        ulong start = Qword(info, 0);
        ulong size = Qword(info, 8);
        if (start + size < start)
            return TdxStatus.INVALID_TDMR | number;
        if (index > 0 && (start < _tdmrs[index - 1].Range.Base || start < _tdmrs[index - 1].Range.End))
            return TdxStatus.NON_ORDERED_TDMR | number;
        if (size == 0 || (start & (GibBytes - 1)) != 0 || (size & (GibBytes - 1)) != 0 || !_pamt.IsLegal(start) || !_pamt.IsLegal(start + size - 1))
            return TdxStatus.INVALID_TDMR | number;

        var reserved = new List<HpaRange>();
        TdxStatus status = CheckReserved(number, info, start, size, reserved);
        if (status.IsError)
            return status;

        var tdmr = new Tdmr(new HpaRange(start, size), reserved);
        for (uint level = 0; level < 3; level++)
        {
            // 1G, 2M, 4K in this order; byte 1 of the details names the level.
            int tdxLevel = 2 - (int)level;
            ulong area = Qword(info, 16 + ((int)level * 16));
            ulong bytes = Qword(info, 24 + ((int)level * 16));
            ulong needed = (size >> ((9 * tdxLevel) + 12)) * PamtEntry.Bytes;
            if ((area & 0xFFF) != 0 || (bytes & 0xFFF) != 0 || area + bytes < area || bytes < needed || !_pamt.IsLegal(area) || (bytes > 0 && !_pamt.IsLegal(area + bytes - 1)))
                return TdxStatus.INVALID_PAMT | Details(index, tdxLevel);
            tdmr.PamtAreas[level] = new HpaRange(area, bytes);
        }

        status = CheckPamtPlaces(index, tdmr);
        if (!status.IsError)
            result = tdmr;
        return status;
    }

    private static TdxStatus CheckReserved(uint number, ReadOnlySpan<byte> info, ulong start, ulong size, List<HpaRange> reserved)
    {
        ulong previousEnd = 0;
        bool ended = false;
        for (uint i = 0; i < MaxReservedAreas; i++)
        {
            ulong offset = Qword(info, 64 + ((int)i * 16));
            ulong bytes = Qword(info, 72 + ((int)i * 16));
            uint details = number | (i << 8);
            if (bytes == 0)
            {
                ended = true;
                continue;
            }

            // An area after the null one that ends the list is out of order, blamed on the null one.
            if (ended)
                return TdxStatus.NON_ORDERED_RESERVED_IN_TDMR | (number | ((i - 1) << 8));
            if (offset + bytes < offset)
                return TdxStatus.INVALID_RESERVED_IN_TDMR | details;
            if (reserved.Count > 0 && offset < previousEnd)
                return TdxStatus.NON_ORDERED_RESERVED_IN_TDMR | details;
            if ((offset & 0xFFF) != 0 || (bytes & 0xFFF) != 0 || offset + bytes > size)
                return TdxStatus.INVALID_RESERVED_IN_TDMR | details;
            previousEnd = offset + bytes;
            reserved.Add(new HpaRange(start + offset, bytes));
        }

        return TdxStatus.SUCCESS;
    }

    private TdxStatus CheckPamtPlaces(int number, Tdmr tdmr)
    {
        TdxStatus status = CheckPamtOverlaps(number, tdmr);
        if (!status.IsError)
            status = CheckPamtInsideTdmrs(number, tdmr);
        for (int level = 2; level >= 0 && !status.IsError; level--)
        {
            if (!IsConvertible(tdmr.PamtAt(level)))
                status = TdxStatus.PAMT_OUTSIDE_CMRS | Details(number, level);
        }

        if (status.IsError)
            return status;
        foreach (HpaRange part in tdmr.UsableParts())
        {
            if (!IsConvertible(part))
                return TdxStatus.TDMR_OUTSIDE_CMRS | (uint)number;
        }

        return TdxStatus.SUCCESS;
    }

    // A PAMT may lie over no other one: of the earlier TDMRs, then of its own.
    private TdxStatus CheckPamtOverlaps(int number, Tdmr tdmr)
    {
        for (int other = 0; other < number; other++)
        {
            for (int level = 0; level < 3; level++)
            {
                HpaRange area = tdmr.PamtAt(level);
                if (Array.Exists(_tdmrs[other].PamtAreas, theirs => Overlap(area, theirs)))
                    return TdxStatus.PAMT_OVERLAP | Details(number, level, other);
            }
        }

        for (int level = 0; level < 2; level++)
        {
            for (int larger = level + 1; larger < 3; larger++)
            {
                if (Overlap(tdmr.PamtAt(level), tdmr.PamtAt(larger)))
                    return TdxStatus.PAMT_OVERLAP | Details(number, level, number);
            }
        }

        return TdxStatus.SUCCESS;
    }

    // Nor over memory that a TDMR gives to TDs. The new TDMR must not lie over the tables of an earlier one either.
    private TdxStatus CheckPamtInsideTdmrs(int number, Tdmr tdmr)
    {
        for (int other = 0; other <= number; other++)
        {
            Tdmr theirs = other == number ? tdmr : _tdmrs[other];
            if (FirstInside(tdmr, theirs) is { } level)
                return TdxStatus.PAMT_OVERLAP | Details(number, level, other);
            if (other < number && FirstInside(theirs, tdmr) is { } theirLevel)
                return TdxStatus.PAMT_OVERLAP | Details(other, theirLevel, number);
        }

        return TdxStatus.SUCCESS;
    }

    private static int? FirstInside(Tdmr tables, Tdmr memory)
    {
        for (int level = 0; level < 3; level++)
        {
            if (memory.OverlapsUsable(tables.PamtAt(level)))
                return level;
        }

        return null;
    }

    // Details of what concerns a PAMT: its TDMR, its level (0 for 4 KiB), the other TDMR.
    private static uint Details(int number, int level, int other = 0) => (uint)(number | (level << 8) | (other << 16));

    private TdxStatus SysTdmrInit(ulong start, ref ulong next)
    {
        int index = _tdmrs.FindIndex(tdmr => tdmr.Range.Base == start);
        if ((start & (GibBytes - 1)) != 0 || !_pamt.IsLegal(start) || index < 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        TryMutex mutex = new(ref _tdmrLocks![index]);
        if (!mutex.TryTake())
            return TdxStatus.OPERAND_BUSY | OperandId.RCX;
        Tdmr tdmr = _tdmrs[index];
        TdxStatus status = TdxStatus.TDMR_ALREADY_INITIALIZED;
        if (tdmr.Initialized < tdmr.Range.End)
        {
            InitializePart(tdmr);
            next = tdmr.Initialized & ~(GibBytes - 1);
            status = TdxStatus.SUCCESS;
        }

        mutex.Release();
        return status;
    }

    // One call covers a part of a GiB; the 1 GiB and 2 MiB entries above it are made on the way.
    private void InitializePart(Tdmr tdmr)
    {
        ulong from = tdmr.Initialized;
        ulong to = from + ((ulong)Options.TdmrInitPages << 12);
        ulong offset = from - tdmr.Range.Base;
        ulong entry = tdmr.PamtAreas[2].Base + ((offset >> 12) * PamtEntry.Bytes);
        for (ulong page = from; page < to; page += 4096, entry += PamtEntry.Bytes)
        {
            _memory.Word(entry) = tdmr.IsReserved(page) ? PamtEntry.Content(PageType.RSVD, 0) : 0;
            _memory.Word(entry + 8) = 0;
        }

        for (ulong large = from & ~0x1F_FFFFUL; large < to; large += 0x20_0000)
        {
            ulong entry2M = tdmr.PamtAreas[1].Base + (((large - tdmr.Range.Base) >> 21) * PamtEntry.Bytes);
            _memory.Word(entry2M) = TryLock.Biased;
            _memory.Word(entry2M + 8) = 0;
        }

        ulong gib = from >> 30;
        ulong entry1G = tdmr.PamtAreas[0].Base + ((offset >> 30) * PamtEntry.Bytes);
        _memory.Word(entry1G) = TryLock.Biased;
        _memory.Word(entry1G + 8) = 0;
        tdmr.Initialized = to;
        if ((to & (GibBytes - 1)) == 0)
        {
            ulong inTdmr = ((gib << 30) - tdmr.Range.Base) >> 12;
            _pamt.Publish(gib, tdmr.PamtAreas[2].Base + (inTdmr * PamtEntry.Bytes), tdmr.PamtAreas[1].Base + ((inTdmr >> 9) * PamtEntry.Bytes), entry1G);
        }
    }

    // A shared HPA as the module takes it for parameters: aligned, no bit above the physical width, a KeyID that is not private, existing memory.
    private bool IsSharedHpa(ulong hpa, ulong alignment)
    {
        if ((hpa & (alignment - 1)) != 0 || hpa >> Machine.Description.PhysicalAddressBits != 0)
            return false;
        int hkid = (int)(hpa >> Machine.Description.HkidShift);
        ulong address = WithoutHkid(hpa);
        return !Machine.IsPrivate(hkid) && !Machine.Description.Seamrr.Contains(address) && _memory.Exists(new Hpa(address));
    }

    /// <summary>
    /// True when the module has the page for a TD. What the host reads of it with its own key are zeros; what it writes poisons the page and is lost.
    /// </summary>
    private bool IsPrivatePage(ulong address) => _memory.Record(address >> 12).Use == FrameUse.Module;

    private void Poison(ulong address, string what)
    {
        _memory.Record(address >> 12).Poison = 1;
        Machine.Findings.Add("ACCESS-WHILE-ASSIGNED", $"{what}: the host named a buffer in a TD's page 0x{address:x}");
    }

    private ulong WithoutHkid(ulong hpa) => hpa & ((1UL << Machine.Description.HkidShift) - 1);

    private bool IsConvertible(HpaRange range)
    {
        // Adjacent ranges count as one.
        ulong at = range.Base;
        foreach (HpaRange cmr in Machine.Description.Cmrs)
        {
            if (cmr.Contains(at))
                at = cmr.End;
        }

        return at >= range.End;
    }

    private static bool Overlap(HpaRange a, HpaRange b) => a.Size > 0 && b.Size > 0 && a.Base < b.End && b.Base < a.End;

    private static ulong Qword(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt64LittleEndian(bytes[offset..]);

    private sealed class Tdmr(HpaRange range, List<HpaRange> reserved)
    {
        public HpaRange Range { get; } = range;

        /// <summary>1G, 2M, 4K.</summary>
        public HpaRange[] PamtAreas { get; } = new HpaRange[3];

        /// <summary>The table of a TDX level: 0 for 4 KiB.</summary>
        public HpaRange PamtAt(int level) => PamtAreas[2 - level];

        /// <summary>Everything below has PAMT. Under the TDMR's mutex.</summary>
        public ulong Initialized { get; set; } = range.Base;

        public bool IsReserved(ulong page) => reserved.Exists(area => area.Contains(page));

        public bool OverlapsUsable(HpaRange area)
        {
            foreach (HpaRange part in UsableParts())
            {
                if (Overlap(part, area))
                    return true;
            }

            return false;
        }

        public IEnumerable<HpaRange> UsableParts()
        {
            ulong at = Range.Base;
            foreach (HpaRange area in reserved)
            {
                if (area.Base > at)
                    yield return new HpaRange(at, area.Base - at);
                at = area.End;
            }

            if (at < Range.End)
                yield return new HpaRange(at, Range.End - at);
        }
    }
}
