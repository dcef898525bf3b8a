using System.IO;
using System.Reflection;
using System.Text.RegularExpressions;
using System.Xml.Linq;

namespace Tdp.Tests.Unit.House;

/// <summary>The arrows between the rooms go one way: Sync, Platform, then Mmu, TdxModule and GuestCpu side by side, then Host, then Harness; the Explorer stands on Sync alone.</summary>
public sealed class ArrowTests
{
    private static readonly Dictionary<string, string[]> MayKnow = new(StringComparer.Ordinal)
    {
        ["Sync"] = [],
        ["Platform"] = ["Sync"],
        ["TdxModule"] = ["Sync", "Platform"],
        ["Mmu"] = ["Sync", "Platform"],
        ["GuestCpu"] = ["Sync", "Platform"],
        ["GuestKernel"] = [],
        ["Host"] = ["Sync", "Platform", "TdxModule", "Mmu", "GuestCpu", "GuestKernel"],
        ["Explorer"] = ["Sync"],
        ["Harness"] = ["Sync", "Platform", "TdxModule", "Mmu", "GuestCpu", "GuestKernel", "Host", "Explorer"],
    };

    private static readonly Dictionary<string, string> Namespaces = new(StringComparer.Ordinal)
    {
        ["Sync"] = "Tdp.Sync",
        ["Platform"] = "Tdp.Platform",
        ["TdxModule"] = "Tdp.Module",
        ["Mmu"] = "Tdp.Mmu",
        ["GuestCpu"] = "Tdp.Cpu",
        ["GuestKernel"] = "Tdp.Kernel",
        ["Host"] = "Tdp.Host",
        ["Explorer"] = "Tdp.Explorer",
        ["Harness"] = "Tdp.Harness",
    };

    private static readonly string[] InMemoryRooms = ["Sync", "Platform", "TdxModule", "Mmu", "GuestCpu", "GuestKernel", "Host", "Explorer"];

    public static TheoryData<string> Rooms => [.. MayKnow.Keys];

    public static TheoryData<string> PatchableRooms => [.. InMemoryRooms];

    [Fact]
    public void Every_project_under_src_is_a_room_with_a_rule()
        => Assert.Equal(MayKnow.Keys.Order(StringComparer.Ordinal), Directory.GetDirectories(Repository.Path("src")).Where(d => Directory.GetFiles(d, "*.csproj").Length > 0).Select(d => Path.GetFileName(d)!).Order(StringComparer.Ordinal));

    [Theory]
    [MemberData(nameof(Rooms))]
    public void A_room_references_only_the_rooms_it_may_know(string room)
        => Assert.Subset(MayKnow[room].ToHashSet(StringComparer.Ordinal), ProjectReferences(room).ToHashSet(StringComparer.Ordinal));

    [Theory]
    [MemberData(nameof(Rooms))]
    public void A_built_room_uses_only_the_rooms_it_may_know(string room)
    {
        string name = AssemblyName(room);
        string[] ours = [.. Assembly.Load(name).GetReferencedAssemblies().Select(a => a.Name!).Where(n => n.StartsWith("TdpMmu.", StringComparison.Ordinal) || n is "tdpmmu")];
        Assert.Subset(MayKnow[room].Select(AssemblyName).ToHashSet(StringComparer.Ordinal), ours.ToHashSet(StringComparer.Ordinal));
    }

    [Theory]
    [MemberData(nameof(Rooms))]
    public void A_room_s_source_names_no_namespace_of_a_room_it_must_not_know(string room)
    {
        string[] forbidden = [.. Namespaces.Where(n => !string.Equals(n.Key, room, StringComparison.Ordinal) && !MayKnow[room].Contains(n.Key, StringComparer.Ordinal)).Select(n => n.Value)];
        foreach (string file in Sources(room))
        {
            string text = File.ReadAllText(file);
            Assert.All(forbidden, ns => Assert.False(Regex.IsMatch(text, $@"^\s*(global\s+)?using\s+(static\s+)?{Regex.Escape(ns)}\b", RegexOptions.Multiline, TimeSpan.FromSeconds(5)), $"{file} uses {ns}"));
        }
    }

    [Theory]
    [MemberData(nameof(PatchableRooms))]
    public void A_room_depends_on_no_package_of_the_command_line(string room)
    {
        string[] allowed = room is "GuestCpu" or "GuestKernel" ? ["Iced"] : [];
        Assert.Subset(allowed.ToHashSet(StringComparer.Ordinal), Elements(room, "PackageReference").ToHashSet(StringComparer.Ordinal));
    }

    [Theory]
    [MemberData(nameof(PatchableRooms))]
    public void Unsafe_code_stays_in_the_two_lowest_rooms(string room)
    {
        bool allowed = XDocument.Load(ProjectFile(room)).Descendants("AllowUnsafeBlocks").Any(e => e.Value is "true");
        Assert.Equal(room is "Sync" or "Platform", allowed);
    }

    [Theory]
    [MemberData(nameof(PatchableRooms))]
    public void A_room_s_files_live_in_its_own_namespace(string room)
    {
        foreach (string file in Sources(room).Where(f => Path.GetFileName(f) is not "GlobalUsings.cs" and not "AssemblyInfo.cs"))
        {
            Match declared = Regex.Match(File.ReadAllText(file), @"^namespace\s+([\w.]+);", RegexOptions.Multiline, TimeSpan.FromSeconds(5));
            Assert.True(declared.Success, $"{file} declares no file-scoped namespace");
            Assert.True(declared.Groups[1].Value == Namespaces[room] || declared.Groups[1].Value.StartsWith(Namespaces[room] + ".", StringComparison.Ordinal), $"{file} declares {declared.Groups[1].Value}");
        }
    }

    private static string ProjectFile(string room) => Repository.Path("src", room, room + ".csproj");

    private static string AssemblyName(string room) => room is "Harness" ? "tdpmmu" : "TdpMmu." + room;

    private static IEnumerable<string> Elements(string room, string element)
        => XDocument.Load(ProjectFile(room)).Descendants(element).Select(e => (string?)e.Attribute("Include") ?? string.Empty);

    private static IEnumerable<string> ProjectReferences(string room)
        => Elements(room, "ProjectReference").Select(p => Path.GetFileNameWithoutExtension(p.Replace('\\', '/')));

    private static IEnumerable<string> Sources(string room)
    {
        string root = Repository.Path("src", room);
        return Directory.EnumerateFiles(root, "*.cs", SearchOption.AllDirectories)
            .Where(f => !f.StartsWith(Path.Combine(root, "obj"), StringComparison.Ordinal) && !f.StartsWith(Path.Combine(root, "bin"), StringComparison.Ordinal));
    }
}
