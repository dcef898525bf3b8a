namespace Tdp.Harness.Conformance;

/// <summary>An operand of a call, decoded for people.</summary>
/// <param name="Name">Register or member.</param>
/// <param name="Value">As recorded.</param>
/// <param name="Meaning">What it stands for; missing when the value says it.</param>
internal sealed record ReplayOperand(string Name, string Value, string? Meaning);

/// <summary>One part of an answer, or one recorded piece of state after the call.</summary>
/// <param name="What">A register, a member of the record, or a place.</param>
/// <param name="Recorded">In the trace.</param>
/// <param name="Simulated">Here.</param>
internal sealed record ReplayAnswer(string What, string Recorded, string Simulated)
{
    /// <summary>True when the two are not the same.</summary>
    public bool Differs => !string.Equals(Recorded, Simulated, StringComparison.Ordinal);
}

/// <summary>A record that the simulator answered in another way.</summary>
/// <param name="File">The trace file.</param>
/// <param name="Line">Line in it.</param>
/// <param name="Sequence">The sequence.</param>
/// <param name="Index">Number in the sequence.</param>
/// <param name="Operation">Leaf or operation.</param>
/// <param name="By">Who performs it.</param>
/// <param name="Note">The recorder's hint.</param>
/// <param name="Operands">The operands.</param>
/// <param name="Answers">Both answers; those that differ first.</param>
/// <param name="Entries">The entries involved, after the call.</param>
internal sealed record ReplayMismatch(
    string File, long Line, string Sequence, int Index, string Operation, string? By, string? Note, IReadOnlyList<ReplayOperand> Operands, IReadOnlyList<ReplayAnswer> Answers, IReadOnlyList<string> Entries);
