using System.Security.Cryptography;
using Tdp.Harness.Running;
using Tdp.Host;
using Tdp.Kernel;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.GuestKernel;

namespace Tdp.Tests.Unit.Harness;

/// <summary>MRTD from the image alone, against a second computation from tdx-module 9.1 and against a TD that was really built.</summary>
public sealed class MeasureTests
{
    private const ulong Ram = 8 << 20;

    [Theory]
    [InlineData(1, true)]
    [InlineData(2, false)]
    [Trait("spec", "TC67")]
    public void The_measurement_equals_an_independent_one_and_that_of_a_built_TD(int vcpus, bool lazy)
    {
        GuestImage image = GuestImage.Build(
            ElfImage.Parse(new ElfBytes().ToArray()),
            new GuestBootOptions { IsTd = true, VcpuCount = vcpus, RamBytes = Ram, LazyAccept = lazy, Seed = 5 });
        byte[] measured = MeasureVerb.Measure(image, null);
        Assert.Equal(Independent(image), measured);

        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(vcpus, Ram) });
        Vmm vmm = new(world, new VmmOptions { Image = image });
        vmm.Build();
        Hpa tdr = vmm.Vm.Td!.Tdr;
        Assert.Equal(measured, world.Module!.Td(tdr)!.Mrtd);

        // What TDH.MNG.RD shows: six words of eight bytes.
        byte[] read = new byte[48];
        for (int i = 0; i < 6; i++)
        {
            SeamRegisters registers = SeamRegisters.Call(TdhLeaf.MNG_RD, tdr.Value, 0x1310000300000000 + (ulong)i);
            world.Module.Seamcall(world.Machine.Processors[world.Machine.Processors.Count - 1], ref registers);
            Assert.Equal(TdxStatus.SUCCESS, registers.Status);
            BitConverter.TryWriteBytes(read.AsSpan(i * 8), registers.R8);
        }

        Assert.Equal(measured, read);
        vmm.TearDown();
    }

    [Fact]
    public void The_steps_end_with_the_measurement()
    {
        GuestImage image = GuestImage.Build(ElfImage.Parse(new ElfBytes().ToArray()), new GuestBootOptions { IsTd = true, VcpuCount = 1, RamBytes = Ram, LazyAccept = true });
        List<MeasuredStep> steps = [];
        byte[] mrtd = MeasureVerb.Measure(image, steps);
        Assert.Equal(17 * image.Segments.Sum(s => s.Pages), steps.Count);
        Assert.Equal(Convert.ToHexStringLower(mrtd), steps[^1].Digest);
        Assert.Equal(("PAGE.ADD", $"0x{image.Segments[0].Gpa:x}"), (steps[0].Call, steps[0].Gpa));
    }

    // By hand: one long buffer, hashed at once.
    private static byte[] Independent(GuestImage image)
    {
        List<byte> all = [];
        void Record(string name, ulong gpa)
        {
            byte[] record = new byte[128];
            for (int i = 0; i < name.Length; i++)
                record[i] = (byte)name[i];
            for (int i = 0; i < 8; i++)
                record[16 + i] = (byte)(gpa >> (8 * i));
            all.AddRange(record);
        }

        foreach (ImageSegment segment in image.Segments)
        {
            for (ulong offset = 0; offset < segment.MemoryBytes; offset += 4096)
            {
                Record("MEM.PAGE.ADD", segment.Gpa + offset);
                for (ulong at = offset; at < offset + 4096; at += 256)
                {
                    Record("MR.EXTEND", segment.Gpa + at);
                    for (ulong i = at; i < at + 256; i++)
                        all.Add(i < (ulong)segment.Bytes.Length ? segment.Bytes.Span[(int)i] : (byte)0);
                }
            }
        }

        return SHA384.HashData(all.ToArray());
    }
}
