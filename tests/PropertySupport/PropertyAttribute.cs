using System;
using Xunit;
using Xunit.Sdk;

namespace FsCheck.Xunit;

/// <summary>
/// Marks a test method whose arguments are generated: FsCheck runs it many times, and on a failure shrinks the arguments and prints what repeats the run.
/// The surface is that of the FsCheck.Xunit package, so that package can take this project's place without a change to any test.
/// </summary>
/// <remarks>The method may return <see langword="void"/>, <see cref="bool"/>, a <see cref="Property"/> or a task of one of these. -1 means "not set".</remarks>
[AttributeUsage(AttributeTargets.Method)]
[XunitTestCaseDiscoverer("FsCheck.Xunit.PropertyDiscoverer", "TdpMmu.PropertySupport")]
public class PropertyAttribute : FactAttribute
{
    /// <summary>Repeats one run: <c>(seed,gamma)</c> or <c>(seed,gamma,size)</c>; parentheses are optional, gamma is odd.</summary>
    public string? Replay { get; set; }

    /// <summary>How many cases must pass. FsCheck's own default is 100.</summary>
    public int MaxTest { get; set; } = -1;

    /// <summary>How many discarded cases are allowed before the property counts as exhausted, which is a failure.</summary>
    public int MaxRejected { get; set; } = -1;

    /// <summary>The size of the first case.</summary>
    public int StartSize { get; set; } = -1;

    /// <summary>The size of the last case.</summary>
    public int EndSize { get; set; } = -1;

    /// <summary>How many cases may run at the same time. Never together with a controlled scheduler, which owns its threads.</summary>
    public int Parallelism { get; set; } = -1;

    /// <summary>Writes every case to the test's output.</summary>
    public bool Verbose { get; set; }

    /// <summary>Writes nothing to the test's output when the property holds.</summary>
    public bool QuietOnSuccess { get; set; }

    /// <summary>Types with static members that return <see cref="Arbitrary{T}"/>. Earlier entries win over later ones.</summary>
    public Type[] Arbitrary { get; set; } = [];
}

/// <summary>Defaults for every <see cref="PropertyAttribute"/> of a class or an assembly. What the method sets itself wins; generators of all three are joined.</summary>
[AttributeUsage(AttributeTargets.Class | AttributeTargets.Assembly)]
public sealed class PropertiesAttribute : PropertyAttribute;
