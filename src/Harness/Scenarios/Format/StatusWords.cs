using System.Reflection;

namespace Tdp.Harness.Scenarios;

/// <summary>The names of the module's statuses as scenarios write them: without TDX_.</summary>
internal static class StatusWords
{
    private static readonly HashSet<string> Names = Collect();

    /// <summary>True for the name of a status.</summary>
    public static bool Contains(string name) => Names.Contains(name);

    /// <summary>The name of a status, without its operand; the number for one without a name.</summary>
    public static string Of(TdxStatus status)
    {
        string name = status.Class.Name ?? $"0x{status.Value:x16}";
        return name.StartsWith("TDX_", StringComparison.Ordinal) ? name[4..] : name;
    }

    private static HashSet<string> Collect()
    {
        HashSet<string> names = new(StringComparer.Ordinal);
        foreach (MemberInfo member in typeof(TdxStatus).GetMembers(BindingFlags.Static | BindingFlags.Public))
        {
            TdxStatus? status = member switch
            {
                FieldInfo field => field.GetValue(null) as TdxStatus?,
                PropertyInfo property => property.GetValue(null) as TdxStatus?,
                _ => null,
            };
            if (status is { } known)
            {
                names.Add(Of(known));
            }
        }

        return names;
    }
}
