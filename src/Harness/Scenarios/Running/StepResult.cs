namespace Tdp.Harness.Scenarios;

/// <summary>What a step ended with, as one word of the format: <c>ok</c>, <c>fixed</c>, <c>EFAULT</c>, <c>OPERAND_BUSY</c>.</summary>
/// <param name="Word">The word; empty while the step has not ended.</param>
/// <param name="Detail">More for people, or <see langword="null"/>.</param>
public readonly record struct StepResult(string Word, string? Detail = null)
{
    /// <summary>It was done.</summary>
    public static StepResult Ok => new("ok");

    /// <summary>The access disagrees with the attribute, or nothing can back it.</summary>
    public static StepResult MemoryFault => new("memory-fault");

    /// <summary>The step was not done: an earlier one ended the run.</summary>
    public static StepResult NotDone => new("not-done");

    /// <summary>True for a result that a setup step may have.</summary>
    public bool IsSuccess => Word is "ok" or "fixed" or "spurious" or "yes" or "no" or "SUCCESS" or "PAGE_ALREADY_ACCEPTED";

    /// <summary>An errno; success is <c>ok</c>.</summary>
    public static StepResult Of(Errno errno) => errno is Errno.None ? Ok : new StepResult(errno.ToString());

    /// <summary>A status of the module.</summary>
    public static StepResult Of(TdxStatus status) => new(StatusWords.Of(status), status.ToString());

    /// <summary>A yes or no.</summary>
    public static StepResult Of(bool yes) => new(yes ? "yes" : "no");

    /// <summary>What a fault ended with.</summary>
    public static StepResult Of(FaultResult result, bool isMemoryFault) => result switch
    {
        FaultResult.Fixed => new StepResult("fixed"),
        FaultResult.Spurious => new StepResult("spurious"),
        FaultResult.Retry => new StepResult("retry"),
        FaultResult.Emulate => new StepResult("emulate"),
        FaultResult.WriteProtected => new StepResult("write-protected"),
        FaultResult.BadAddress when isMemoryFault => MemoryFault,
        < 0 => Of((Errno)(-(int)result)),
        _ => new StepResult(result.ToString()),
    };

    /// <inheritdoc/>
    public override string ToString() => Detail is null ? Word : $"{Word} ({Detail})";
}
