using System.Threading;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Sync;

/// <summary>The rules of tdx-module 7.2, row by row, for the counted and for the biased form.</summary>
public sealed class TryLockTests
{
    private const ulong X = TryLock.Exclusive;
    private const ulong Hp = TryLock.HostPriority;
    private const ulong Reader = 4;

    private readonly HazardTable _table = new(4);

    public static TheoryData<LockSide, string, ulong, LockAnswer, ulong> Rules() => new()
    {
        { LockSide.Host, "shared", X, LockAnswer.Busy, X | Hp },
        { LockSide.Host, "shared", 0, LockAnswer.Taken, Reader },
        { LockSide.Host, "shared", Hp, LockAnswer.Taken, Reader },
        { LockSide.Guest, "shared", Hp, LockAnswer.BusyHostPriority, Hp },
        { LockSide.Guest, "shared", X, LockAnswer.Busy, X },
        { LockSide.Guest, "shared", 0, LockAnswer.Taken, Reader },
        { LockSide.Host, "exclusive", 0, LockAnswer.Taken, X },
        { LockSide.Host, "exclusive", Hp, LockAnswer.Taken, X },
        { LockSide.Host, "exclusive", Reader, LockAnswer.Busy, Reader | Hp },
        { LockSide.Host, "exclusive", X, LockAnswer.Busy, X | Hp },
        { LockSide.Guest, "exclusive", Hp, LockAnswer.BusyHostPriority, Hp },
        { LockSide.Guest, "exclusive", Reader, LockAnswer.Busy, Reader },
        { LockSide.Guest, "exclusive", 0, LockAnswer.Taken, X },
    };

    [Theory]
    [MemberData(nameof(Rules))]
    [Trait("spec", "tdx-module 7.2")]
    public void Each_attempt_answers_and_leaves_what_the_table_says(LockSide side, string mode, ulong before, LockAnswer answer, ulong after)
    {
        var block = new WordBlock(0, false, "lock");
        block[0] = before;
        var attempt = new TryLock(ref block[0]);
        HazardSlot slot = _table.Take();
        LockAnswer got = mode == "shared" ? attempt.TryShared(slot, side, out _) : attempt.TryExclusive(slot, side);
        Assert.Equal(answer, got);
        Assert.Equal(after, block[0]);
    }

