using System.IO;
using Tdp.Host;
using Tdp.Kernel;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.EndToEnd.Guests;

/// <summary>A correct host gives the guest the same results whatever the TLB keeps, however wide addresses are, and whichever profile the module follows.</summary>
public sealed class ConfigurationTests
{
    private const ulong Ram = 16 << 20;

    public static TheoryData<string, TlbMode, bool, bool, bool> Configurations()
    {
        TheoryData<string, TlbMode, bool, bool, bool> data = [];
        foreach (string sample in (string[])["convert", "mmio"])
        {
            data.Add(sample, TlbMode.Precise, false, false, false);
            data.Add(sample, TlbMode.Off, false, false, true);
            data.Add(sample, TlbMode.Adversarial, false, false, false);
            data.Add(sample, TlbMode.Adversarial, true, false, true);
            data.Add(sample, TlbMode.Precise, true, true, false);
            data.Add(sample, TlbMode.Precise, false, true, true);
        }

        return data;
    }

    [Theory]
    [MemberData(nameof(Configurations))]
    [Trait("spec", "D08")]
    [Trait("spec", "B05")]
    public void A_td_prints_the_same_in_every_configuration(string sample, TlbMode tlb, bool isFiveLevel, bool asTdx15, bool isLazy)
    {
        GuestImage image = GuestImage.Build(
            ElfImage.Parse(File.ReadAllBytes(Tool.Sample(sample + ".elf"))),
            new GuestBootOptions
            {
                IsTd = true,
                VcpuCount = 2,
                RamBytes = Ram,
                LazyAccept = isLazy,
                PendingVeDisable = asTdx15,
                AliasBit = isFiveLevel ? 51 : 47,
                GpaWidth = isFiveLevel ? 52 : 48,
            });
        using HostWorld world = HostWorld.Boot(new HostWorldOptions
        {
            Machine = MachineDescription.Default(2, Ram),
            TlbMode = tlb,
            Profile = asTdx15 ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented,
        });
        Vmm vmm = new(world, new VmmOptions { Image = image, IsFiveLevel = isFiveLevel });
        vmm.Build();
        vmm.Run();
        RunReport report = vmm.TearDown();
        Assert.True(report.Outcome == RunOutcome.Exited, $"{report.Outcome}: {report.Message}\n{vmm.Devices.OutputText}");
        string special = Tool.Sample(sample + ".td.expected.txt");
        string expected = File.ReadAllText(File.Exists(special) ? special : Tool.Sample(sample + ".expected.txt"));
        Assert.Equal(expected, vmm.Devices.OutputText);
        Assert.True(report.IsClean, string.Join('\n', report.Findings));
    }

    [Fact]
    [Trait("spec", "tdx-module 9.1")]
    public void The_measurement_depends_on_the_image_and_on_nothing_else()
    {
        byte[] first = Measure("hello", 1), again = Measure("hello", 7), other = Measure("mmio", 1);
        Assert.Equal(48, first.Length);
        Assert.Equal(first, again);
        Assert.NotEqual(first, other);
        Assert.Contains(first, b => b != 0);
    }

    private static byte[] Measure(string sample, ulong seed)
    {
        GuestImage image = GuestImage.Build(
            ElfImage.Parse(File.ReadAllBytes(Tool.Sample(sample + ".elf"))),
            new GuestBootOptions { IsTd = true, VcpuCount = 1, RamBytes = Ram, LazyAccept = true });
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, Ram), Seed = seed });
        Vmm vmm = new(world, new VmmOptions { Image = image });
        vmm.Build();
        vmm.Run();
        return vmm.TearDown().Mrtd.ToArray();
    }
}
