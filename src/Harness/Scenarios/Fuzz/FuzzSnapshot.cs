using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <summary>
/// The module's state but for what a failed call may leave behind (tdx-module 7.3): lock words, host priority, and which processor a vCPU is associated with. Two snapshots around a
/// failed call are equal (TM07).
/// </summary>
internal static class FuzzSnapshot
{
    private const ulong LockAndPriority = (1UL << 11) | (1UL << 52);

    /// <summary>One number for the whole state.</summary>
    public static ulong Digest(FuzzWorld world)
    {
        ulong digest = 0xCBF2_9CE4_8422_2325;
        Visit(world, (_, value) => digest = ((digest ^ value) * 0x9E37_79B9_7F4A_7C15) ^ (digest >> 29));
        return digest;
    }

    /// <summary>The state in words, to tell what changed.</summary>
    public static SortedDictionary<string, string> Describe(FuzzWorld world)
    {
        SortedDictionary<string, string> lines = new(StringComparer.Ordinal);
        Visit(world, (what, value) => lines[what()] = string.Create(CultureInfo.InvariantCulture, $"0x{value:x}"));
        return lines;
    }

    /// <summary>The first few differences, in one line.</summary>
    public static string Difference(SortedDictionary<string, string> before, SortedDictionary<string, string> after)
    {
        List<string> changes = [];
        foreach ((string what, string value) in before)
        {
            if (!after.TryGetValue(what, out string? now))
                changes.Add($"{what} is gone");
            else if (now != value)
                changes.Add($"{what} was {value}, is {now}");
        }

        foreach (string what in after.Keys)
        {
            if (!before.ContainsKey(what))
                changes.Add($"{what} is new");
        }

        return string.Join("; ", changes.GetRange(0, Math.Min(4, changes.Count)));
    }

    private static void Visit(FuzzWorld world, Action<Func<string>, ulong> see)
    {
        TdxModule module = world.Module;
        see(() => "the system state", (ulong)module.State);
        foreach (TdView td in module.Tds())
        {
            see(() => $"life of TD {td.Tdr}", ((ulong)td.Lifecycle << 16) | ((ulong)td.OpState << 8) | (td.IsFatal ? 1UL : 0));
            see(() => $"pages of TD {td.Tdr}", ((ulong)td.ChildCount << 8) | (uint)td.ControlPages);
            see(() => $"vCPUs of TD {td.Tdr}", td.Vcpus);
            see(() => $"epoch of TD {td.Tdr}", (td.Epoch << 16) | (td.RefCount0 << 8) | td.RefCount1);
            see(() => $"EPTP of TD {td.Tdr}", td.Eptp);
            if (td.Eptp != 0 && td.Lifecycle is not TdLifecycle.TEARDOWN)
            {
                module.ForEachSeptEntry(td.Tdr, (in SeptView entry) =>
                {
                    (Gpa gpa, Level level) = (entry.Gpa, entry.Level);
                    see(() => $"the entry of GPA {gpa}, {level}, of TD {td.Tdr}", entry.Raw & ~LockAndPriority);
                });
            }
        }

        foreach (VcpuView vcpu in module.Vcpus())
            see(() => $"vCPU {vcpu.Tdvpr}", ((ulong)vcpu.State << 24) | ((ulong)vcpu.LastExit << 16) | (uint)vcpu.Pages);
        module.ForEachPamtEntry(world.Layout.Pools, (Hpa page, in PamtView entry) =>
        {
            if (entry.Type is PageType.NDA or PageType.RSVD)
                return;
            Level level = entry.Level;
            see(() => $"the PAMT entry of {level} at {page}", (entry.Owner.Value << 8) ^ (entry.Bepoch << 40) ^ (ulong)entry.Type);
        });
    }
}
