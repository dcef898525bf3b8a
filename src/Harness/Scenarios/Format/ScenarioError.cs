using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <summary>One thing that is wrong with a scenario's text, and where.</summary>
/// <param name="File">The name under which the text was read.</param>
/// <param name="Line">Line, from 1.</param>
/// <param name="Column">Column of the first character, from 1.</param>
/// <param name="Message">What is wrong and what is allowed, in one line.</param>
public readonly record struct ScenarioError(string File, int Line, int Column, string Message)
{
    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{File}:{Line}:{Column}: {Message}");
}

/// <summary>A text is no scenario. The message is the first error; <see cref="Errors"/> has them all.</summary>
public sealed class ScenarioException : Exception
{
    /// <summary>Makes the exception.</summary>
    /// <param name="errors">At least one.</param>
    public ScenarioException(IReadOnlyList<ScenarioError> errors)
        : base(errors is [var first, ..] ? first.ToString() : "no error was given")
        => Errors = errors ?? [];

    /// <summary>Every error that was found, in the order of the text.</summary>
    public IReadOnlyList<ScenarioError> Errors { get; }
}
