using System.Threading;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Sync;

public sealed class RcuTests
{
    private sealed class Reclaimer : IRcuReclaimer
    {
        public List<ulong> Taken { get; } = [];

        public void Reclaim(ulong cookie) => Taken.Add(cookie);
    }

    [Fact]
    public void Nothing_is_reclaimed_while_a_reader_that_began_before_is_inside()
    {
        var actors = new ActorTable();
        var rcu = new RcuDomain(actors, "tables");
        Actor reader = actors.Create("reader");
        Actor remover = actors.Create("remover");
        var reclaimer = new Reclaimer();
        rcu.ReadEnter(reader);
        for (ulong i = 0; i < 200; i++)
            rcu.Call(remover, reclaimer, i);
        Assert.Empty(reclaimer.Taken);
        rcu.ReadExit(reader);
        rcu.Barrier(remover);
        Assert.Equal(Enumerable.Range(0, 200).Select(i => (ulong)i), reclaimer.Taken);
        Assert.Equal(0, rcu.Pending);
    }

    [Fact]
    public void Readers_that_began_later_do_not_hold_a_grace_period_up()
    {
        var actors = new ActorTable();
        var rcu = new RcuDomain(actors, "tables");
        Actor reader = actors.Create("reader");
        Actor remover = actors.Create("remover");
        rcu.Synchronize(remover);
        rcu.ReadEnter(reader);
        var reclaimer = new Reclaimer();

        // A second reader section nests and does not restart the first.
        rcu.ReadEnter(reader);
        rcu.ReadExit(reader);
        Assert.True(rcu.IsReading(reader));
        rcu.Call(remover, reclaimer, 1);
        rcu.ReadExit(reader);
        rcu.ReadEnter(reader);
        rcu.ReadExit(reader);
        rcu.Barrier(remover);
        Assert.Equal([1UL], reclaimer.Taken);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 7.2")]
    public void A_remover_that_always_stands_in_its_own_section_still_gets_its_earlier_tables_back()
    {
        var actors = new ActorTable();
        var rcu = new RcuDomain(actors, "tables");
        Actor remover = actors.Create("zapper");
        var reclaimer = new Reclaimer();
        for (ulong i = 0; i < 640; i++)
        {
            if (i % 16 == 0)
                rcu.ReadEnter(remover);
            rcu.Call(remover, reclaimer, i);
            if (i % 16 == 15)
                rcu.ReadExit(remover);
        }

        Assert.InRange(rcu.Pending, 0, 192);
        Assert.Equal(Enumerable.Range(0, 640 - rcu.Pending).Select(i => (ulong)i), reclaimer.Taken);
    }

    [Fact]
    public void Waiting_inside_a_read_section_is_refused()
    {
        var actors = new ActorTable();
        var rcu = new RcuDomain(actors, "tables");
        Actor actor = actors.Create("vcpu0");
        rcu.ReadEnter(actor);
        Assert.Contains("I75", Assert.Throws<InvalidOperationException>(() => rcu.Synchronize(actor)).Message, StringComparison.Ordinal);
        rcu.ReadExit(actor);
        Assert.Throws<InvalidOperationException>(() => rcu.AssertReading(actor));
    }

    [Fact]
    public void A_reader_never_sees_a_word_that_was_taken_back()
    {
        var actors = new ActorTable();
        var rcu = new RcuDomain(actors, "tables");
        var stop = new SharedCell<bool>("stop");
        var published = new SharedCell<int>("published");
        int[] alive = new int[1 << 16];
        alive[0] = 1;
        long seenDead = 0;
        Actor[] readers = [actors.Create("r0"), actors.Create("r1")];
        foreach (Actor reader in readers)
        {
            reader.Start(me =>
            {
                while (!stop.Read())
                {
                    rcu.ReadEnter(me);
                    int index = published.Read();
                    for (int i = 0; i < 16; i++)
                    {
                        if (Volatile.Read(ref alive[index]) == 0)
                            Interlocked.Increment(ref seenDead);
                    }

                    rcu.ReadExit(me);
                }
            });
        }

        Actor writer = actors.Create("writer");
        var killer = new Killer(alive);
        for (int i = 1; i < 20_000; i++)
        {
            Volatile.Write(ref alive[i], 1);
            int old = published.Swap(i);
            rcu.Call(writer, killer, (ulong)old);
        }

        stop.Write(true);
        foreach (Actor reader in readers)
            reader.Join();
        rcu.Barrier(writer);
        Assert.Equal(0, seenDead);
        Assert.Equal(1, alive.Sum());
    }

    private sealed class Killer(int[] alive) : IRcuReclaimer
    {
        public void Reclaim(ulong cookie) => Volatile.Write(ref alive[cookie], 0);
    }
}
