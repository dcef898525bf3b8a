using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <summary>Reads and writes the operands of raw module calls: <c>rcx=tdr</c>, <c>rcx=gpa:0x200@2M</c>, <c>r8=page:0x200</c>, <c>rdx=0x10</c>.</summary>
internal static class StepOperands
{
    /// <summary>The registers, in the order in which a step keeps them.</summary>
    public static readonly string[] Registers = ["rcx", "rdx", "r8", "r9"];

    /// <summary>What an operand may be.</summary>
    public const string Allowed = "a number, tdr, tdvprN, gpa:GFN, gpa:GFN@2M or page:GFN, each with vmN. in front for another VM";

    /// <summary>Reads one operand.</summary>
    public static bool TryRead(string text, out ScenarioOperand operand)
    {
        operand = default;
        int vm = 0;
        if (text.StartsWith("vm", StringComparison.Ordinal) && text.IndexOf('.', StringComparison.Ordinal) is var dot and > 2)
        {
            if (!int.TryParse(text.AsSpan(2, dot - 2), NumberStyles.None, CultureInfo.InvariantCulture, out vm) || vm is < 1 or > Scenario.MaxVms)
            {
                return false;
            }

            text = text[(dot + 1)..];
        }

        if (text is "tdr")
        {
            operand = new ScenarioOperand(OperandKind.Tdr, 0, default, vm);
            return true;
        }

        if (text.StartsWith("tdvpr", StringComparison.Ordinal))
        {
            bool read = int.TryParse(text.AsSpan(5), NumberStyles.None, CultureInfo.InvariantCulture, out int vcpu) && vcpu < Scenario.MaxVcpus;
            operand = new ScenarioOperand(OperandKind.Tdvpr, (ulong)vcpu, default, vm);
            return read;
        }

        if (text.StartsWith("page:", StringComparison.Ordinal))
        {
            bool read = ScenarioWord.TryNumber(text.AsSpan(5), out ulong gfn) && gfn < Scenario.GfnLimit;
            operand = new ScenarioOperand(OperandKind.Page, gfn, default, vm);
            return read;
        }

        if (text.StartsWith("gpa:", StringComparison.Ordinal))
        {
            int at = text.IndexOf('@', StringComparison.Ordinal);
            Level level = Level.K4;
            bool read = ScenarioWord.TryNumber(text.AsSpan(4, (at < 0 ? text.Length : at) - 4), out ulong gfn) && gfn < Scenario.GfnLimit
                && (at < 0 || TryLevel(text.AsSpan(at + 1), out level));
            operand = new ScenarioOperand(OperandKind.Gpa, gfn, level, vm);
            return read;
        }

        operand = new ScenarioOperand(OperandKind.Number, 0, default, 0);
        bool isNumber = vm == 0 && ScenarioWord.TryNumber(text, out ulong number);
        if (isNumber)
        {
            ScenarioWord.TryNumber(text, out number);
            operand = operand with { Number = number };
        }

        return isNumber;
    }

    /// <summary>Reads a level of the memory leaves, 4K to 512G.</summary>
    public static bool TryLevel(ReadOnlySpan<char> text, out Level level)
    {
        for (Level at = Level.K4; at <= Level.G512; at = at.Up)
        {
            if (text.Equals(at.ToString(), StringComparison.Ordinal))
            {
                level = at;
                return true;
            }
        }

        level = default;
        return false;
    }

    /// <summary>Writes operands so that they read back equal; zeros at the end are left out.</summary>
    public static string Write(IReadOnlyList<ScenarioOperand> operands)
    {
        List<string> words = [];
        for (int i = 0; i < operands.Count; i++)
        {
            if (operands[i] != default)
            {
                words.Add($"{Registers[i]}={Write(operands[i])}");
            }
        }

        return string.Join(' ', words);
    }

    private static string Write(ScenarioOperand operand)
    {
        CultureInfo plain = CultureInfo.InvariantCulture;
        string vm = operand.Vm == 0 ? string.Empty : string.Create(plain, $"vm{operand.Vm}.");
        return operand.Kind switch
        {
            OperandKind.Tdr => vm + "tdr",
            OperandKind.Tdvpr => string.Create(plain, $"{vm}tdvpr{operand.Number}"),
            OperandKind.Page => string.Create(plain, $"{vm}page:0x{operand.Number:x}"),
            OperandKind.Gpa when operand.Level == Level.K4 => string.Create(plain, $"{vm}gpa:0x{operand.Number:x}"),
            OperandKind.Gpa => string.Create(plain, $"{vm}gpa:0x{operand.Number:x}@{operand.Level}"),
            _ => string.Create(plain, $"0x{operand.Number:x}"),
        };
    }
}
