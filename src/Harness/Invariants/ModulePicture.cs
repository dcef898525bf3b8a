namespace Tdp.Harness.Invariants;

/// <summary>
/// A copy of what the TDX module keeps: Secure EPTs, page metadata, TDs and vCPUs. Two copies are equal when they differ in nothing but what a failed call may
/// leave behind (tdx-module 7.3): lock and host-priority bits, and the association of a vCPU.
/// </summary>
public sealed class ModulePicture
{
    /// <summary>Lock, host priority; neither belongs to what an entry says.</summary>
    private const ulong EntryLockBits = (1UL << 11) | (1UL << 52);
    private readonly Dictionary<(Hpa Tdr, ulong Gpa, int Level), ulong> _entries = [];
    private readonly Dictionary<Hpa, PamtView> _pages = [];
    private readonly Dictionary<Hpa, TdView> _tds = [];
    private readonly Dictionary<Hpa, string> _contents = [];
    private readonly Dictionary<Hpa, VcpuView> _vcpus = [];

    private ModulePicture()
    {
    }

    /// <summary>Copies the state of a module at rest (as for <see cref="ModuleInvariants"/>).</summary>
    /// <param name="module">The module.</param>
    /// <param name="range">The part of the page metadata to copy.</param>
    public static ModulePicture Of(TdxModule module, HpaRange range)
    {
        ArgumentNullException.ThrowIfNull(module);
        ModulePicture picture = new();
        foreach (TdView td in module.Tds())
        {
            picture._tds[td.Tdr] = td with { AssociatedVcpus = 0, Mrtd = [] };
            TdContents contents = module.Contents(td.Tdr);
            picture._contents[td.Tdr] =
                $"MRTD {Convert.ToHexString(contents.Measured.Span)}, RTMR {Convert.ToHexString(contents.Rtmr.Span)}, settings {string.Join(' ', contents.Settings.ToArray())}";
            if (td.Eptp != 0 && td.Lifecycle == TdLifecycle.KEYS_CONFIGURED)
                module.ForEachSeptEntry(td.Tdr, (in SeptView entry) => picture._entries[(td.Tdr, entry.Gpa.Value, entry.Level.Tdx)] = entry.Raw & ~EntryLockBits);
        }

        foreach (VcpuView vcpu in module.Vcpus())
            picture._vcpus[vcpu.Tdvpr] = vcpu with { AssociatedLp = -1 };
        module.ForEachPamtEntry(range, (Hpa page, in PamtView view) =>
        {
            if (view.Type is not (PageType.NDA or PageType.RSVD))
                picture._pages[page] = view with { LockBits = 0 };
        });
        return picture;
    }

    /// <summary>One line for each thing in which this differs from a later copy; empty when they are equal.</summary>
    /// <param name="later">The later copy.</param>
    /// <param name="memoryOnly">Only Secure EPTs, page metadata, measurements and settings: what no vCPU's coming and going changes.</param>
    public IReadOnlyList<string> DifferencesTo(ModulePicture later, bool memoryOnly = false)
    {
        ArgumentNullException.ThrowIfNull(later);
        List<string> lines = [];
        Compare(lines, _entries, later._entries, key => $"TD {key.Tdr}, entry of GPA 0x{key.Gpa:x} at level {key.Level}", word => $"0x{word:x16}");
        Compare(lines, _pages, later._pages, page => $"page {page}", view => view.ToString());
        Compare(lines, _contents, later._contents, tdr => $"contents of TD {tdr}", text => text);
        if (!memoryOnly)
        {
            Compare(lines, _tds, later._tds, tdr => $"TD {tdr}", td => td.ToString());
            Compare(lines, _vcpus, later._vcpus, tdvpr => $"vCPU {tdvpr}", vcpu => vcpu.ToString());
        }

        return lines;
    }

    /// <summary>This picture with a TD's epoch taken from another: MNG.INIT writes it before it looks at what it was given (tdx-module 4.6).</summary>
    internal ModulePicture WithEpochOf(ModulePicture other, Hpa tdr)
    {
        if (_tds.TryGetValue(tdr, out TdView? mine) && other._tds.TryGetValue(tdr, out TdView? theirs))
            _tds[tdr] = mine with { Epoch = theirs.Epoch };
        return this;
    }

    private static void Compare<TKey, TValue>(List<string> lines, Dictionary<TKey, TValue> before, Dictionary<TKey, TValue> after, Func<TKey, string> name, Func<TValue, string> show)
        where TKey : notnull
        where TValue : IEquatable<TValue>
    {
        foreach ((TKey key, TValue value) in before)
        {
            if (!after.TryGetValue(key, out TValue? found))
                lines.Add($"{name(key)} is gone: it was {show(value)}");
            else if (!found.Equals(value))
                lines.Add($"{name(key)} was {show(value)} and is {show(found)}");
        }

        foreach ((TKey key, TValue value) in after)
        {
            if (!before.ContainsKey(key))
                lines.Add($"{name(key)} is new: {show(value)}");
        }
    }
}
