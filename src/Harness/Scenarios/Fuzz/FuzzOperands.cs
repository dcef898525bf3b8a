namespace Tdp.Harness.Scenarios;

/// <summary>
/// Draws registers for a leaf from its description (<see cref="LeafCatalogue"/>): operands that a sensible host could pass, now and then one that no host should, and noise in every register
/// that the leaf does not read.
/// </summary>
internal sealed class FuzzOperands(FuzzLayout layout, MachineDescription machine, SeedStream random)
{
    private static readonly ulong[] Fields =
    [
        0x9110000300000010, 0x9110000300000011, 0x9110000300000012, 0x1110000300000017, 0x1110000300000016, 0x1310000300000000, 0x1310000300000005, 0x8010000000000001, 0x1110000300000001,
        0x9810000300000000, 0x94100003000003FE, 0x9410000300000000, 0x0024000100000002, 0x0024000300002016, 0x002400030000203C, 0x0024000200004000, 0x002400020000401E, 0x0024000200004024,
        0x202000000000000B, 0xA020000200000002, 0xA020000000000007, 0x9020000300000001, 0x0024000300006820, 0x002400030000681E, 0x9100000100000008, 0x9900000100000004, 0x0000000200000000, 0x0A00000300000008,
        ulong.MaxValue,
    ];

    private ulong _focusTdr;
    private ulong _focusGpa;
    private int _focusLevel;
    private int _focusLeft;
    private ulong _cursor;

    /// <summary>The field id that the last read answered as the next one.</summary>
    public ulong NextField { get; set; } = ulong.MaxValue;

    /// <summary>The guest address that host and guest are busy with.</summary>
    public ulong FocusGpa => _focusGpa;

    /// <summary>Anything.</summary>
    public ulong Noise() => random.Below(10) switch
    {
        0 or 1 => random.Next(),
        2 => 1UL << (int)random.Below(64),
        3 => ulong.MaxValue,
        4 => layout.Any(random),
        5 => layout.Any(random) | random.Below(4096),
        6 => FuzzLayout.Gpa(random, (int)random.Below(3)) | random.Below(5),
        7 => layout.HostPage((int)random.Below(FuzzLayout.HostPages)),
        8 => random.Below(64),
        _ => 0,
    };

    /// <summary>Several calls in a row are about one place, or a block would hardly ever meet its track and its removal.</summary>
    /// <param name="calls">How many.</param>
    /// <param name="level">The level of the entry, in the module's numbering.</param>
    public void Focus(int calls, int level)
    {
        _focusLeft = calls;
        _focusTdr = layout.Tdr(random.Below(8) == 0 ? (int)random.Below(FuzzLayout.Tdrs) : 0);
        _focusLevel = level;
        _focusGpa = FuzzLayout.Gpa(random, level);
    }

    /// <summary>Registers for a call, except RAX.</summary>
    /// <param name="leaf">The leaf.</param>
    /// <param name="lp">The processor that will make the call.</param>
    /// <param name="isLikely">Operands that can succeed; otherwise one of them is spoilt.</param>
    /// <param name="registers">Filled.</param>
    public void Draw(LeafDescription leaf, int lp, bool isLikely, ref SeamRegisters registers)
    {
        if (_focusLeft-- <= 0)
            Focus((int)random.Below(24), random.Below(24) switch { < 14 => 0, < 23 => 1, _ => 2 });
        for (Gpr register = Gpr.Rcx; register <= Gpr.R15; register++)
            registers[register] = Noise();
        foreach (LeafOperand operand in leaf.Operands)
            registers[operand.Register] = 0;
        int level = 0;
        foreach (LeafOperand operand in leaf.Operands)
        {
            if (operand.Kind is LeafOperandKind.Level)
            {
                level = _focusLevel >= operand.MinLevel && _focusLevel <= operand.MaxLevel && random.Below(6) != 0 ? _focusLevel
                    : random.Below(operand.MinLevel > 0 ? 2UL : 24) == 0 ? random.Between(operand.MinLevel, Math.Min(operand.MaxLevel, 4))
                    : operand.MinLevel;
                registers[operand.Register] |= (uint)level;
            }
        }

        foreach (LeafOperand operand in leaf.Operands)
        {
            if (operand.Kind is not LeafOperandKind.Level)
                registers[operand.Register] |= Value(leaf, operand, lp, level) << operand.Shift;
        }

        if (!isLikely)
            Spoil(leaf, ref registers);
    }

