namespace Tdp.Mmu;

/// <summary>
/// The list of roots as it is at each step of a walk over it. Readers of the list are inside an RCU section or alone: a root that leaves the list meanwhile
/// keeps its link.
/// </summary>
public readonly struct RootList
{
    private readonly TdpMmu _mmu;

    internal RootList(TdpMmu mmu) => _mmu = mmu;

    /// <summary>For <see langword="foreach"/>.</summary>
    public Enumerator GetEnumerator() => new(_mmu);

    /// <summary>The place of a walk.</summary>
    public struct Enumerator
    {
        private readonly TdpMmu _mmu;
        private Root? _current;

        internal Enumerator(TdpMmu mmu)
        {
            _mmu = mmu;
            _current = null;
        }

        /// <summary>The root.</summary>
        public readonly Root Current => _current!;

        /// <summary>To the next root; false at the end.</summary>
        public bool MoveNext()
        {
            _current = _current is null ? _mmu.PeekFirst() : _mmu.PeekNext(_current);
            return _current is not null;
        }
    }
}
