namespace Tdp.Tests.Invariants;

/// <summary>The test breaks what this rule guards and sees the rule, and nothing it does not imply, fire.</summary>
[AttributeUsage(AttributeTargets.Method, AllowMultiple = true)]
internal sealed class BreaksAttribute(string rule) : Attribute
{
    public string Rule { get; } = rule;
}
