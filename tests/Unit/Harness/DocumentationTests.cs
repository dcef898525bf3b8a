using System.IO;
using System.Text.RegularExpressions;
using Tdp.Harness.Invariants;
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
