using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <content>VMs, slots, actors and their steps.</content>
internal sealed partial class ScenarioReader
{
    private const string VmWords = "five-level, unfinalized, nx, no-ad, no-quirk, no-pml, no-eager-split, ve=on, ve=off, vcpus=N";
    private const string SlotWords = "gfn=RANGE, memfd, huge, log, readonly, absent, private, shared, smm, vm=N";

    private void VmLine(List<ScenarioWord> words)
    {
        if (Word(words, 1, "td", "default") is not { } kind)
        {
            return;
        }

        if (_vms.Count == Scenario.MaxVms)
        {
            Error(words[0], $"too many VMs: at most {Scenario.MaxVms}");
            return;
        }

        ScenarioVm vm = new(kind is "td" ? VmKind.Td : VmKind.Default);
        foreach (ScenarioWord word in words.GetRange(2, words.Count - 2))
        {
            bool isTd = vm.Kind is VmKind.Td;
            switch (word.Text)
            {
                case "five-level":
                    vm = vm with { IsFiveLevel = true };
                    break;
                case "unfinalized" when isTd:
                    vm = vm with { IsUnfinalized = true };
                    break;
                case "nx":
                    vm = vm with { HasNx = true };
                    break;
                case "no-ad" when !isTd:
                    vm = vm with { HasNoAd = true };
                    break;
                case "no-quirk" when !isTd:
                    vm = vm with { HasNoQuirk = true };
                    break;
                case "no-pml" when !isTd:
                    vm = vm with { HasNoPml = true };
                    break;
                case "no-eager-split" when !isTd:
                    vm = vm with { HasNoEagerSplit = true };
                    break;
                case "ve=on" or "ve=off" when isTd:
                    vm = vm with { SeptVeDisable = word.Text is "ve=off" };
                    break;
                default:
                    if (word.Key is "vcpus" && word.IsPair)
                    {
                        vm = vm with { Vcpus = (int)Number(word.Value, 1, Scenario.MaxVcpus) };
                        break;
                    }

                    string hint = word.Text switch
                    {
                        "unfinalized" or "ve=on" or "ve=off" => " (a td only)",
                        "no-ad" or "no-quirk" or "no-pml" or "no-eager-split" => " (a default VM only)",
                        _ => string.Empty,
                    };
                    Error(word, $"'{word.Text}' is not allowed here{hint}: allowed is {VmWords}");
                    return;
            }
        }

        _vms.Add(vm);
    }

    private void VcpusLine(List<ScenarioWord> words)
    {
        if (words.Count < 2)
        {
            Missing(words[0], "the number of vCPUs");
            return;
        }

        int count = (int)Number(words[1], 1, Scenario.MaxVcpus);
        int vm = 1;
        foreach (ScenarioWord word in words.GetRange(2, words.Count - 2))
        {
            if (word.Key is not "vm" || !word.IsPair)
            {
                Error(word, $"'{word.Text}' is not allowed here: allowed is vm=N");
                return;
            }

            vm = (int)Number(word.Value, 1, Scenario.MaxVms);
        }

        _vcpusNamed.Add((words[1], vm, count - 1));
    }

    private void SlotLine(List<ScenarioWord> words)
    {
        if (words.Count < 2)
        {
            Missing(words[0], "the number of the slot");
            return;
        }

        ScenarioSlot slot = new((int)Number(words[1], 0, 63), default);
        bool isShared = false;
        foreach (ScenarioWord word in words.GetRange(2, words.Count - 2))
        {
            switch (word.IsPair ? word.Key : word.Text)
            {
                case "gfn" when word.IsPair:
                    slot = slot with { Range = Range(word.Value) };
                    break;
                case "vm" when word.IsPair:
                    slot = slot with { Vm = (int)Number(word.Value, 1, Scenario.MaxVms) };
                    break;
                case "memfd":
                    slot = slot with { HasFile = true };
                    break;
                case "huge":
                    slot = slot with { IsHuge = true };
                    break;
                case "log":
                    slot = slot with { IsLogged = true };
                    break;
                case "readonly":
                    slot = slot with { IsReadOnly = true };
                    break;
                case "absent":
                    slot = slot with { IsAbsent = true };
                    break;
                case "private":
                    break;
                case "shared":
                    isShared = true;
                    break;
                case "smm":
                    slot = slot with { AddressSpace = 1 };
                    break;
                default:
                    Error(word, $"'{word.Text}' is not part of a slot: allowed is {SlotWords}");
                    return;
            }
        }

        if (slot.Range.IsEmpty)
        {
            Missing(words[^1], "the guest frames of the slot, such as gfn=0..0x3ff");
            return;
        }

        slot = slot with { Attribute = slot.HasFile && !isShared ? Alias.Private : Alias.Shared };
        _vmsNamed.Add((words[0], slot.Vm, slot.HasFile));
        foreach (ScenarioSlot other in _slots)
        {
            if (other.Vm == slot.Vm && other.AddressSpace == slot.AddressSpace && (other.Id == slot.Id || (!other.IsAbsent && !slot.IsAbsent && other.Range.Overlaps(slot.Range))))
            {
                Error(words[1], other.Id == slot.Id ? $"slot {slot.Id} is declared twice" : $"slot {slot.Id} {slot.Range} overlaps slot {other.Id} {other.Range}");
            }
        }

        _slots.Add(slot);
    }

