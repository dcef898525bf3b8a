namespace Tdp.Module;

/// <summary>The operand "GPA and level" of the memory leaves (tdx-module 1.8): level 2:0 in the module's numbering, GPA 51:12, the rest zero.</summary>
public static class PageInfo
{
    private const ulong LevelBits = 7;
    private const ulong Reserved = 0xFFF0_0000_0000_0FF8;

    /// <summary>Makes the operand.</summary>
    /// <param name="gpa">Private address, aligned to the level.</param>
    /// <param name="level">Level of the entry meant.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Of(Gpa gpa, Level level) => gpa.Value | (uint)level.Tdx;

    /// <summary>The module's level number in an operand, 0..7.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static int LevelOf(ulong operand) => (int)(operand & LevelBits);

    /// <summary>The address in an operand.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong GpaOf(ulong operand) => operand & ~LevelBits;

    /// <summary>Reserved bits zero, level within the leaf's range, address aligned to it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static bool IsLegal(ulong operand, int minLevel, int maxLevel)
    {
        int level = (int)(operand & LevelBits);
        return (operand & Reserved) == 0 && level >= minLevel && level <= maxLevel && (operand & ((1UL << ((9 * level) + 12)) - 1)) == (ulong)level;
    }
}
