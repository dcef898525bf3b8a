namespace Tdp.Module;

/// <summary>Looks fields up and steps through them; the order of checks of tdx-module 1.9a.</summary>
internal static class FieldTable
{
    private const int CpuidClass = 20;
    private const uint CpuidReserved = 0xFE_0000;

    /// <summary>Checks 1 to 3. <paramref name="place"/> is null exactly when the id is refused.</summary>
    public static TdxStatus Find(FieldEntry[] table, ulong id, out FieldPlace? place)
    {
        place = null;
        if (FieldId.HasReservedBits(id))
            return TdxStatus.METADATA_FIELD_ID_INCORRECT;
        int fieldClass = FieldId.ClassOf(id);
        uint code = FieldId.CodeOf(id);
        foreach (FieldEntry entry in table)
        {
            if (entry.Class == CpuidClass && fieldClass == CpuidClass && ReferenceEquals(table, TdFields.Table))
                return FindCpuid(entry, code, out place);
            if (!entry.Owns(fieldClass, code))
                continue;
            uint offset = code - entry.Code;
            if (offset % (uint)entry.Stride != 0)
                return TdxStatus.METADATA_FIELD_ID_INCORRECT;
            place = new FieldPlace(entry, (int)(offset / (uint)entry.Stride));
            return TdxStatus.SUCCESS;
        }

        return TdxStatus.METADATA_FIELD_ID_INCORRECT;
    }

    /// <summary>The first field that this caller can read; all ones when there is none.</summary>
    public static ulong First(FieldEntry[] table, FieldCaller caller)
    {
        foreach (FieldEntry entry in table)
        {
            if (entry.ReadMask(caller) != 0)
                return BaseOf(entry);
        }

        return FieldId.Null;
    }

    /// <summary>The id after a field that was read (tdx-module 1.9a, "Versions and next id").</summary>
    public static ulong Next(FieldEntry[] table, ulong id, FieldPlace place, FieldCaller caller)
    {
        FieldEntry entry = place.Entry;
        if (entry.Class == CpuidClass && ReferenceEquals(table, TdFields.Table))
        {
            if ((place.Index & 1) == 0)
                return FieldId.WithCode(id, CpuidCode(place.Index / 2) | 1, entry.Id);
            if ((place.Index / 2) + 1 < CpuidTable.Count)
                return FieldId.WithCode(entry.Id, CpuidCode((place.Index / 2) + 1), entry.Id);
        }
        else if (place.Index + 1 < entry.Count)
        {
            return FieldId.WithCode(id, FieldId.CodeOf(id) + (uint)entry.Stride, entry.Id);
        }

        int at = Array.IndexOf(table, entry);
        for (int i = at + 1; i < table.Length; i++)
        {
            if (table[i].ReadMask(caller) != 0)
                return BaseOf(table[i]);
        }

        return FieldId.Null;
    }

    private static ulong BaseOf(FieldEntry entry) =>
        entry.Class == CpuidClass && entry.Elements == 2 && entry.Fields == CpuidTable.Count ? FieldId.WithCode(entry.Id, CpuidCode(0), entry.Id) : entry.Id;

    // Bit 0 element, 7:1 sub-leaf, 8 no sub-leaf, 15:9 leaf 6:0, 16 leaf bit 31.
    private static TdxStatus FindCpuid(FieldEntry entry, uint code, out FieldPlace? place)
    {
        place = null;
        if ((code & CpuidReserved) != 0)
            return TdxStatus.METADATA_FIELD_ID_INCORRECT;
        uint leaf = ((code >> 9) & 0x7F) | ((code >> 16) << 31);
        bool none = (code & 0x100) != 0;
        uint subleaf = (code >> 1) & 0x7F;
        for (int i = 0; i < CpuidTable.Count; i++)
        {
            (uint keyLeaf, uint keySubleaf, bool faults) = CpuidTable.KeyAt(i);
            if (keyLeaf != leaf || (keySubleaf != uint.MaxValue && (none || keySubleaf != subleaf)))
                continue;
            if (faults)
                return TdxStatus.METADATA_FIELD_NOT_READABLE;
            place = new FieldPlace(entry, (i * 2) + (int)(code & 1));
            return TdxStatus.SUCCESS;
        }

        return TdxStatus.METADATA_FIELD_ID_INCORRECT;
    }

    private static uint CpuidCode(int index)
    {
        (uint leaf, uint subleaf, _) = CpuidTable.KeyAt(index);
        return ((leaf & 0x7F) << 9) | ((leaf >> 31) << 16) | (subleaf == uint.MaxValue ? 0x1FEU : subleaf << 1);
    }
}
