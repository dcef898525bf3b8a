namespace Tdp.Host;

/// <summary>
/// Hands out private KeyIDs to TDs; the first one is the module's global KeyID (tdp-mmu 9.1). A KeyID whose FREEID failed is leaked: it is never
/// handed out again (tdp-mmu 8.8). Any actor; the lock is taken alone.
/// </summary>
public sealed class HkidAllocator
{
    private readonly SpinLock _lock = new("hkid");
    private readonly ulong[] _taken;
    private readonly List<Hkid> _leaked = [];
    private readonly int _first;
    private readonly int _end;

    /// <summary>Makes the allocator of the KeyIDs [<paramref name="first"/>, <paramref name="end"/>).</summary>
    public HkidAllocator(int first, int end)
    {
        _first = first;
        _end = end;
        _taken = new ulong[(end / 64) + 1];
        Global = new Hkid((ushort)first);
        Mark(first, taken: true);
    }

    /// <summary>The KeyID of the module itself: PAMT and TDRs.</summary>
    public Hkid Global { get; }

    /// <summary>KeyIDs that no TD will ever get again.</summary>
    public IReadOnlyList<Hkid> Leaked => _leaked;

    /// <summary>Takes the lowest free KeyID.</summary>
    /// <returns>False when all are in use (-ENOSPC).</returns>
    public bool TryTake(Actor actor, out Hkid hkid)
    {
        _lock.Enter(actor);
        try
        {
            for (int number = _first + 1; number < _end; number++)
            {
                if ((_taken[number / 64] & (1UL << (number % 64))) != 0)
                    continue;
                Mark(number, taken: true);
                hkid = new Hkid((ushort)number);
                return true;
            }

            hkid = default;
            return false;
        }
        finally
        {
            _lock.Exit(actor);
        }
    }

    /// <summary>Gives a KeyID back after TDH.MNG.KEY.FREEID.</summary>
    public void Return(Actor actor, Hkid hkid)
    {
        _lock.Enter(actor);
        Mark(hkid.Value, taken: false);
        _lock.Exit(actor);
    }

    /// <summary>The KeyID stays assigned in the module for ever.</summary>
    public void Leak(Actor actor, Hkid hkid)
    {
        _lock.Enter(actor);
        _leaked.Add(hkid);
        _lock.Exit(actor);
    }

    private void Mark(int number, bool taken)
    {
        if (taken)
            _taken[number / 64] |= 1UL << (number % 64);
        else
            _taken[number / 64] &= ~(1UL << (number % 64));
    }
}
