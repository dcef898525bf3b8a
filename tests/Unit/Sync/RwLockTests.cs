using Tdp.Sync;

namespace Tdp.Tests.Unit.Sync;

public sealed class RwLockTests
{
    [Fact]
    public void A_writer_is_alone_and_readers_are_together()
    {
        var actors = new ActorTable();
        var rw = new RwLock(actors, "mmu_lock");
        long[] value = [0, 0];
        long torn = 0;
        Actor[] all = [.. Enumerable.Range(0, 4).Select(i => actors.Create($"a{i}"))];
        foreach (Actor actor in all)
        {
            actor.Start(me =>
            {
                for (int i = 0; i < 20_000; i++)
                {
                    if ((i + me.Index) % 8 == 0)
                    {
                        rw.EnterWrite(me);
                        value[0]++;
                        value[1]++;
                        rw.ExitWrite(me);
                    }
                    else
                    {
                        rw.EnterRead(me);
                        if (value[0] != value[1])
                            torn++;
                        rw.ExitRead(me);
                    }
                }
            });
        }

        foreach (Actor actor in all)
            actor.Join();
        Assert.Equal(0, torn);
        Assert.Equal(4 * 20_000 / 8, value[0]);
        Assert.Equal(value[0], value[1]);
    }

    [Fact]
    public void A_writer_gets_in_although_readers_never_leave_it_empty()
    {
        var actors = new ActorTable();
        var rw = new RwLock(actors, "mmu_lock");
        var stop = new SharedCell<bool>("stop");
        Actor[] readers = [.. Enumerable.Range(0, 3).Select(i => actors.Create($"r{i}"))];
        foreach (Actor reader in readers)
        {
            reader.Start(me =>
            {
                while (!stop.Read())
                {
                    rw.EnterRead(me);
                    rw.ExitRead(me);
                }
            });
        }

        Actor writer = actors.Create("w");
        for (int i = 0; i < 200; i++)
        {
            rw.EnterWrite(writer);
            rw.ExitWrite(writer);
        }

        stop.Write(true);
        foreach (Actor reader in readers)
            reader.Join();
    }

    [Fact]
    public void A_reader_gets_in_although_writers_follow_each_other()
    {
        var actors = new ActorTable();
        var rw = new RwLock(actors, "mmu_lock");
        var stop = new SharedCell<bool>("stop");
        Actor[] writers = [.. Enumerable.Range(0, 3).Select(i => actors.Create($"w{i}"))];
        foreach (Actor writer in writers)
        {
            writer.Start(me =>
            {
                while (!stop.Read())
                {
                    rw.EnterWrite(me);
                    rw.ExitWrite(me);
                }
            });
        }

        Actor reader = actors.Create("r");
        for (int i = 0; i < 200; i++)
        {
            rw.EnterRead(reader);
            rw.ExitRead(reader);
        }

        stop.Write(true);
        foreach (Actor writer in writers)
            writer.Join();
    }

    [Fact]
    public void The_holder_learns_that_somebody_waits()
    {
        var actors = new ActorTable();
        var rw = new RwLock(actors, "mmu_lock");
        Actor reader = actors.Create("r");
        Actor writer = actors.Create("w");
        rw.EnterRead(reader);
        Assert.False(rw.IsContended());
        writer.Start(me =>
        {
            rw.EnterWrite(me);
            rw.ExitWrite(me);
        });
        var spin = default(Spin);
        while (!rw.IsContended())
            spin.Once(reader, default(ObjectId));
        rw.ExitRead(reader);
        writer.Join();
        Assert.False(rw.IsContended());
    }

    [Fact]
    public void Assertions_name_the_lock_and_the_actor()
    {
        var actors = new ActorTable();
        var rw = new RwLock(actors, "mmu_lock");
        Actor actor = actors.Create("zapper");
        InvalidOperationException e = Assert.Throws<InvalidOperationException>(() => rw.AssertWrite(actor));
        Assert.Contains("mmu_lock", e.Message, StringComparison.Ordinal);
        Assert.Contains("zapper", e.Message, StringComparison.Ordinal);
        rw.EnterRead(actor);
        rw.AssertRead(actor);
        rw.AssertHeld(actor);
        Assert.Throws<InvalidOperationException>(() => rw.AssertWrite(actor));
        Assert.Throws<InvalidOperationException>(() => rw.EnterWrite(actor));
        rw.ExitRead(actor);
        Assert.Throws<InvalidOperationException>(() => rw.AssertHeld(actor));
    }
}
