using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>The attribute bitmap against a plain array, and the checks of the ioctl (tdp-mmu 6.10).</summary>
public sealed class AttributeTests
{
    [Fact]
    [Trait("spec", "tdp-mmu 6.10")]
    public void The_bitmap_agrees_with_a_plain_array_over_many_random_ranges()
    {
        using HostBed bed = HostBed.Td();
        MemoryAttributes attributes = bed.Vm.Attributes!;

        // Around the border of two bitmap frames (32768 guest frames each) and of two words.
        const ulong Base = 0x10_0000 - 1000;
        bool[] model = new bool[2000];
        SeedStream random = new(7, "program");
        MemoryAttributes.Cache cache = default;
        for (int round = 0; round < 500; round++)
        {
            ulong from = random.Below(2000);
            ulong count = 1 + random.Below(2000 - from);
            bool isPrivate = random.Chance(0.5);
            GfnRange range = GfnRange.Of(new Gfn(Base + from), count);
            Assert.True(attributes.Reserve(bed.Actor, range));
            attributes.Store(range, isPrivate);
            Array.Fill(model, isPrivate, (int)from, (int)count);
            Assert.True(attributes.IsAll(range, isPrivate));
            ulong probe = random.Below(2000);
            ulong length = 1 + random.Below(2000 - probe);
            bool all = true, none = true;
            for (ulong i = probe; i < probe + length; i++)
            {
                all &= model[i];
                none &= !model[i];
            }

            GfnRange window = GfnRange.Of(new Gfn(Base + probe), length);
            Assert.Equal((all, none, !all && !none), (attributes.IsAll(window, true), attributes.IsAll(window, false), attributes.IsMixed(window)));
            Assert.Equal(model[probe], attributes.IsPrivate(new Gfn(Base + probe), ref cache));
        }

        for (int i = 0; i < model.Length; i++)
            Assert.Equal(model[i], attributes.IsPrivate(new Gfn(Base + (ulong)i)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.10")]
    public void Impossible_ranges_and_attributes_are_refused()
    {
        using HostBed bed = HostBed.Td();
        VmMemory memory = bed.Vm.Memory;
        Assert.Equal(Errno.EINVAL, memory.SetAttributes(bed.Actor, 1, 0x1000, 8));
        Assert.Equal(Errno.EINVAL, memory.SetAttributes(bed.Actor, 0, 0x1001, 8));
        Assert.Equal(Errno.EINVAL, memory.SetAttributes(bed.Actor, 0, 0, 8));
        Assert.Equal(Errno.EINVAL, memory.SetAttributes(bed.Actor, 0, 0x1000, 4));
        Assert.Equal(Errno.EINVAL, memory.SetAttributes(bed.Actor, ulong.MaxValue - 0xFFF, 0x2000, 8));

        // The ioctl does not look at the guest's width or at the alias bit; frames that no address names simply have no attribute.
        (ulong, ulong) before = bed.Vm.Mmu.Invalidation.Peek();
        Assert.Equal(Errno.None, memory.SetAttributes(bed.Actor, 1UL << 47, 0x1000, 8));
        Assert.Equal(Errno.None, memory.SetAttributes(bed.Actor, 1UL << 60, 0x1000, 8));
        Assert.Equal(Errno.None, memory.SetAttributes(bed.Actor, (1UL << 47) - 0x1000, 0x2000, 8));
        Assert.True(bed.Vm.Attributes!.IsPrivate(new Gfn((1UL << 35) - 1)));
        Assert.False(bed.Vm.Attributes.IsPrivate(new Gfn(1UL << 35)));
        Assert.Equal(before, bed.Vm.Mmu.Invalidation.Peek());
        using HostBed vm = HostBed.OrdinaryVm();
        Assert.Equal(Errno.EINVAL, vm.Vm.Memory.SetAttributes(vm.Actor, 0, 0x1000, 8));
        Assert.Equal(Errno.None, vm.Vm.Memory.SetAttributes(vm.Actor, 0, 0x1000, 0));
        Assert.Equal(Errno.EINVAL, vm.Vm.Memory.SetAttributes(vm.Actor, 1, 0x1000, 0));
        bed.TearDown();
        vm.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.10")]
    public void Setting_what_is_set_already_touches_neither_sequence_nor_mappings()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000))));
        (ulong Seq, ulong InProgress) before = bed.Vm.Mmu.Invalidation.Peek();
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x3000, 0x1000, MemoryAttributes.Private));
        Assert.Equal(before, bed.Vm.Mmu.Invalidation.Peek());
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));

        // Without a slot only the store happens.
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x4000_0000, 0x1000, MemoryAttributes.Private));
        Assert.Equal(before, bed.Vm.Mmu.Invalidation.Peek());
        Assert.True(bed.Vm.Attributes!.IsPrivate(new Gfn(0x40000)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I65")]
    public void Mixed_flags_follow_the_attributes_of_every_huge_range()
    {
        using HostBed bed = HostBed.Td();
        SeedStream random = new(3, "program");
        MmuSlot slot = bed.Vm.SlotsOf(0).Active.ById(0)!.Mmu;
        for (int round = 0; round < 60; round++)
        {
            ulong from = random.Below(HostBed.Pages);
            ulong count = random.Chance(0.3) ? HostBed.Pages - from : 1 + random.Below(Math.Min(600, HostBed.Pages - from));
            Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, from << 12, count << 12, random.Chance(0.5) ? 8UL : 0));
            for (ulong block = 0; block < HostBed.Pages; block += 512)
                Assert.Equal(bed.Vm.Attributes!.IsMixed(GfnRange.Of(new Gfn(block), 512)), slot.IsMixed(new Gfn(block), Level.M2));
        }

        bed.TearDown();
    }
}
