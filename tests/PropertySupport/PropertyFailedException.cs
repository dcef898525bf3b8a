using System;
using System.Collections.Generic;

namespace FsCheck.Xunit;

/// <summary>A property did not hold, or ran out of cases that met its conditions. The inner exception is the one the shrunk case threw, if it threw.</summary>
public sealed class PropertyFailedException : Exception
{
    /// <summary>Creates the exception.</summary>
    /// <param name="message">The report for people: original arguments, shrunk arguments, replay line.</param>
    /// <param name="replay">The triple <c>(seed,gamma,size)</c> that repeats the failing case, or <see langword="null"/> if there is none.</param>
    /// <param name="shrunk">The arguments after shrinking.</param>
    /// <param name="inner">What the shrunk case threw.</param>
    public PropertyFailedException(string message, string? replay, object?[] shrunk, Exception? inner)
        : base(message, inner)
    {
        Replay = replay;
        Shrunk = shrunk;
    }

    /// <summary>The triple <c>(seed,gamma,size)</c> that repeats the failing case at once, or <see langword="null"/>.</summary>
    public string? Replay { get; }

    /// <summary>The arguments of the smallest failing case that was found.</summary>
    public IReadOnlyList<object?> Shrunk { get; }
}