    private void SingleLine(List<ScenarioWord> words, List<ScenarioSingle> into)
    {
        int at = 1;
        (int vm, int vcpu) = (1, -1);
        if (at < words.Count && TryRole(words[at], out vm, out vcpu))
        {
            at++;
        }

        if (ReadStep(words, at, vm, vcpu, isAfter: ReferenceEquals(into, _after), isActor: false) is { } step)
        {
            into.Add(new ScenarioSingle(new ScenarioActor(string.Empty, vm, vcpu, []).Role, vm, vcpu, step));
        }
    }

    private void ActorLine(List<ScenarioWord> words)
    {
        if (words.Count < 2 || !IsName(words[1].Text) || words[1].Text is "host" or "init" or "after" || words[1].Text.StartsWith("vcpu", StringComparison.Ordinal))
        {
            Error(words.Count < 2 ? words[0] : words[1], "an actor has a name of letters, digits, '-' and '_', other than host, init, after and vcpuN");
            return;
        }

        int at = 2;
        bool hasRole = TryRole(words.Count > 2 ? words[2] : default, out int vm, out int vcpu);
        at += hasRole ? 1 : 0;
        ActorDraft? actor = _actors.Find(a => string.Equals(a.Name, words[1].Text, StringComparison.Ordinal));
        if (actor is null)
        {
            if (!hasRole)
            {
                Error(words.Count > 2 ? words[2] : words[1], $"actor {words[1].Text} needs a role in its first line: vcpuN, vmN.vcpuN or host");
                return;
            }

            if (_actors.Count == Scenario.MaxActors)
            {
                Error(words[1], $"too many actors: at most {Scenario.MaxActors}");
                return;
            }

            if (vcpu >= 0 && _actors.Find(a => a.Vm == vm && a.Vcpu == vcpu) is { } other)
            {
                Error(words[2], $"{words[2].Text} is run by actor {other.Name}: a vCPU has one thread");
                return;
            }

            actor = new ActorDraft(words[1].Text, vm, vcpu, words[1]);
            _actors.Add(actor);
        }
        else if (hasRole && (actor.Vm != vm || actor.Vcpu != vcpu))
        {
            Error(words[2], $"actor {actor.Name} has another role in line {actor.Place.Line}");
            return;
        }

        if (ReadStep(words, at, actor.Vm, actor.Vcpu, isAfter: false, isActor: true) is { } step)
        {
            actor.Steps.Add(step);
        }
    }

    private bool TryRole(ScenarioWord word, out int vm, out int vcpu)
    {
        vm = 1;
        vcpu = -1;
        string text = word.Text ?? string.Empty;
        if (text is "host")
        {
            return true;
        }

        ReadOnlySpan<char> rest = text;
        if (rest.StartsWith("vm") && rest.IndexOf('.') is var dot and > 2 && int.TryParse(rest[2..dot], NumberStyles.None, CultureInfo.InvariantCulture, out int number))
        {
            vm = number;
            rest = rest[(dot + 1)..];
        }

        if (!rest.StartsWith("vcpu") || !int.TryParse(rest[4..], NumberStyles.None, CultureInfo.InvariantCulture, out vcpu))
        {
            vm = 1;
            vcpu = -1;
            return false;
        }

        if (vcpu >= Scenario.MaxVcpus || vm is < 1 or > Scenario.MaxVms)
        {
            Error(word, $"{text}: allowed are vCPUs 0 to {Scenario.MaxVcpus - 1} of VMs 1 to {Scenario.MaxVms}");
            vcpu = 0;
            vm = 1;
        }

        _vcpusNamed.Add((word, vm, vcpu));
        return true;
    }

