using Tdp.Harness.Patching;

namespace Tdp.Tests.Unit.Harness;

/// <summary>Patches apply without fuzz: exactly, or at the one other place where they fit, or not at all.</summary>
public sealed class UnifiedDiffTests
{
    private const string Text = "a\nb\nc\nd\ne\nf\ng\n";
    private const string Patch = "comment\n--- a/src/x.cs\n+++ b/src/x.cs\n@@ -2,3 +2,4 @@ context\n b\n-c\n+C\n+C2\n d\n";

    [Fact]
    public void A_hunk_replaces_its_lines()
        => Assert.Equal("a\nb\nC\nC2\nd\ne\nf\ng\n", Applied(Patch, Text));

    [Fact]
    public void Later_hunks_follow_what_earlier_ones_moved()
        => Assert.Equal("a\nb\nC\nC2\nd\ne\nF\ng\n", Applied(Patch + "@@ -6,1 +7,1 @@\n-f\n+F\n", Text));

    [Fact]
    public void A_hunk_that_has_moved_is_applied_where_it_fits_once()
        => Assert.Equal("0\n0\na\nb\nC\nC2\nd\ne\nf\ng\n", Applied(Patch, "0\n0\n" + Text));

    [Fact]
    public void A_hunk_that_fits_twice_elsewhere_is_refused()
    {
        PatchException wrong = Assert.Throws<PatchException>(() => Applied(Patch, "0\n" + Text + Text));
        Assert.Equal("p.patch:4: the hunk fits 2 places in src/x.cs; expected at line 2: 'b'", wrong.Message);
    }

    [Theory]
    [InlineData("", "p.patch:0: there is no file header")]
    [InlineData("--- a/x\n@@ -1 +1 @@\n-a\n+b\n", "p.patch:2: a line '+++ b/...' must follow '---'")]
    [InlineData("--- a/x\n+++ b/src/x.cs\n", "p.patch:3: a hunk '@@ -line,count +line,count @@' must follow the file header")]
    [InlineData("--- a/x\n+++ b/src/x.cs\n@@ nonsense @@\n", "p.patch:3: '@@ nonsense @@' is not")]
    [InlineData("--- a/x\n+++ b/src/x.cs\n@@ -1,5 +1,5 @@\n a\n", "p.patch:3: the hunk says 5 and 5 lines and has")]
    [InlineData("--- a/x\n+++ b/src/x.cs\n@@ -1 +1 @@\n*a\n", "p.patch:4: a line of a hunk starts with ' ', '-' or '+', found '*'")]
    [InlineData("--- a/x\n+++ b/src/y.cs\n@@ -1 +1 @@\n-a\n+b\n", "p.patch:3: there is no source src/y.cs")]
    [InlineData("--- a/x\n+++ b/src/x.cs\n@@ -1 +1 @@\n-z\n+b\n", "p.patch:3: the hunk fits nowhere in src/x.cs; expected at line 1: 'z'")]
    public void Whatever_does_not_fit_is_named_with_its_line(string patch, string message)
    {
        Dictionary<string, string> sources = new(StringComparer.Ordinal) { ["src/x.cs"] = Text };
        PatchException wrong = Assert.Throws<PatchException>(() => UnifiedDiff.Parse(patch, "p.patch").Apply(sources));
        Assert.StartsWith(message, wrong.Message, StringComparison.Ordinal);
        Assert.Equal(Text, sources["src/x.cs"]);
    }

    private static string Applied(string patch, string text)
    {
        Dictionary<string, string> sources = new(StringComparer.Ordinal) { ["src/x.cs"] = text };
        UnifiedDiff.Parse(patch, "p.patch").Apply(sources);
        return sources["src/x.cs"];
    }
}