    [Fact]
    public void A_biased_lock_shares_without_writing_its_word()
    {
        var block = new WordBlock(0, false, "lock");
        block[0] = TryLock.Biased | 0xABCD_0000;
        HazardSlot one = _table.Take();
        HazardSlot two = _table.Take();
        Assert.Equal(LockAnswer.Taken, new TryLock(ref block[0]).TryShared(one, LockSide.Host, out int hold));
        Assert.Equal(TryLock.Biased | 0xABCD_0000, block[0]);
        Assert.Equal(LockAnswer.Busy, new TryLock(ref block[0]).TryExclusive(two, LockSide.Host));
        Assert.Equal(TryLock.Biased | Hp | 0xABCD_0000, block[0]);

        // Host priority is set now: guests step back, the next host clears it.
        Assert.Equal(LockAnswer.BusyHostPriority, new TryLock(ref block[0]).TryShared(two, LockSide.Guest, out _));
        Assert.Equal(LockAnswer.Taken, new TryLock(ref block[0]).TryShared(two, LockSide.Host, out int second));
        Assert.Equal(0UL, block[0] & Hp);
        new TryLock(ref block[0]).ReleaseShared(two, second);
        new TryLock(ref block[0]).ReleaseShared(one, hold);
        Assert.Equal(LockAnswer.Taken, new TryLock(ref block[0]).TryExclusive(two, LockSide.Host));
        Assert.Equal(LockAnswer.Busy, new TryLock(ref block[0]).TryShared(one, LockSide.Guest, out _));
        new TryLock(ref block[0]).ReleaseExclusive(0x1234_0000 | TryLock.Biased);
        Assert.Equal(0x1234_0000UL | TryLock.Biased, block[0]);
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(TryLock.Biased)]
    public void Promotion_needs_the_only_shared_hold(ulong form)
    {
        var block = new WordBlock(0, false, "lock");
        block[0] = form;
        HazardSlot one = _table.Take();
        HazardSlot two = _table.Take();
        new TryLock(ref block[0]).TryShared(one, LockSide.Host, out int a);
        new TryLock(ref block[0]).TryShared(two, LockSide.Host, out int b);
        Assert.Equal(LockAnswer.Busy, new TryLock(ref block[0]).TryPromote(one, a));
        Assert.Equal(Hp, block[0] & Hp);
        new TryLock(ref block[0]).ReleaseShared(two, b);
        Assert.Equal(LockAnswer.Taken, new TryLock(ref block[0]).TryPromote(one, a));
        Assert.Equal(X, block[0] & X);
        new TryLock(ref block[0]).ReleaseExclusive();
        Assert.Equal(form, block[0] & ~Hp);
        Assert.Equal(LockAnswer.Taken, new TryLock(ref block[0]).TryExclusive(two, LockSide.Host));
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(TryLock.Biased)]
    public void Exclusive_and_shared_holders_never_meet(ulong form)
    {
        var actors = new ActorTable();
        var block = new WordBlock(0, true, "lock");
        block[0] = form;
        int inside = 0;
        int met = 0;
        long taken = 0;
        Actor[] all = [.. Enumerable.Range(0, 4).Select(i => actors.Create($"a{i}"))];
        HazardSlot[] slots = [.. all.Select(_ => _table.Take())];
        foreach (Actor actor in all)
        {
            actor.Start(me =>
            {
                for (int i = 0; i < 40_000; i++)
                {
                    if ((i & 7) == me.Index)
                    {
                        if (new TryLock(ref block[0]).TryExclusive(slots[me.Index], LockSide.Host) != LockAnswer.Taken)
                            continue;
                        Interlocked.Increment(ref taken);
                        if (Interlocked.CompareExchange(ref inside, -1, 0) != 0)
                            Interlocked.Increment(ref met);
                        Interlocked.Exchange(ref inside, 0);
                        new TryLock(ref block[0]).ReleaseExclusive();
                    }
                    else if (new TryLock(ref block[0]).TryShared(slots[me.Index], LockSide.Host, out int hold) == LockAnswer.Taken)
                    {
                        if (Interlocked.Increment(ref inside) <= 0)
                            Interlocked.Increment(ref met);
                        Interlocked.Decrement(ref inside);
                        new TryLock(ref block[0]).ReleaseShared(slots[me.Index], hold);
                    }
                }
            });
        }

        foreach (Actor actor in all)
            actor.Join();
        Assert.Equal(0, met);
        Assert.True(taken > 0);
        Assert.Equal(form, block[0] & ~Hp);
    }

    [Fact]
    public void More_shared_holds_than_a_slot_has_room_for_are_counted_in_the_word()
    {
        var block = new WordBlock(0, false, Enumerable.Range(0, 20).Select(i => $"lock{i}").ToArray());
        HazardSlot slot = _table.Take();
        int[] holds = new int[20];
        for (int i = 0; i < 20; i++)
        {
            block[i] = TryLock.Biased;
            Assert.Equal(LockAnswer.Taken, new TryLock(ref block[i]).TryShared(slot, LockSide.Host, out holds[i]));
        }

        HazardSlot other = _table.Take();
        for (int i = 0; i < 20; i++)
            Assert.Equal(LockAnswer.Busy, new TryLock(ref block[i]).TryExclusive(other, LockSide.Guest));
        for (int i = 0; i < 20; i++)
        {
            new TryLock(ref block[i]).ReleaseShared(slot, holds[i]);
            Assert.Equal(TryLock.Biased, block[i]);
        }
    }
}
