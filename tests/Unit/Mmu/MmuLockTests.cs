using Tdp.Sync;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>mmu_lock under real threads: readers drop their fence when no writer comes, and exclusion must survive every change of that kind.</summary>
public sealed class MmuLockTests
{
    [Fact]
    [Trait("spec", "I14")]
    public void No_reader_is_inside_while_a_writer_is_whether_readers_fence_or_not()
    {
        const int Bursts = 40;
        const int PagesOfQuiet = 20;
        var actors = new ActorTable();
        var rwlock = new RwLock(actors, "test");
        var stop = new SharedCell<bool>("stop");
        SharedCell<long>[] thousands = [new("progress", 0), new("progress", 1)];
        long[] torn = new long[2];
        long left = 0;
        long right = 0;
        Actor[] readers = [actors.Create("reader0"), actors.Create("reader1")];
        for (int r = 0; r < readers.Length; r++)
        {
            int number = r;
            readers[r].Start(actor =>
            {
                for (long i = 0; !stop.Peek(); i++)
                {
                    rwlock.EnterRead(actor);
                    if (left != right)
                        torn[number]++;
                    rwlock.ExitRead(actor);
                    if ((i & 1023) == 0)
                        thousands[number].Write(i >> 10);
                }
            });
        }

        // Bursts of writers: the first of a burst meets readers that do not fence, the later ones meet readers that do. Between bursts the readers go on long enough to stop.
        Actor writer = actors.Create("writer");
        for (int burst = 0; burst < Bursts; burst++)
        {
            for (int i = 0; i < 3; i++)
            {
                rwlock.EnterWrite(writer);
                left++;
                right++;
                rwlock.ExitWrite(writer);
            }

            var spin = default(Spin);
            long[] start = [thousands[0].Peek(), thousands[1].Peek()];
            while (thousands[0].Peek() < start[0] + PagesOfQuiet || thousands[1].Peek() < start[1] + PagesOfQuiet)
                spin.Once(writer, default);
        }

        stop.Write(true);
        foreach (Actor reader in readers)
            reader.Join();
        Assert.Equal([0, 0], torn);
        Assert.Equal(3 * Bursts, left);
        Assert.Equal(left, right);
    }

    [Fact]
    public void A_writer_that_waits_makes_the_lock_contended()
    {
        var actors = new ActorTable();
        var rwlock = new RwLock(actors, "test");
        Actor reader = actors.Create("reader");
        Actor writer = actors.Create("writer");
        rwlock.EnterRead(reader);
        Assert.False(rwlock.IsContended());
        writer.Start(actor =>
        {
            rwlock.EnterWrite(actor);
            rwlock.ExitWrite(actor);
        });
        var spin = default(Spin);
        while (!rwlock.IsContended())
            spin.Once(reader, default);
        rwlock.ExitRead(reader);
        writer.Join();
        Assert.False(rwlock.IsContended());
        rwlock.EnterRead(reader);
        Assert.True(rwlock.IsReadHeld(reader));
        rwlock.ExitRead(reader);
    }
}
