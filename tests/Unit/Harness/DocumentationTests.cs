using System.IO;
using System.Text.RegularExpressions;
using Tdp.Harness.Invariants;
using Tdp.Harness.ScenarioFiles;
using Tdp.Harness.Scenarios;
using Tdp.Tests.Unit.House;

namespace Tdp.Tests.Unit.Harness;

/// <summary>What the documents say is what the code does.</summary>
public sealed class DocumentationTests
{
    [Fact]
    public void The_table_of_invariants_is_the_catalogue()
    {
        // Written by Catalogue.ToMarkdown(): after a change of the catalogue, put its text between the first table row and the end of the table.
        string text = File.ReadAllText(Repository.Path("docs", "invariants.md")).ReplaceLineEndings("\n");
        int start = text.IndexOf("| Rule |", StringComparison.Ordinal);
        int end = text.IndexOf("\n\n", start, StringComparison.Ordinal);
        Assert.Equal(Catalogue.ToMarkdown(), text[start..(end < 0 ? text.Length : end + 1)]);
    }

    [Fact]
    public void The_tables_of_the_scenario_document_are_the_grammar()
    {
        string text = File.ReadAllText(Repository.Path("docs", "scenarios.md"));
        string[] steps = [.. StepGrammar.All.Select(s => $"| `{s.Pattern.Replace("|", "\\|", StringComparison.Ordinal)}` | {(s.By is StepBy.Vcpu ? "vCPU" : "any")} | {s.Sentence} | {s.Results} |")];
        Assert.Contains("| --- | --- | --- | --- |\n" + string.Join('\n', steps) + "\n\n", text, StringComparison.Ordinal);
        string[] subjects = [.. RequirementGrammar.All.Select(s => $"| `{(s.Name + " " + s.Pattern).Trim().Replace("|", "\\|", StringComparison.Ordinal)}` | {(s.IsCount ? "a number" : string.Join(", ", s.Values))} | {s.Sentence} |")];
        Assert.Contains("without a number the actor's last |\n" + string.Join('\n', subjects) + "\n\n", text, StringComparison.Ordinal);
    }

    [Fact]
    public void The_example_of_the_scenario_document_is_the_built_in_one()
    {
        string text = File.ReadAllText(Repository.Path("docs", "scenarios.md"));
        string indented = string.Concat(BuiltInScenarios.Text("R05")!.TrimEnd('\n').Split('\n').Select(l => "    " + l + "\n"));
        Assert.Contains(indented, text, StringComparison.Ordinal);
    }

    [Fact]
    public void Every_link_of_the_documents_leads_somewhere()
    {
        string[] documents = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", .. Directory.GetFiles(Repository.Path("docs"), "*.md").Select(f => Path.GetRelativePath(Repository.Root, f))];
        foreach (string document in documents)
        {
            foreach (Match link in Regex.Matches(File.ReadAllText(Repository.Path(document)), @"\]\(([^)#:]+)\)", RegexOptions.None, TimeSpan.FromSeconds(5)))
            {
                string target = Path.Combine(Path.GetDirectoryName(Repository.Path(document))!, link.Groups[1].Value);
                Assert.True(File.Exists(target), $"{document} links to {link.Groups[1].Value}");
            }
        }
    }

    [Fact]
    public void The_commands_of_the_documents_name_samples_that_exist()
    {
        foreach (string document in (string[])["README.md", "docs/commands.md"])
        {
            foreach (Match sample in Regex.Matches(File.ReadAllText(Repository.Path(document)), @"samples/\w+\.elf", RegexOptions.None, TimeSpan.FromSeconds(5)))
            {
                Assert.True(File.Exists(Repository.Path(sample.Value)), $"{document} names {sample.Value}");
            }
        }
    }
}
