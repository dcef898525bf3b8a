using System.IO;
using System.Linq;
using System.Text.Json;
using System.Text.Json.Serialization;
using Spectre.Console;

namespace Tdp.Harness.Reports;

/// <summary>
/// Where reports and progress go: data to standard output, everything else to standard error. Made only when there is something to draw, so that parse errors and help never pay for it.
/// </summary>
internal sealed class Screen
{
    private const int WidthOfReports = 180;

    private static readonly JsonSerializerOptions Json = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        WriteIndented = true,
        DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
        Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    private readonly bool _plain;

    /// <summary>Makes the screen.</summary>
    /// <param name="output">For data.</param>
    /// <param name="error">For progress and messages.</param>
    /// <param name="noColor">No colours, whatever the terminal can do.</param>
    public Screen(TextWriter output, TextWriter error, bool noColor)
    {
        Out = output;
        Error = error;

        // The library looks at TERM, not at redirection, and would write escape codes into pipes.
        _plain = noColor || !ReferenceEquals(output, Console.Out) || Console.IsOutputRedirected;
    }

    /// <summary>For data.</summary>
    public TextWriter Out { get; }

    /// <summary>For progress and messages.</summary>
    public TextWriter Error { get; }

    /// <summary>Writes a value as JSON to standard output.</summary>
    public void WriteJson<T>(T value) => Out.WriteLine(JsonSerializer.Serialize(value, Json));

    /// <summary>Writes a line of data.</summary>
    public void Line(string text = "") => Out.WriteLine(text);

    /// <summary>Writes a progress line, unless it is empty.</summary>
    public void Progress(string text) => Error.WriteLine(text);

    /// <summary>Draws a table. Columns whose heading starts with <c>#</c> hold numbers and are aligned to the right.</summary>
    public void Table(string title, IReadOnlyList<string> headings, IEnumerable<IReadOnlyList<string>> rows)
    {
        Table table = new() { Border = TableBorder.Simple, UseSafeBorder = true, ShowHeaders = true };
        if (title.Length > 0)
        {
            Out.WriteLine();
            Out.WriteLine(title);
        }

        foreach (string heading in headings)
        {
            TableColumn column = new(Markup.Escape(heading.TrimStart('#'))) { NoWrap = true };
            table.AddColumn(heading.StartsWith('#') ? column.RightAligned() : column);
        }

        foreach (IReadOnlyList<string> row in rows)
        {
            table.AddRow(row.Select(cell => new Text(cell)).ToArray<Spectre.Console.Rendering.IRenderable>());
        }

        using StringWriter text = new();
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Ansi = _plain ? AnsiSupport.No : AnsiSupport.Detect,
            ColorSystem = _plain ? ColorSystemSupport.NoColors : ColorSystemSupport.Detect,
            Interactive = InteractionSupport.No,
            Out = new AnsiConsoleOutput(text),
        });
        console.Profile.Width = WidthOfReports;
        console.Write(table);

        // The border leaves empty lines around the rows and spaces behind them.
        foreach (string line in text.ToString().Split('\n'))
        {
            if (line.Trim().Length > 0)
            {
                Out.WriteLine(line.TrimEnd());
            }
        }
    }
}
