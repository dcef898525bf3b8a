namespace Tdp.Explorer;

/// <summary>How an event used an object.</summary>
internal enum Use : byte
{
    /// <summary>It only looked.</summary>
    Read,

    /// <summary>It changed the object, or would have, had the value not been there already.</summary>
    Write,

    /// <summary>It changed the object in a way that commutes with other such changes: an arrival at a lock.</summary>
    Add,
}

/// <summary>
/// Dense numbers for objects and sites, kept over all executions of one exploration. The numbers depend on the order of first sight and are
/// never shown; what is stored and hashed outside is the structural name.
/// </summary>
internal sealed class NameTable
{
    private Entry[] _objects = new Entry[64];
    private int[] _buckets = new int[256];
    private int _count;
    private string[] _sites = new string[64];
    private ulong[] _siteHashes = new ulong[64];
    private int[] _siteLinks = new int[64];
    private readonly int[] _siteBuckets = new int[256];
    private int _siteCount;

    public NameTable()
    {
        // Number 0 is no object: fences, starts and ends.
        _count = 1;
    }

    public int Count => _count;

    public int SiteCount => _siteCount;

    public ref Entry this[int number] => ref _objects[number];

    /// <summary>Dependence between two uses of one object: commuting changes do not depend on each other, neither do looks.</summary>
    public static bool Conflict(Use a, Use b) => a != b || a == Use.Write;

    public string Site(int number) => _sites[number];

    public ulong SiteHash(int number) => _siteHashes[number];

    public int Object(in ObjectId id)
    {
        if (id.Kind == ObjectKind.None)
            return 0;
        uint hash = Hash(id);
        for (int i = _buckets[hash & (uint)(_buckets.Length - 1)]; i != 0; i = _objects[i].Next)
        {
            ref Entry entry = ref _objects[i];
            if (entry.Id.Owner == id.Owner && entry.Id.Index == id.Index && entry.Id.Kind == id.Kind && string.Equals(entry.Id.Name, id.Name, StringComparison.Ordinal))
                return i;
        }

        return AddObject(id, hash);
    }

    public int SiteOf(string site)
    {
        uint hash = SiteKey(site);
        for (int i = _siteBuckets[hash & 255]; i != 0; i = _siteLinks[i - 1])
        {
            if (string.Equals(_sites[i - 1], site, StringComparison.Ordinal))
                return i - 1;
        }

        return AddSite(site, hash);
    }

    private static uint SiteKey(string site) => site.Length == 0 ? 0 : ((uint)site.Length * 31) + site[0] + ((uint)site[^1] * 7) + ((uint)site[site.Length >> 1] * 3);

    private static uint Hash(in ObjectId id)
    {
        ulong h = (id.Owner * 0x9E3779B97F4A7C15) ^ ((ulong)id.Index << 32) ^ ((ulong)id.Kind << 56);
        if (id.Name is { Length: > 0 } name)
            h ^= SiteKey(name) * 0xBF58476D1CE4E5B9;
        return (uint)(h >> 32) ^ (uint)h ^ (uint)(h >> 47);
    }

    private static ulong StructuralHash(in ObjectId id) =>
        ScheduleRandom.Mix(ScheduleRandom.HashOf(id.Name ?? string.Empty) ^ ScheduleRandom.Mix(id.Owner ^ ScheduleRandom.Mix(((ulong)id.Kind << 32) | id.Index)));

    private int AddObject(in ObjectId id, uint hash)
    {
        if (_count == _objects.Length)
        {
            Array.Resize(ref _objects, 2 * _count);
            if (_count > _buckets.Length)
                Rehash(4 * _buckets.Length);
        }

        int number = _count++;
        ref int bucket = ref _buckets[hash & (uint)(_buckets.Length - 1)];
        _objects[number] = new Entry { Id = id, Hash = StructuralHash(id), Next = bucket, Epoch = -1 };
        bucket = number;
        return number;
    }

    private void Rehash(int size)
    {
        _buckets = new int[size];
        for (int i = 1; i < _count; i++)
        {
            ref int bucket = ref _buckets[Hash(_objects[i].Id) & (uint)(size - 1)];
            _objects[i].Next = bucket;
            bucket = i;
        }
    }

    private int AddSite(string site, uint hash)
    {
        if (_siteCount == _sites.Length)
        {
            Array.Resize(ref _sites, 2 * _siteCount);
            Array.Resize(ref _siteHashes, 2 * _siteCount);
            Array.Resize(ref _siteLinks, 2 * _siteCount);
        }

        int number = _siteCount++;
        _sites[number] = site;
        _siteHashes[number] = ScheduleRandom.Mix(ScheduleRandom.HashOf(site));
        _siteLinks[number] = _siteBuckets[hash & 255];
        _siteBuckets[hash & 255] = number + 1;
        return number;
    }

    /// <summary>What is known about one object.</summary>
    internal struct Entry
    {
        public ObjectId Id;
        public ulong Hash;
        public int Next;

        // Over all executions: which actors used it, which of them changed it, which did more than commuting changes.
        public uint Users;
        public uint Writers;
        public uint NonAdders;

        /// <summary>Two actors use it and one of them changes it: its events are where orders can differ. Constant during an execution.</summary>
        public bool IsShared;

        // Within one execution, valid while Epoch is that execution's: newest use, and how often the object changed.
        public int Epoch;
        public int Head;
        public int Version;

        public readonly bool ShouldBeShared =>
            (Users & (Users - 1)) != 0 && Writers != 0 && NonAdders != 0;
    }
}