    private Scenario? Finish()
    {
        ScenarioWord top = new(string.Empty, 1, 1, IsQuoted: false);
        if (_name.Length == 0)
        {
            Error(top, "there is no 'scenario NAME' line");
        }

        if (_vms.Count == 0)
        {
            _vms.Add(new ScenarioVm(VmKind.Td));
        }

        // Slots by default: two regions of 2M, so that there is an edge between tables.
        for (int vm = 1; vm <= _vms.Count; vm++)
        {
            if (!_slots.Exists(s => s.Vm == vm))
            {
                bool isTd = _vms[vm - 1].Kind is VmKind.Td;
                _slots.Add(new ScenarioSlot(0, GfnRange.Of(new Gfn(0), 1024)) { Vm = vm, HasFile = isTd, Attribute = isTd ? Alias.Private : Alias.Shared });
            }
        }

        CheckNames();
        if (_actors.Count == 0 && _init.Count == 0)
        {
            Error(top, "there is neither an 'actor' line nor an 'init' line: nothing would happen");
        }

        return new Scenario
        {
            Name = _name,
            File = _file,
            About = _about,
            Spec = _spec,
            NeedsInterleaving = _needsInterleaving,
            Memory = _memory,
            BufferedObjects = _buffered,
            IsFairRwLock = _fair,
            HasFreeTimers = _freeTimers,
            TlbMode = _tlb,
            Profile = _profile,
            Generation = _generation,
            Patch = _patch,
            Requires = _requires,
            Sites = _sites,
            Busy = _busy,
            Vms = _vms,
            Slots = _slots,
            Init = _init,
            Actors = _actors.ConvertAll(a => new ScenarioActor(a.Name, a.Vm, a.Vcpu, a.Steps)),
            After = _after,
            Requirements = _requirements,
            ScheduleLine = _scheduleLine,
        };
    }

    // Names may be used before the line that declares them.
    private void CheckNames()
    {
        foreach ((ScenarioWord word, int vm, bool needsTd) in _vmsNamed)
        {
            if (vm > _vms.Count)
            {
                Error(word, $"VM {vm} is not declared: there {(_vms.Count == 1 ? "is one VM" : $"are {_vms.Count} VMs")}");
            }
            else if (needsTd && _vms[vm - 1].Kind is not VmKind.Td)
            {
                Error(word, $"VM {vm} is a default VM: this is for a td only");
            }
        }

        foreach ((ScenarioWord word, int vm, int vcpu) in _vcpusNamed)
        {
            if (vm > _vms.Count)
            {
                Error(word, $"VM {vm} is not declared: there {(_vms.Count == 1 ? "is one VM" : $"are {_vms.Count} VMs")}");
            }
            else
            {
                _vms[vm - 1] = _vms[vm - 1] with { Vcpus = Math.Max(_vms[vm - 1].Vcpus, vcpu + 1) };
            }
        }

        for (int i = 0; i < _vms.Count; i++)
        {
            _vms[i] = _vms[i] with { Vcpus = Math.Max(1, _vms[i].Vcpus) };
        }

        foreach ((ScenarioWord word, int vm, int slot) in _slotsNamed)
        {
            if (!_slots.Exists(s => s.Vm == vm && s.Id == slot))
            {
                Error(word, $"slot {slot} of VM {vm} is not declared");
            }
        }

        foreach (ScenarioWord word in _actorsNamed)
        {
            if (!_actors.Exists(a => string.Equals(a.Name, word.Text, StringComparison.Ordinal)))
            {
                Error(word, $"there is no actor '{word.Text}': allowed is {string.Join(", ", _actors.ConvertAll(a => a.Name))}");
            }
        }

        foreach ((ScenarioWord word, string actor, int step) in _stepsNamed)
        {
            int steps = actor switch
            {
                "init" => _init.Count,
                "after" => _after.Count,
                _ => _actors.Find(a => string.Equals(a.Name, actor, StringComparison.Ordinal))?.Steps.Count ?? -1,
            };
            if (steps < 0)
            {
                Error(word, $"there is no actor '{actor}': allowed is {string.Join(", ", [.. _actors.ConvertAll(a => a.Name), "init", "after"])}");
            }
            else if (step > steps || steps == 0)
            {
                Error(word, $"'{actor}' has {steps} steps: there is no step {Math.Max(step, 1)}");
            }
        }
    }
}
