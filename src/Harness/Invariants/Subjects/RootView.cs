namespace Tdp.Harness.Invariants;

/// <summary>A root and who uses it.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Root">The root.</param>
/// <param name="Role">Its role word.</param>
/// <param name="References">Its reference count.</param>
/// <param name="IsListed">It is in the VM's list.</param>
/// <param name="Twins">Valid roots in the list with the same role word, itself included.</param>
/// <param name="SameKind">Valid roots of its kind and address space, itself included.</param>
/// <param name="Loaded">vCPUs that have it loaded.</param>
public readonly record struct RootView(CheckedVm Vm, Root Root, TableRole Role, long References, bool IsListed, int Twins, int SameKind, int Loaded) : ISubject
{
    /// <summary>A present entry of the root table, or none; looked for only when the root leaves the list.</summary>
    public EntryView Mapped { get; init; }

    /// <summary>The actor that changes the root holds mmu_lock for writing, or nobody uses the VM any more.</summary>
    public bool MayInvalidate { get; init; } = true;

    /// <summary>It was invalid before.</summary>
    public bool WasInvalid { get; init; }

    /// <summary>It became invalid or valid just now.</summary>
    public bool IsValidityChanging => WasInvalid != Role.IsInvalid && IsChanging;

    /// <summary>The role word was just written.</summary>
    public bool IsChanging { get; init; }

    /// <summary>Gathers what there is to know. Exact while nobody loads, unloads or lists roots: under mmu_lock write, or between two events.</summary>
    public static RootView Of(CheckedVm vm, Root root)
    {
        ArgumentNullException.ThrowIfNull(vm);
        ArgumentNullException.ThrowIfNull(root);
        TableRole role = root.PeekRole();
        int twins = 0;
        int sameKind = 0;
        bool isListed = false;
        foreach (Root other in vm.Mmu.ListedRoots)
        {
            isListed |= ReferenceEquals(other, root);
            TableRole its = other.PeekRole();
            if (its.IsInvalid)
            {
                continue;
            }

            twins += its == role ? 1 : 0;
            sameKind += other.IsMirror == root.IsMirror && other.AddressSpace == root.AddressSpace ? 1 : 0;
        }

        return new RootView(vm, root, role, root.ReferenceCount, isListed, twins, sameKind, vm.Loaded(root));
    }

    /// <inheritdoc/>
    public string Describe()
        => $"root {Root} ({(Root.IsMirror ? "mirror" : "direct")}, role 0x{Role.Value:x}{(Role.IsInvalid ? ", invalid" : string.Empty)}{(IsListed ? string.Empty : ", not listed")}{(Root.Table.IsFreed ? ", freed" : string.Empty)}): {References} references, {Loaded} vCPUs have it loaded, {Twins} valid roots of that role, {SameKind} of that kind{(MayInvalidate ? string.Empty : ", changed without mmu_lock write")}{(Mapped.IsNone ? string.Empty : $"; still has {Mapped.Describe()}")}";
}

/// <summary>One vCPU and its roots.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Vcpu">The vCPU's number.</param>
/// <param name="HasDirect">The direct root is loaded.</param>
/// <param name="HasMirror">The mirror root is loaded.</param>
/// <param name="IsEntering">It is entering the guest.</param>
/// <param name="WasVmDead">The VM was dead already when the vCPU last looked whether it may enter.</param>
public readonly record struct VcpuEntryView(CheckedVm Vm, int Vcpu, bool HasDirect, bool HasMirror, bool IsEntering, bool WasVmDead) : ISubject
{
    /// <summary>The vCPU's roots as it has them loaded now.</summary>
    public static VcpuEntryView Of(CheckedVm vm, Vcpu vcpu, bool isEntering, bool wasVmDead)
    {
        ArgumentNullException.ThrowIfNull(vcpu);
        return new VcpuEntryView(vm, vcpu.Id, vcpu.Mmu.DirectRoot is not null, vcpu.Mmu.MirrorRoot is not null, isEntering, wasVmDead);
    }

    /// <inheritdoc/>
    public string Describe() => $"vCPU {Vcpu}{(IsEntering ? " enters the guest" : string.Empty)}: direct root {(HasDirect ? "loaded" : "not loaded")}, mirror root {(HasMirror ? "loaded" : "not loaded")}{(WasVmDead ? ", the VM was dead when it looked" : string.Empty)}";
}

/// <summary>A flag of the whole VM.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="IsSet">The flag.</param>
/// <param name="IsWriteHeld">Somebody holds mmu_lock for writing.</param>
public readonly record struct SeptZapFlag(CheckedVm Vm, bool IsSet, bool IsWriteHeld) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"wait_for_sept_zap is {(IsSet ? "set" : "clear")}, mmu_lock is {(IsWriteHeld ? "held" : "not held")} for writing";
}

/// <summary>The VM's health.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Warnings">WARNs so far.</param>
/// <param name="Death">Why the VM is dead, or null.</param>
/// <param name="IsDeathDeclared">The run has meant the VM to die.</param>
/// <param name="Negative">A counter below zero, or null.</param>
public readonly record struct Health(CheckedVm Vm, long Warnings, string? Death, bool IsDeathDeclared, string? Negative) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"{Warnings} warnings{(Death is null ? string.Empty : $", the VM died: {Death}")}{(Negative is null ? string.Empty : $", {Negative} is below zero")}";
}
