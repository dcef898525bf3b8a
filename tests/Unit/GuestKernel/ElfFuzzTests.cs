using Tdp.Kernel;

namespace Tdp.Tests.Unit.GuestKernel;

/// <summary>Random damage. Whatever the bytes are, the loader answers with an image or with its one exception, and what it accepts keeps its promises.</summary>
public sealed class ElfFuzzTests
{
    private const int FilesPerSeed = 4000;
    private static readonly ulong[] s_values = [0, 1, 2, 3, 0x3F, 0x40, 0x1000, 0x10_0000, 0x40_0000, int.MaxValue, 0x8000_0000, uint.MaxValue, long.MaxValue, 1UL << 63, ulong.MaxValue - 0xFFF, ulong.MaxValue];

    [Theory]
    [InlineData(1, false)]
    [InlineData(2, false)]
    [InlineData(3, true)]
    [InlineData(4, true)]
    public void Random_damage_never_escapes_the_loader(ulong seed, bool realFile)
    {
        byte[] whole = realFile ? ElfBytes.Sample("mmio.elf") : new ElfBytes().ToArray();
        GuestBootOptions options = new() { IsTd = true, VcpuCount = 2, RamBytes = 8 << 20 };
        int accepted = 0;
        for (int i = 0; i < FilesPerSeed; i++)
        {
            byte[] file = Damage(whole, ref seed);
            try
            {
                ElfImage image = ElfImage.Parse(file);
                CheckPromises(image);
                accepted++;

                // Building assembles the kernel each time; a sample of the accepted files is enough for the placement checks.
                if (accepted % 16 == 0)
                    GuestImage.Build(image, options);
            }
            catch (ElfFormatException error)
            {
                Assert.NotEmpty(error.Message);
                Assert.DoesNotContain('\n', error.Message);
            }
        }
        Assert.InRange(accepted, 1, FilesPerSeed - 1);
    }

    private static void CheckPromises(ElfImage image)
    {
        ulong end = 0;
        bool entryInside = false;
        foreach (ElfSegment segment in image.Segments)
        {
            Assert.True(segment.Address >= end, "segments overlap");
            Assert.True(segment.End > segment.Address, "a segment wraps");
            Assert.True((ulong)segment.FileBytes.Length <= segment.MemoryBytes, "more bytes in the file than in memory");
            entryInside |= segment.IsExecutable && image.Entry >= segment.Address && image.Entry - segment.Address < (ulong)segment.FileBytes.Length;
            end = segment.End;
        }
        Assert.True(entryInside, "the entry is not in the code");
    }

    private static byte[] Damage(byte[] whole, ref ulong seed)
    {
        byte[] file = [.. whole];
        int headers = Math.Min(file.Length, 64 + (3 * 56));
        for (int n = (int)(Next(ref seed) % 4); n >= 0; n--)
        {
            ulong kind = Next(ref seed) % 8;
            int range = kind < 6 ? headers : file.Length;
            int at = (int)(Next(ref seed) % (ulong)range);
            ulong value = Next(ref seed) % 3 == 0 ? Next(ref seed) : s_values[Next(ref seed) % (ulong)s_values.Length];
            int width = 1 << (int)(Next(ref seed) % 4);
            at = at / width * width;
            for (int b = 0; b < width && at + b < file.Length; b++)
                file[at + b] = (byte)(value >> (8 * b));
        }
        return Next(ref seed) % 8 == 0 ? file[..(int)(Next(ref seed) % (ulong)file.Length)] : file;
    }

    private static ulong Next(ref ulong state)
    {
        state += 0x9E37_79B9_7F4A_7C15;
        ulong z = state;
        z = (z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9;
        z = (z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB;
        return z ^ (z >> 31);
    }
}
