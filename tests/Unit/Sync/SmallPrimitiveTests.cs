using Tdp.Sync;

namespace Tdp.Tests.Unit.Sync;

public sealed class SmallPrimitiveTests
{
    private readonly ActorTable _actors = new();

    private enum Colour : byte
    {
        Red,
        Green = 7,
    }

    [Fact]
    public void A_cell_keeps_values_of_every_size()
    {
        var flag = new SharedCell<bool>("f", initial: true);
        Assert.True(flag.Swap(false));
        Assert.False(flag.Read());
        var colour = new SharedCell<Colour>("c");
        Assert.Equal(Colour.Red, colour.CompareExchange(Colour.Red, Colour.Green));
        Assert.Equal(Colour.Green, colour.CompareExchange(Colour.Red, Colour.Red));
        var negative = new SharedCell<int>("n", initial: -1);
        Assert.Equal(-1, negative.Read());
        Assert.Throws<ArgumentException>(() => new SharedCell<decimal>("d"));
    }

    [Fact]
    [Trait("spec", "D29")]
    public void A_block_of_words_names_no_address_far_away_from_it()
    {
        IWordResolver block = new WordBlock(1, separateLines: false, "only");
        for (ulong address = 0; address < 1UL << 47; address += 1UL << 34)
            Assert.False(block.TryResolve((nuint)address, out _));
    }

    [Fact]
    public void A_count_at_zero_cannot_be_taken_again()
    {
        var count = new RefCount("root", 0, 2);
        Assert.True(count.IncUnlessZero());
        Assert.False(count.Dec());
        Assert.False(count.Dec());
        Assert.True(count.Dec());
        Assert.False(count.IncUnlessZero());
        Assert.Throws<InvalidOperationException>(() => count.Dec());
        Assert.Throws<InvalidOperationException>(() => count.Inc());
    }

    [Fact]
    [Trait("spec", "I55")]
    public void The_sequence_moves_when_the_change_ends_and_an_end_without_a_begin_is_refused()
    {
        Actor actor = _actors.Create("a");
        var seq = new SeqCount("mmu_invalidate");
        ulong before = seq.Snapshot();
        seq.Begin(actor);
        Assert.Equal(before, seq.Snapshot());
        Assert.Equal(1UL, seq.InProgress());
        seq.End(actor);
        Assert.Equal((before + 1, 0UL), seq.Peek());
        Assert.Throws<InvalidOperationException>(() => seq.End(actor));
    }

    [Fact]
    public void Who_sees_the_count_gone_sees_the_new_sequence()
    {
        Actor writer = _actors.Create("writer");
        var seq = new SeqCount("mmu_invalidate");
        Actor reader = _actors.Create("reader");
        var stop = new SharedCell<bool>("stop");
        long wrong = 0;
        writer.Start(me =>
        {
            for (int i = 0; i < 200_000; i++)
            {
                seq.Begin(me);
                seq.End(me);
            }

            stop.Write(true);
        });
        reader.Start(_ =>
        {
            while (!stop.Read())
            {
                ulong before = seq.Snapshot();
                if (seq.InProgress() == 0)
                    continue;
                ulong spins = 0;
                while (seq.InProgress() != 0 && spins++ < 1000)
                {
                }

                Fence.LoadLoad();
                if (spins < 1000 && seq.Snapshot() == before && seq.InProgress() == 0)
                    wrong++;
            }
        });
        writer.Join();
        reader.Join();
        Assert.Equal(0, wrong);
    }

    [Fact]
    public void Sleepers_wake_when_the_condition_holds()
    {
        var ready = new SharedCell<int>("ready");
        var wait = new WaitFor("ready");
        Actor[] sleepers = [_actors.Create("s0"), _actors.Create("s1")];
        foreach (Actor sleeper in sleepers)
        {
            sleeper.Start(me =>
            {
                for (int round = 1; round <= 500; round++)
                {
                    int target = round;
                    wait.Until(me, () => ready.Peek() >= target);
                }
            });
        }

        for (int round = 1; round <= 500; round++)
        {
            ready.Write(round);
            wait.Wake();
        }

        foreach (Actor sleeper in sleepers)
            sleeper.Join();
    }

    [Fact]
    public void What_an_actor_throws_is_thrown_by_Join()
    {
        Actor actor = _actors.Create("bad");
        actor.Start(_ => throw new InvalidOperationException("from inside"));
        Assert.Equal("from inside", Assert.Throws<InvalidOperationException>(() => actor.Join()).Message);
        actor.Join();
    }

