using Tdp.Sync;

namespace Tdp.Tests.Recorded.Sync;

/// <summary>Small worlds in every order of their events: what the primitives promise, and that their events are where orders can differ.</summary>
public sealed class PrimitiveOrderTests
{
    [Fact]
    public void A_read_and_a_later_write_can_lose_an_update_and_an_add_cannot()
    {
        var outcomes = new SortedSet<ulong>();
        EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var block = new WordBlock(1, false, "n");
            for (int i = 0; i < 2; i++)
                actors.Create($"a{i}").Start(_ => block.Word(0).Write(block.Word(0).Read() + 1));
            return () => outcomes.Add(block[0]);
        });
        Assert.Equal([1UL, 2UL], outcomes);

        outcomes.Clear();
        EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var block = new WordBlock(1, false, "n");
            for (int i = 0; i < 2; i++)
                actors.Create($"a{i}").Start(_ => block.Word(0).Add(1));
            return () => outcomes.Add(block[0]);
        });
        Assert.Equal([2UL], outcomes);
    }

    [Fact]
    public void A_finding_is_no_event_for_it_is_made_in_the_middle_of_others()
    {
        var recorder = new EventRecorder();
        var log = new Tdp.Platform.FindingLog();
        Hook.Install(null, recorder);
        try
        {
            log.Add("I45", "made inside a reclaimer");
        }
        finally
        {
            Hook.Install(null, null);
        }

        Assert.Equal(1, log.Count);
        Assert.Empty(recorder.Events);
    }

    [Fact]
    public void A_lost_compare_exchange_returns_what_it_found()
    {
        var winners = new SortedSet<int>();
        EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var block = new WordBlock(1, false, "entry");
            int won = 0;
            for (int i = 0; i < 2; i++)
            {
                actors.Create($"a{i}").Start(me =>
                {
                    ulong expected = 0;
                    if (block.Word(0).CompareExchange(ref expected, (ulong)(me.Index + 1)))
                        won += 10 + me.Index;
                    else
                        Assert.Equal(block[0], expected);
                });
            }

            return () => winners.Add(won);
        });
        Assert.Equal([10, 11], winners);
    }

    [Fact]
    public void Readers_and_a_writer_exclude_each_other_in_every_order()
    {
        int orders = EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var rw = new RwLock(actors, "mmu_lock");
            var block = new WordBlock(1, false, "a", "b");
            actors.Create("writer").Start(me =>
            {
                rw.EnterWrite(me);
                block.Word(0).Write(1);
                block.Word(1).Write(1);
                rw.ExitWrite(me);
            });
            actors.Create("reader").Start(me =>
            {
                rw.EnterRead(me);
                ulong a = block.Word(0).Read();
                Assert.Equal(a, block.Word(1).Read());
                rw.ExitRead(me);
            });
            return () => { };
        });
        Assert.InRange(orders, 3, 1000);
    }

    [Fact]
    [Trait("spec", "R20")]
    public void A_vcpu_that_enters_while_the_flag_is_set_is_waited_for_or_does_not_enter()
    {
        int entered = 0;
        int refused = 0;
        EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var kick = new Kick("vcpu", 0);
            var flag = new SharedCell<bool>("wait_for_sept_zap");
            var inside = new SharedCell<bool>("inside");
            actors.Create("vcpu0").Start(me =>
            {
                kick.BeginEntry(me);
                if (!kick.IsEntryForbidden() && !flag.Read())
                {
                    entered++;
                    inside.Write(true);
                    inside.Write(false);
                }
                else
                {
                    refused++;
                }

                kick.EndGuest(me);
            });
            actors.Create("zapper").Start(me =>
            {
                flag.Write(true);
                ulong ticket = kick.Send(me, wait: true);
                if (ticket != 0)
                    kick.AwaitAck(me, ticket);
                Assert.False(inside.Read());
                flag.Write(false);
            });
            return () => { };
        });
        Assert.True(entered > 0 && refused > 0, $"{entered} entered, {refused} refused");
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(TryLock.Biased)]
    [Trait("spec", "D28")]
    public void Each_try_is_one_event_with_exactly_one_winner(ulong form)
    {
        EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var hazards = new HazardTable(2);
            var block = new WordBlock(1, false, "lock");
            block[0] = form;
            int won = 0;
            HazardSlot[] slots = [hazards.Take(), hazards.Take()];
            actors.Create("shared").Start(me =>
            {
                if (new TryLock(ref block[0]).TryShared(slots[0], LockSide.Host, out _) == LockAnswer.Taken)
                    won++;
            });
            actors.Create("exclusive").Start(me =>
            {
                if (new TryLock(ref block[0]).TryExclusive(slots[1], LockSide.Host) == LockAnswer.Taken)
                    won++;
            });
            return () => Assert.Equal(1, won);
        });
    }

    [Fact]
    [Trait("spec", "I45")]
    public void Memory_is_taken_back_only_when_no_reader_from_before_is_inside()
    {
        EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var rcu = new RcuDomain(actors, "tables");
            var block = new WordBlock(1, false, "pointer", "content");
            block[0] = 1;
            block[1] = 1;
            actors.Create("reader").Start(me =>
            {
                rcu.ReadEnter(me);
                if (block.Word(0).Read() == 1)
                    Assert.Equal(1UL, block.Word(1).Read());
                rcu.ReadExit(me);
            });
            actors.Create("remover").Start(me =>
            {
                block.Word(0).Write(0);
                rcu.Synchronize(me);
                block.Word(1).Write(0xDEAD);
            });
            return () => { };
        });
    }

    [Fact]
    public void A_sleeper_that_nobody_wakes_is_a_deadlock()
    {
        InvalidOperationException e = Assert.Throws<InvalidOperationException>(() => EveryOrder.Run(() =>
        {
            var actors = new ActorTable();
            var mutex = new Tdp.Sync.Mutex("slots_lock");
            actors.Create("a").Start(me => mutex.Enter(me));
            actors.Create("b").Start(me => mutex.Enter(me));
            return () => { };
        }));
        Assert.Contains("deadlock", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_recorder_keeps_kind_object_site_and_values_in_order()
    {
        Assert.True(Explore.On);
        var recorder = new EventRecorder();
        var actors = new ActorTable();
        Actor actor = actors.Create("vcpu0");
        var rw = new RwLock(actors, "mmu_lock");
        var block = new WordBlock(3, false, "spte");
        Hook.Install(null, recorder);
        try
        {
            rw.EnterRead(actor);
            ulong expected = 5;
            block.Word(0).CompareExchange(ref expected, 9);
            block.Word(0).CompareExchange(ref expected, 9, "Freeze");
            rw.ExitRead(actor);
        }
        finally
        {
            Hook.Install(null, null);
        }

        const string Here = nameof(The_recorder_keeps_kind_object_site_and_values_in_order);
        var spte = ObjectId.Cell("spte", 3);
        var gate = ObjectId.Lock("mmu_lock");
        Assert.Equal(
            [
                new SyncEvent(EventKind.LockShared, gate, Here, actor, false, 0, 0),
                new SyncEvent(EventKind.Update, spte, Here, null, false, 0, 0),
                new SyncEvent(EventKind.Update, spte, "Freeze", null, true, 0, 9),
                new SyncEvent(EventKind.LockRelease, gate, Here, actor, false, 0, 0),
            ],
            recorder.Events);
    }
}
