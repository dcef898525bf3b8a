namespace Tdp.Module;

/// <summary>Makes host leaves answer BUSY although nobody holds the lock (decisions D34). A test port; absent in ordinary runs.</summary>
public interface IBusyInjector
{
    /// <summary>Asked after the dispatcher's checks and before the leaf. True: the leaf is not executed and returns <paramref name="status"/>.</summary>
    /// <param name="lp">The calling processor.</param>
    /// <param name="leaf">The leaf.</param>
    /// <param name="status">The status to return, such as <c>OPERAND_BUSY | SEPT_TREE</c>.</param>
    bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status);
}

/// <summary>Sees every SEAMCALL and every module-handled exit. For traces and for invariants I22..I29; costs one null check when absent.</summary>
public interface IModuleObserver
{
    /// <summary>A SEAMCALL starts; nothing has happened yet.</summary>
    void Calling(LogicalProcessor lp, in SeamRegisters registers);

    /// <summary>A SEAMCALL has returned, on the same thread. For VP.ENTER: the entry half has; a status of 0 then may mean "in the TD".</summary>
    /// <param name="lp">The calling processor.</param>
    /// <param name="before">Registers at the call.</param>
    /// <param name="after">Registers at the return.</param>
    void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after);

    /// <summary>A TDCALL has been answered (or stopped with an exit); RAX of the guest holds the status.</summary>
    /// <param name="lp">The processor.</param>
    /// <param name="leaf">The leaf.</param>
    /// <param name="status">The status; meaningless when <paramref name="exited"/>.</param>
    /// <param name="exited">True when the call became a TD exit.</param>
    void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited);
}