    [Fact]
    public void A_world_has_room_for_the_actors_it_promises_and_slots_are_reused()
    {
        var table = new ActorTable();
        Actor[] all = [.. Enumerable.Range(0, Actor.Max).Select(i => table.Create($"a{i}"))];
        Assert.Throws<InvalidOperationException>(() => table.Create("one too many"));
        all[5].Retire();
        Assert.Equal(5, table.Create("again").Index);
        Assert.Equal(Actor.Max, table.HighWater);
    }

    [Fact]
    [Trait("spec", "D14")]
    public void Frame_names_of_one_actor_do_not_depend_on_another()
    {
        Actor a = _actors.Create("a");
        Actor b = _actors.Create("b");
        ulong first = a.NextFrameName();
        b.NextFrameName();
        Assert.Equal(first + 1, a.NextFrameName());
    }

    [Fact]
    public void Counters_sum_over_actors()
    {
        var counters = new ActorCounters(20);
        Actor[] all = [.. Enumerable.Range(0, 4).Select(i => _actors.Create($"c{i}"))];
        foreach (Actor actor in all)
        {
            actor.Start(me =>
            {
                for (int i = 0; i < 100_000; i++)
                    counters.Add(me, 19);
            });
        }

        foreach (Actor actor in all)
            actor.Join();
        Assert.Equal(400_000, counters.Sum(19));
        Assert.Equal(100_000, counters.Of(all[2], 19));
        Assert.Equal(0, counters.Sum(18));
    }

    [Fact]
    public void A_cache_takes_what_it_was_topped_up_for_and_gives_back_what_it_has_no_room_for()
    {
        var pool = new Pool<int>("frames");
        for (int i = 0; i < 10; i++)
            pool.Give(i);
        var cache = new ActorCache<int>(pool, 4);
        Assert.True(cache.TopUp(3));
        int[] taken = [cache.Take(), cache.Take(), cache.Take(), cache.Take()];
        Assert.Throws<InvalidOperationException>(() => cache.Take());
        Assert.True(cache.TopUp(4));
        foreach (int item in taken)
            cache.Give(item);
        Assert.Equal(6, pool.Count);
        cache.Drain();
        Assert.Equal(10, pool.Count);
        var greedy = new ActorCache<int>(pool, 40);
        Assert.False(greedy.TopUp(11));
    }

    [Fact]
    public void Spin_and_mutex_exclude_and_refuse_a_second_entry()
    {
        var spin = new Tdp.Sync.SpinLock("tdp_mmu_pages_lock");
        var mutex = new Tdp.Sync.Mutex("slots_lock");
        long a = 0;
        long b = 0;
        Actor[] all = [.. Enumerable.Range(0, 3).Select(i => _actors.Create($"m{i}"))];
        foreach (Actor actor in all)
        {
            actor.Start(me =>
            {
                for (int i = 0; i < 20_000; i++)
                {
                    spin.Enter(me);
                    a++;
                    spin.Exit(me);
                    mutex.Enter(me);
                    b++;
                    mutex.Exit(me);
                }
            });
        }

        foreach (Actor actor in all)
            actor.Join();
        Assert.Equal(60_000, a);
        Assert.Equal(60_000, b);
        mutex.Enter(all[0]);
        Assert.Throws<InvalidOperationException>(() => mutex.Enter(all[0]));
        Assert.Throws<InvalidOperationException>(() => spin.AssertHeld(all[0]));
    }

    [Fact]
    public void Sub_word_accesses_touch_only_their_bytes()
    {
        var block = new WordBlock(0, false, "word");
        block[0] = 0x1122334455667788;
        ref byte bytes = ref System.Runtime.CompilerServices.Unsafe.As<ulong, byte>(ref block[0]);
        new AtomicScalar<ushort>(ref System.Runtime.CompilerServices.Unsafe.As<byte, ushort>(ref System.Runtime.CompilerServices.Unsafe.Add(ref bytes, 2))).Write(0xABCD);
        Assert.Equal(0x11223344ABCD7788UL, block[0]);
        byte expected = 0x88;
        Assert.True(new AtomicScalar<byte>(ref bytes).CompareExchange(ref expected, 0x99));
        Assert.False(new AtomicScalar<byte>(ref bytes).CompareExchange(ref expected, 0));
        Assert.Equal(0x99, expected);
        Assert.Equal(0x11223344ABCD7799UL, block[0]);
    }

    [Fact]
    public void Hooks_cannot_be_installed_in_a_process_that_runs_free()
    {
        Assert.False(Explore.On);
        Assert.Throws<InvalidOperationException>(() => Hook.Install(null, new EventRecorder()));
    }
}