    private void Spoil(LeafDescription leaf, ref SeamRegisters registers)
    {
        Gpr register = leaf.Operands.Count == 0 ? Gpr.Rcx : leaf.Operands[(int)random.Below((ulong)leaf.Operands.Count)].Register;
        registers[register] = random.Below(3) switch
        {
            0 => Noise(),
            1 => registers[register] ^ (1UL << (int)random.Below(64)),
            _ => registers[register] + ((random.Below(2) == 0 ? 1UL : 4096UL) * random.Below(16)),
        };
    }

    private ulong Value(LeafDescription leaf, LeafOperand operand, int lp, int level)
    {
        switch (operand.Kind)
        {
            case LeafOperandKind.Gpa:
                ulong gpa = random.Below(6) != 0 ? _focusGpa & ~((1UL << ((9 * level) + 12)) - 1) : FuzzLayout.Gpa(random, level);
                return leaf.IsGuest && operand.Bits.Length == 0 && random.Below(3) == 0 ? gpa | (1UL << 47) : gpa;
            case LeafOperandKind.Tdr:
                return random.Below(16) == 0 ? layout.Tdr((int)random.Below(FuzzLayout.Tdrs)) : _focusTdr;
            case LeafOperandKind.Tdvpr:
                return layout.Tdvpr(random.Below(10) != 0 ? lp : (int)random.Below(FuzzLayout.Tdvprs));
            case LeafOperandKind.FreePage:
                return FreePage(leaf, level);
            case LeafOperandKind.Page:
                return leaf.Number == (int)TdhLeaf.SYS_TDMR_INIT ? machine.Tdmrs[(int)random.Below((ulong)machine.Tdmrs.Count)].Range.Base
                    : leaf.Number == (int)TdhLeaf.PHYMEM_PAGE_RECLAIM && random.Below(6) != 0 ? layout.Nth(_cursor++)
                    : layout.Any(random);
            case LeafOperandKind.HostMemory:
                return layout.HostPage(
                    leaf.Number == (int)TdhLeaf.MNG_INIT ? (int)random.Below(FuzzWorld.ParameterPages)
                    : leaf.Number == (int)TdhLeaf.SYS_CONFIG && random.Below(4) != 0 ? FuzzWorld.PointerPage
                    : FuzzWorld.ParameterPages + (int)random.Below(FuzzLayout.HostPages - FuzzWorld.ParameterPages));
            case LeafOperandKind.Hkid or LeafOperandKind.HkidOfAddress:
                return operand.Kind is LeafOperandKind.HkidOfAddress ? (16 + random.Below(8)) << machine.HkidShift : (ulong)machine.FirstPrivateHkid + random.Below(6);
            case LeafOperandKind.FieldId:
                return random.Below(4) == 0 ? NextField : Fields[(int)random.Below((ulong)Fields.Length)];
            case LeafOperandKind.Flag:
                return random.Below(24) == 0 ? 1UL : 0;
            case LeafOperandKind.Number:
                return operand.Default is { } usual && random.Below(4) != 0 ? usual : random.Below(3);
            default:
                return Word(leaf, operand);
        }
    }

    private ulong Word(LeafDescription leaf, LeafOperand operand)
    {
        if (leaf.IsGuest && leaf.Number == (int)TdgLeaf.VP_VMCALL && operand.Register is Gpr.Rcx)
            return random.Below(3) == 0 ? random.Next() & 0xFFFF_FFFF : 0xFFCC;
        return operand.Default is { } usual && random.Below(2) == 0 ? usual
            : leaf.Number == (int)TdhLeaf.VP_WR && random.Below(3) == 0 ? layout.HostPage(FuzzWorld.SharedRootPage)
            : Noise();
    }

    private ulong FreePage(LeafDescription leaf, int level) => (TdhLeaf)leaf.Number switch
    {
        TdhLeaf.MNG_CREATE => _focusTdr,
        TdhLeaf.VP_CREATE => layout.Tdvpr((int)random.Below(FuzzLayout.Tdvprs)),
        TdhLeaf.MNG_ADDCX or TdhLeaf.VP_ADDCX => layout.Tdcx(random),
        TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_DEMOTE => layout.Sept(random),
        _ => level == 0 ? layout.Data(random) : layout.Large(random),
    };
}
