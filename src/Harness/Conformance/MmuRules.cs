using System.Text.Json;

namespace Tdp.Harness.Conformance;

/// <summary>
/// What a recording of the kernel's own TDP MMU says not to compare with protocol P2 (its README, "Normalising for P2"): recorded code paths that the newest protocol does not have. Every record
/// that is not compared is counted under one of these rules.
/// </summary>
internal static class MmuRules
{
    /// <summary>The rest of a sequence in which a removal failed.</summary>
    public const string FailedRemoval = "failed removal (injrm): only that the VM is bugged is compared; the sequence ends there";

    /// <summary>Write protection and dirty clearing of a mirror leaf, and what follows in the sequence.</summary>
    public const string ChangedMirrorLeaf = "wrprot, wpgfn, cdmask on a mirror leaf: in P2 any change of a present mirror leaf is a removal";

    /// <summary>Splitting a mirror leaf, and what follows in the sequence.</summary>
    public const string SplitMirrorLeaf = "private 2M mapping: a mirror leaf above 4K, which the TDX hook refuses, is split";

    /// <summary>A mirror root zapped under the read lock, and what follows in the sequence.</summary>
    public const string SharedMirrorZap = "mirror table removed under the read lock: left to the TDX code in P2";

    /// <summary>The rule by which a record is not compared, or <see langword="null"/>.</summary>
    public static string? Excludes(string operation, in TraceRecord record)
    {
        if (operation is "zapinv" && record.Find("ret") is { ValueKind: JsonValueKind.String } ret && ret.GetString() == "ENDLESS")
            return SharedMirrorZap;
        if (operation is not ("wrprot" or "wpgfn" or "cdmask" or "cdslot" or "track" or "map") || record.Find("ch") is not { ValueKind: JsonValueKind.Array } changes)
            return null;
        foreach (JsonElement change in changes.EnumerateArray())
        {
            // [root, level, gfn, old, new]: a present leaf of a mirror root that stays present or becomes a table.
            if (change.ValueKind != JsonValueKind.Array || change.GetArrayLength() < 5 || change[0].ToString() is not ['m', ..])
                continue;
            var old = new Spte(Value(record, change[3]));
            var now = new Spte(Value(record, change[4]));
            var level = new Level((int)record.Number("ch", change[1]));
            if (!old.IsLeaf(level) || !now.IsPresent)
                continue;
            if (operation is not "map")
                return ChangedMirrorLeaf;
            if (now.Kind(level) == SpteKind.Table)
                return SplitMirrorLeaf;
        }

        return null;
    }

    private static ulong Value(in TraceRecord record, JsonElement value) => value.ValueKind == JsonValueKind.Null ? Spte.NonPresent.Value : record.Number("ch", value);
}
