namespace Tdp.Harness.Scenarios;

/// <summary>Names of module leaves as scenarios write them: with or without TDH. or TDG., with dots.</summary>
internal static class Leaves
{
    /// <summary>Every SEAMCALL leaf.</summary>
    public static string HostNames => string.Join(", ", Array.ConvertAll(Enum.GetNames<TdhLeaf>(), n => n.Replace('_', '.')));

    /// <summary>Every TDCALL leaf.</summary>
    public static string GuestNames => string.Join(", ", Array.ConvertAll(Enum.GetNames<TdgLeaf>(), n => n.Replace('_', '.')));

    /// <summary>Reads the name of a SEAMCALL leaf.</summary>
    public static bool TryHost(string name, out TdhLeaf leaf) => TryName(name, "TDH.", out leaf);

    /// <summary>Reads the name of a TDCALL leaf.</summary>
    public static bool TryGuest(string name, out TdgLeaf leaf) => TryName(name, "TDG.", out leaf);

    private static bool TryName<T>(string name, string prefix, out T leaf)
        where T : struct, Enum
    {
        string bare = (name.StartsWith(prefix, StringComparison.Ordinal) ? name[prefix.Length..] : name).Replace('.', '_');
        leaf = default;
        return bare.Length > 0 && char.IsAsciiLetterUpper(bare[0]) && Enum.TryParse(bare, out leaf) && Enum.IsDefined(leaf);
    }
}

/// <summary>The points of the profile that a scenario can set one by one (decisions section 2).</summary>
internal static class ProfilePoints
{
    private static readonly string[] Names = ["B01", "B02", "B03", "B05", "B06", "B07", "B08", "B10", "B11", "B12", "B13"];

    /// <summary>What a scenario can set.</summary>
    public static string Allowed => string.Join(", ", Array.ConvertAll(Names, n => n + "=Documented|Tdx15"));

    /// <summary>True for the name of a point.</summary>
    public static bool IsPoint(string name) => Array.IndexOf(Names, name) >= 0;

    /// <summary>Sets a point to what one of the two named profiles says.</summary>
    public static bool TrySet(ref BehaviourProfile profile, string name, string value)
    {
        if (value is not ("Documented" or "Tdx15"))
        {
            return false;
        }

        BehaviourProfile from = value is "Tdx15" ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented;
        profile = name switch
        {
            "B01" => profile with { VmxInstructionsAreUndefined = from.VmxInstructionsAreUndefined },
            "B02" => profile with { EnclvIsUndefined = from.EnclvIsUndefined },
            "B03" => profile with { EncluFaults = from.EncluFaults },
            "B05" => profile with { SeptVeDisableByDefault = from.SeptVeDisableByDefault },
            "B06" => profile with { MonitorFollowsCpuid = from.MonitorFollowsCpuid },
            "B07" => profile with { NestedConvertibleIsDoubleFault = from.NestedConvertibleIsDoubleFault },
            "B08" => profile with { InterruptsHeldWhileVeValid = from.InterruptsHeldWhileVeValid },
            "B10" => profile with { KernelLogFollowsCode = from.KernelLogFollowsCode },
            "B11" => profile with { KexecRefused = from.KexecRefused },
            "B12" => profile with { LateLpInitAllowed = from.LateLpInitAllowed },
            _ => profile with { OffersVpInitVersion1 = from.OffersVpInitVersion1 },
        };
        return true;
    }

    /// <summary>The line that makes this profile.</summary>
    public static string Write(BehaviourProfile profile)
    {
        BehaviourProfile named = profile.Name is "Tdx15" ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented;
        string other = profile.Name is "Tdx15" ? "Documented" : "Tdx15";
        List<string> words = ["profile", profile.Name];
        BehaviourProfile built = named;
        foreach (string point in Names)
        {
            BehaviourProfile changed = built;
            TrySet(ref changed, point, other);
            if (Differs(built, profile, point))
            {
                built = changed;
                words.Add($"{point}={other}");
            }
        }

        return string.Join(' ', words);
    }

    // A point differs when setting it to either side's value makes a different record.
    private static bool Differs(BehaviourProfile built, BehaviourProfile wanted, string point)
    {
        BehaviourProfile a = built;
        BehaviourProfile b = wanted;
        TrySet(ref a, point, "Tdx15");
        TrySet(ref b, point, "Tdx15");
        bool builtIs = a == built;
        bool wantedIs = b == wanted;
        return builtIs != wantedIs;
    }
}
