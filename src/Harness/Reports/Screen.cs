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
    private static readonly JsonSerializerOptions Json = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        WriteIndented = true,
        DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
        Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    private readonly IAnsiConsole _out;

    /// <summary>Makes the screen.</summary>
    /// <param name="output">For data.</param>
    /// <param name="error">For progress and messages.</param>
    /// <param name="noColor">No colours, whatever the terminal can do.</param>
    public Screen(TextWriter output, TextWriter error, bool noColor)
    {
        Out = output;
        Error = error;

        // The library looks at TERM, not at redirection, and would write escape codes into pipes.
        bool plain = Console.IsOutputRedirected || noColor || !ReferenceEquals(output, Console.Out);
        _out = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Ansi = plain ? AnsiSupport.No : AnsiSupport.Detect,
            ColorSystem = plain ? ColorSystemSupport.NoColors : ColorSystemSupport.Detect,
            Interactive = InteractionSupport.No,
            Out = new AnsiConsoleOutput(output),
        });
        if (plain)
        {
            _out.Profile.Width = 160;
        }
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
            table.Title = new TableTitle(Markup.Escape(title), new Style(decoration: Decoration.Bold));
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

        _out.Write(table);
    }
}
