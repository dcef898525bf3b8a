using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>Writes scenarios: one line per fact, in the order of the document, values that are the default left out.</summary>
internal static class ScenarioWriter
{
    /// <summary>The scenario as text that reads back equal.</summary>
    public static string Write(Scenario scenario)
    {
        StringBuilder text = new("tdpmmu-scenario 1\n");
        Line(text, "scenario", scenario.Name);
        Line(text, "about", scenario.About.Length == 0 ? string.Empty : $"\"{scenario.About}\"");
        Line(text, "spec", string.Join(' ', scenario.Spec));
        Line(text, "needs", scenario.NeedsInterleaving ? "interleaving" : string.Empty);
        Line(text, "memory", scenario.Memory is "sc" ? string.Empty : "tso " + string.Join(' ', scenario.BufferedObjects));
        Line(text, "rwlock", scenario.IsFairRwLock ? "fair" : string.Empty);
        Line(text, "timers", scenario.HasFreeTimers ? "free" : string.Empty);
        Line(text, "tlb", scenario.TlbMode is TlbMode.Precise ? string.Empty : scenario.TlbMode.ToString().ToLowerInvariant());
        if (scenario.Profile != BehaviourProfile.Documented)
        {
            text.Append(ProfilePoints.Write(scenario.Profile)).Append('\n');
        }

        Line(text, "generation", scenario.Generation);
        Line(text, "patch", scenario.Patch);
        Line(text, "requires", scenario.Requires);
        foreach (string site in scenario.Sites)
        {
            Line(text, "site", site);
        }

        foreach (ScenarioBusy busy in scenario.Busy)
        {
            Line(text, "inject", Busy(busy));
        }

        foreach (ScenarioVm vm in scenario.Vms)
        {
            Line(text, "vm", Vm(vm));
        }

        foreach (ScenarioSlot slot in scenario.Slots)
        {
            text.Append(slot).Append('\n');
        }

        Singles(text, "init", scenario.Init);
        foreach (ScenarioActor actor in scenario.Actors)
        {
            for (int i = 0; i < actor.Steps.Count; i++)
            {
                Line(text, "actor", $"{actor.Name}{(i == 0 ? " " + actor.Role : string.Empty)} {Step(actor.Steps[i], actor.Vcpu)}");
            }
        }

        Singles(text, "after", scenario.After);
        foreach (Requirement requirement in scenario.Requirements)
        {
            Line(text, "require", requirement.ToString());
        }

        return text.ToString();
    }

    private static void Line(StringBuilder text, string key, string value)
    {
        if (value.Length > 0)
        {
            text.Append(key).Append(' ').Append(value).Append('\n');
        }
    }

    private static void Singles(StringBuilder text, string key, IReadOnlyList<ScenarioSingle> steps)
    {
        foreach (ScenarioSingle single in steps)
        {
            Line(text, key, (single.Vcpu < 0 ? string.Empty : single.Actor + " ") + Step(single.Step, single.Vcpu));
        }
    }

    // A vCPU's steps are always about its own VM.
    private static string Step(ScenarioStep step, int vcpu) => (vcpu < 0 ? step : step with { Vm = 1 }).ToString();

    private static string Busy(ScenarioBusy busy)
    {
        List<string> names = [];
        foreach (TdhLeaf leaf in busy.Leaves)
        {
            names.Add(leaf.ToString().Replace('_', '.'));
        }

        string often = busy.Times > 0 ? $"times={busy.Times.ToString(CultureInfo.InvariantCulture)}" : $"p={(busy.PerMille / 10m).ToString(CultureInfo.InvariantCulture)}%";
        return $"busy leaf={string.Join(',', names)} {often}";
    }

    private static string Vm(ScenarioVm vm)
    {
        StringBuilder text = new(vm.Kind is VmKind.Td ? "td" : "default");
        text.Append(CultureInfo.InvariantCulture, $" vcpus={vm.Vcpus}");
        text.Append(vm.IsFiveLevel ? " five-level" : string.Empty).Append(vm.IsUnfinalized ? " unfinalized" : string.Empty).Append(vm.HasNx ? " nx" : string.Empty);
        text.Append(vm.HasNoAd ? " no-ad" : string.Empty).Append(vm.HasNoQuirk ? " no-quirk" : string.Empty);
        text.Append(vm.HasNoPml ? " no-pml" : string.Empty).Append(vm.HasNoEagerSplit ? " no-eager-split" : string.Empty);
        text.Append(vm.SeptVeDisable is { } disable ? disable ? " ve=off" : " ve=on" : string.Empty);
        return text.ToString();
    }
}
