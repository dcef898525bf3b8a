using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>How far a TD is, and what has happened since the entry in question was blocked (tdx-module 4.4, 6.4).</summary>
public enum SceneMode
{
    /// <summary>INITIALIZED: blocking and tracking are not required.</summary>
    Built,

    /// <summary>RUNNABLE; no TRACK since the block.</summary>
    Untracked,

    /// <summary>RUNNABLE; TRACK after the block, and nobody inside who entered before.</summary>
    Tracked,

    /// <summary>RUNNABLE; TRACK after the block, but a vCPU that entered before is still inside.</summary>
    Busy,
}

/// <summary>What hangs below a non-leaf entry.</summary>
public enum SceneChildren
{
    /// <summary>Nothing.</summary>
    None,

    /// <summary>One entry that is not FREE.</summary>
    One,

    /// <summary>512 accessible leaves over one contiguous, aligned range.</summary>
    Mapped,

    /// <summary>512 leaves that wait for ACCEPT over one contiguous, aligned range.</summary>
    Pending,

    /// <summary>All but the last of 512 such leaves.</summary>
    Hole,
}

/// <summary>Which entry is put into which state, and how.</summary>
/// <param name="State">State of the entry.</param>
/// <param name="Level">Its TDX level.</param>
/// <param name="Mode">How far the TD is.</param>
/// <param name="Children">What hangs below it.</param>
/// <param name="Root">Level of the root's entries, 3 or 4.</param>
/// <param name="Attributes">ATTRIBUTES of the TD.</param>
public readonly record struct SceneSetup(SeptState State, int Level, SceneMode Mode, SceneChildren Children = SceneChildren.None, int Root = 3, ulong Attributes = 0)
{
    /// <summary>Why the setup is not driven; null when it is.</summary>
    public string? Obstacle => (State, Level, Mode, Children) switch
    {
        (SeptState.MAPPED or SeptState.BLOCKED, 2, SceneMode.Built, _) or (_, 2, SceneMode.Built, SceneChildren.Mapped) =>
            "an accepted 1 GiB page of a TD under construction needs 262,144 PAGE.ADDs",
        _ => null,
    };

    public override string ToString() => $"{State} at level {Level} of {Root}, {Mode}, children {Children}";
}

/// <summary>
/// A TD with one entry brought into a wanted state by nothing but leaf calls of the host and of the guest.
/// </summary>
internal sealed class SeptScene : IDisposable
{
    public const ulong Debug = 1;
    public const ulong SeptVeDisable = 1UL << 28;
    private const ulong Slot = 0x80_0000_0000;
    private readonly SceneSetup _setup;

    public SeptScene(SceneSetup setup)
    {
        if (setup.Obstacle is { } obstacle)
            throw new ArgumentException(obstacle, nameof(setup));
        _setup = setup;

        // A GiB is not zeroed for a test; ACCEPT's zeroing has tests of its own.
        Rig = new ModuleRig(options: new TdxModuleOptions { TdmrInitPages = 262144, ZeroOnAccept = setup.Level != 2 }, machine: SeptMachine.Describe(), bringUp: false);
        Rig.BringUp(tdmrs: setup.Level == 2 ? 2 : 1);
        Rig.BuildTd(vcpus: 2, attributes: setup.Attributes, eptp: setup.Root == 4 ? 0x26UL : 0x1E);
        Tdr = Rig.Tdr.Value;
        if (setup.Mode != SceneMode.Built)
            Rig.Must(TdhLeaf.MR_FINALIZE, Tdr);
        for (int level = setup.Root; level > setup.Level; level--)
            AddTable(level);
        switch (setup.State)
        {
            case SeptState.FREE:
                break;
            case SeptState.NL_MAPPED or SeptState.NL_BLOCKED:
                Table = AddTable(setup.Level);
                AddChildren();
                break;
            case SeptState.PENDING or SeptState.PENDING_BLOCKED:
                AddLeaf(accepted: false);
                break;
            case SeptState.MAPPED or SeptState.BLOCKED:
                AddLeaf(accepted: true);
                break;
            default:
                throw new ArgumentException($"{setup.State} is not a state of stage 1", nameof(setup));
        }

        if (setup.State is SeptState.NL_BLOCKED or SeptState.BLOCKED or SeptState.PENDING_BLOCKED)
            Block();
    }

    public ModuleRig Rig { get; }

    /// <summary>The TD's root page; the rig may build others later.</summary>
    public ulong Tdr { get; }

    /// <summary>The page behind the entry, or the first page behind its children.</summary>
    public ulong Page { get; private set; }

    /// <summary>The Secure EPT page that the entry points to.</summary>
    public ulong Table { get; private set; }

    /// <summary>First address that the entry covers. Its indices differ from level to level, so that a wrong shift hits another entry.</summary>
    public ulong Gpa => GpaAt(_setup.Level);

    /// <summary>Level of the entry.</summary>
    public Level EntryLevel => Level.FromTdx(_setup.Level);

    public ulong Operand => Gpa | (uint)_setup.Level;

    /// <summary>The first address of the entry at a level above or at the scene's.</summary>
    public ulong GpaAt(int level) =>
        (level < 4 ? Slot : 0) | (level < 3 ? 3UL << 30 : 0) | (level < 2 ? 5UL << 21 : 0) | (level < 1 ? 7UL << 12 : 0);

    public ModuleState Snapshot() => ModuleState.Of(Rig, withSecondTdmr: _setup.Level == 2);

