using Tdp.Sync;

namespace Tdp.Tests.Unit.Sync;

public sealed class KickTests
{
    [Fact]
    public void A_target_outside_needs_no_wait_and_one_inside_acknowledges_when_it_leaves()
    {
        var actors = new ActorTable();
        Actor vcpu = actors.Create("vcpu0");
        Actor zapper = actors.Create("zapper");
        var kick = new Kick("vcpu", 0);
        Assert.Equal(0UL, kick.Send(zapper, wait: true));
        kick.BeginEntry(vcpu);
        Assert.False(kick.ShouldExit);
        ulong ticket = kick.Send(zapper, wait: true);
        Assert.NotEqual(0UL, ticket);
        Assert.True(kick.ShouldExit);
        Assert.True(kick.IsEntryForbidden());
        kick.EndGuest(vcpu);
        kick.AwaitAck(zapper, ticket);
        Assert.Equal(TargetMode.Outside, kick.Mode);
    }

    [Fact]
    [Trait("spec", "D16")]
    public void The_wait_is_over_although_the_target_is_inside_again()
    {
        var actors = new ActorTable();
        Actor vcpu = actors.Create("vcpu0");
        var kick = new Kick("vcpu", 0);
        kick.BeginEntry(vcpu);
        ulong ticket = kick.Send(null, wait: true);
        kick.EndGuest(vcpu);
        kick.BeginEntry(vcpu);
        kick.AwaitAck(null, ticket);
        Assert.Equal(TargetMode.Inside, kick.Mode);
    }

    [Fact]
    public void A_request_is_seen_before_the_next_entry()
    {
        var actors = new ActorTable();
        Actor vcpu = actors.Create("vcpu0");
        var kick = new Kick("vcpu", 0);
        kick.Post(null, 31);
        kick.BeginEntry(vcpu);
        Assert.True(kick.IsEntryForbidden());
        Assert.True(kick.TakeRequest(vcpu, 31));
        Assert.False(kick.TakeRequest(vcpu, 31));
        kick.EndGuest(vcpu);
        kick.BeginEntry(vcpu);
        Assert.False(kick.IsEntryForbidden());
    }

    [Fact]
    [Trait("spec", "R20")]
    public void After_a_waiting_kick_the_target_was_outside_and_sees_what_was_written_before()
    {
        var actors = new ActorTable();
        var kick = new Kick("vcpu", 0);
        var flag = new SharedCell<bool>("wait_for_sept_zap");
        var stop = new SharedCell<bool>("stop");
        var inside = new SharedCell<bool>("inside");
        Actor vcpu = actors.Create("vcpu0");
        Actor zapper = actors.Create("zapper");
        vcpu.Start(me =>
        {
            while (!stop.Read())
            {
                kick.BeginEntry(me);
                if (!kick.IsEntryForbidden() && !flag.Read())
                {
                    inside.Write(true);
                    for (int i = 0; i < 50 && !kick.ShouldExit; i++)
                    {
                    }

                    inside.Write(false);
                }

                kick.EndGuest(me);
            }
        });
        int caught = 0;
        for (int i = 0; i < 20_000; i++)
        {
            flag.Write(true);
            ulong ticket = kick.Send(zapper, wait: true);
            if (ticket != 0)
                kick.AwaitAck(zapper, ticket);

            // Between the acknowledgement and clearing the flag the vCPU can be nowhere inside.
            if (inside.Read())
                caught++;
            flag.Write(false);
        }

        stop.Write(true);
        vcpu.Join();
        Assert.Equal(0, caught);
    }
}
