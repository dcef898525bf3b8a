namespace Tdp.Tests.Exploration;

/// <summary>The benchmark model of the explorer's design: three actors, twenty accesses each, on three words and one more for the seeded bug (race-explorer, annex A).</summary>
internal static class M60
{
    public static Litmus Of(string bug) => Litmus.Of($"M60 {bug}", w =>
    {
        SharedCell<long>[] words = [w.Cell("w0"), w.Cell("w1"), w.Cell("w2"), w.Cell("w3")];
        long first = 0;
        bool hit = false;
        w.OnReset(() => hit = false);
        for (int t = 0; t < 3; t++)
        {
            int thread = t;
            w.Actor($"T{t}", _ =>
            {
                long x = 0;
                for (int s = 0; s < 20; s++)
                {
                    SharedCell<long> word = words[((s / 2) + thread) % 3];
                    switch (bug, thread, s)
                    {
                        case ("N2" or "N3", 0, 10):
                            first = words[3].Read();
                            break;
                        case ("N2" or "N3", 0, 11):
                            long second = words[3].Read();
                            hit = first == 0 && second == (bug == "N2" ? 1 : 2);
                            break;
                        case ("N2" or "N3", 1, 5):
                            words[3].CompareExchange(0, 1);
                            break;
                        case ("N3", 2, 15):
                            words[3].CompareExchange(1, 2);
                            break;
                        case ("W2" or "W3", 0, 10):
                            words[3].CompareExchange(0, 1);
                            break;
                        case ("W2" or "W3", 0, 11):
                            hit = words[3].Read() == (bug == "W2" ? 3 : 5);
                            break;
                        case ("W2" or "W3", 1, 3):
                            words[3].CompareExchange(1, 2);
                            break;
                        case ("W2", 1, 17):
                            words[3].CompareExchange(2, 3);
                            break;
                        case ("W3", 1, 4):
                            words[3].CompareExchange(4, 5);
                            break;
                        case ("W3", 2, 3):
                            words[3].CompareExchange(2, 3);
                            break;
                        case ("W3", 2, 15):
                            words[3].CompareExchange(3, 4);
                            break;
                        default:
                            if (s % 2 == 0)
                                x = word.Read();
                            else
                                word.CompareExchange(x, x + 1);
                            break;
                    }
                }
            });
        }

        w.Check(() => hit ? bug : null);
    });
}