    /// <summary>What the module's invariants say of the state as it is now (TM01 to TM06); empty when they hold.</summary>
    public IReadOnlyList<Finding> Broken()
    {
        FindingLog findings = new();
        ulong end = _setup.Level == 2 ? SeptMachine.Whole + (1UL << 30) : Rig.PagesEnd;
        ModuleInvariants.Check(Rig.Module, findings, new HpaRange(SeptMachine.Small, end - SeptMachine.Small));
        return findings.All;
    }

    /// <summary>
    /// Until it is disposed, calls on processor 0 take their locks one by one in the documented order: the processor's hazard slot has no room for taking
    /// them together, which is what a free run does otherwise. Both ways must give the same answers.
    /// </summary>
    public CrowdedProcessor TakeLocksInOrder() => new(Rig.Lp(0));

    /// <summary>Puts vCPU 0 into the guest on processor 0.</summary>
    public Vmcs EnterGuest() => Rig.EnterTd(0);

    /// <summary>ACCEPT of each address by vCPU 0, which enters and leaves for it.</summary>
    public void Accept(ulong start, int level, int count)
    {
        Rig.EnterTd(0);
        for (int i = 0; i < count; i++)
        {
            TdxStatus status = Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, (start + ((ulong)i << (12 + (9 * level)))) | (uint)level);
            Assert.True(status.IsSuccess, status.ToString());
        }

        Rig.Interrupt(0);
    }

    public void Dispose() => Rig.Dispose();

    private ulong AddTable(int level)
    {
        ulong page = Rig.Page().Value;
        Rig.Must(TdhLeaf.MEM_SEPT_ADD, GpaAt(level) | (uint)level, Tdr, page);
        return page;
    }

    // A leaf of 1 GiB, or an accessible one of 2 MiB before the TD runs, comes only from a promotion.
    private void AddLeaf(bool accepted)
    {
        if (_setup.Level == 2 || (_setup.Level == 1 && accepted && _setup.Mode == SceneMode.Built))
        {
            AddTable(_setup.Level);
            AddRange(accepted, 512);
            if (_setup.Mode != SceneMode.Built)
                Rig.Block(Operand);
            Rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, Operand, Tdr);
            return;
        }

        Page = _setup.Level == 0 ? Rig.Page().Value : Rig.LargePage().Value;
        if (accepted && _setup.Mode == SceneMode.Built)
        {
            Rig.Must(TdhLeaf.MEM_PAGE_ADD, Operand, Tdr, Page, Rig.Page().Value);
            return;
        }

        Rig.Must(TdhLeaf.MEM_PAGE_AUG, Operand, Tdr, Page);
        if (accepted)
            Accept(Gpa, _setup.Level, 1);
    }

    private void AddChildren()
    {
        switch (_setup.Children)
        {
            case SceneChildren.One when _setup.Level >= 2:
                Rig.Must(TdhLeaf.MEM_SEPT_ADD, Gpa | (uint)(_setup.Level - 1), Tdr, Rig.Page().Value);
                break;
            case SceneChildren.One:
                Rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa, Tdr, Rig.Page().Value);
                break;
            case SceneChildren.Mapped:
                AddRange(accepted: true, 512);
                break;
            case SceneChildren.Pending:
                AddRange(accepted: false, 512);
                break;
            case SceneChildren.Hole:
                AddRange(accepted: false, 511);
                break;
            default:
                break;
        }
    }

    private void AddRange(bool accepted, int count)
    {
        int small = _setup.Level - 1;
        Page = _setup.Level == 1 ? Rig.LargePage().Value : SeptMachine.Whole;
        ulong source = Rig.Page().Value;
        for (int i = 0; i < count; i++)
        {
            ulong offset = (ulong)i << (12 + (9 * small));
            if (accepted && _setup.Mode == SceneMode.Built)
                Rig.Must(TdhLeaf.MEM_PAGE_ADD, Gpa + offset, Tdr, Page + offset, source);
            else
                Rig.Must(TdhLeaf.MEM_PAGE_AUG, (Gpa + offset) | (uint)small, Tdr, Page + offset);
        }

        if (accepted && _setup.Mode != SceneMode.Built)
            Accept(Gpa, small, count);
    }

    private void Block()
    {
        if (_setup.Mode == SceneMode.Busy)
            Rig.EnterTd(1);
        Rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Operand, Tdr);
        if (_setup.Mode is SceneMode.Tracked or SceneMode.Busy)
            Rig.Must(TdhLeaf.MEM_TRACK, Tdr);
    }
}

/// <summary>A processor that shares so many locks already that no call on it can take three at once.</summary>
internal sealed class CrowdedProcessor : IDisposable
{
    private const int Many = 14;
    private readonly WordBlock _locks = new(0, separateLines: false, "test");
    private readonly List<int> _holds = [];
    private readonly LogicalProcessor _lp;

    public CrowdedProcessor(LogicalProcessor lp)
    {
        _lp = lp;
        _locks[0] = TryLock.Biased;
        for (int i = 0; i < Many; i++)
        {
            Assert.Equal(LockAnswer.Taken, new TryLock(ref _locks[0]).TryShared(lp.Hazards, LockSide.Host, out int hold));
            _holds.Add(hold);
        }
    }

    public void Dispose()
    {
        foreach (int hold in _holds)
            new TryLock(ref _locks[0]).ReleaseShared(_lp.Hazards, hold);
    }
}
