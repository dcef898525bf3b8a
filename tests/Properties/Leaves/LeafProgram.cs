using System.Globalization;
using System.Text;

namespace Tdp.Tests.Properties.Leaves;

/// <summary>What one step does. Host leaves first, then what a vCPU does, then the world around.</summary>
public enum StepKind
{
    PageAdd,
    PageAug,
    SeptAdd,
    RangeBlock,
    RangeUnblock,
    PageRemove,
    SeptRemove,
    PagePromote,
    PageDemote,
    PageRelocate,
    SeptRead,
    Track,
    Finalize,
    Fill,
    Retire,
    Rdmd,
    Wbinvd,
    Reclaim,
    ReclaimAll,
    VpFlush,
    VpFlushDone,
    CacheWb,
    KeyFreeId,
    Enter,
    Leave,
    Accept,
    AcceptAll,
    AttrRead,
    Touch,
    VeInfoGet,
    Interrupt,
    Wait,
    Hold,
    Release,
}

/// <summary>One step; what <paramref name="A"/> and <paramref name="B"/> mean depends on the kind.</summary>
/// <param name="Kind">What.</param>
/// <param name="Lp">On which processor.</param>
/// <param name="A">Mostly a guest address, or a vCPU.</param>
/// <param name="Level">Level of an operand.</param>
/// <param name="B">Mostly a page.</param>
public readonly record struct LeafStep(StepKind Kind, int Lp, int A, int Level, int B)
{
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Kind} @{Lp} a{A} l{Level} b{B}");

    public static LeafStep Parse(string line)
    {
        string[] words = line.Split(' ');
        int Number(int i) => int.Parse(words[i].AsSpan(1), CultureInfo.InvariantCulture);
        return new LeafStep(Enum.Parse<StepKind>(words[0]), Number(1), Number(2), Number(3), Number(4));
    }
}

/// <summary>A sequence of steps, in text one a line; the first line says whether the TD is finalized at the start.</summary>
public sealed class LeafProgram(bool running, IReadOnlyList<LeafStep> steps)
{
    public bool Running { get; } = running;

    public IReadOnlyList<LeafStep> Steps { get; } = steps;

    public static LeafProgram Parse(string text)
    {
        string[] lines = text.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        List<LeafStep> steps = [];
        for (int i = 1; i < lines.Length; i++)
            steps.Add(LeafStep.Parse(lines[i].Trim()));
        return new LeafProgram(lines[0].Trim() == "running", steps);
    }

    /// <summary>Smaller programs: without a run of steps, without one step, with a simpler operand. Long cuts first.</summary>
    public IEnumerable<LeafProgram> Shrink()
    {
        for (int cut = Steps.Count / 2; cut >= 1; cut /= 2)
        {
            for (int at = 0; at + cut <= Steps.Count; at += cut)
                yield return Without(at, cut);
        }

        for (int i = 0; i < Steps.Count; i++)
        {
            LeafStep step = Steps[i];
            if (step.Lp != 0)
                yield return With(i, step with { Lp = 0 });
            if (step.A != 0)
                yield return With(i, step with { A = 0 });
            if (step.B != 0)
                yield return With(i, step with { B = 0 });
            if (step.Level != 0)
                yield return With(i, step with { Level = 0 });
        }
    }

    public override string ToString()
    {
        StringBuilder text = new(Running ? "running\n" : "built\n");
        foreach (LeafStep step in Steps)
            text.Append(step.ToString()).Append('\n');
        return text.ToString();
    }

    private LeafProgram Without(int at, int count)
    {
        List<LeafStep> rest = [.. Steps];
        rest.RemoveRange(at, count);
        return new LeafProgram(Running, rest);
    }

    private LeafProgram With(int at, LeafStep step)
    {
        List<LeafStep> rest = [.. Steps];
        rest[at] = step;
        return new LeafProgram(Running, rest);
    }
}
