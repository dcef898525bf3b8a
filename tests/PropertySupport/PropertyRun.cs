using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Reflection;
using System.Runtime.CompilerServices;
using FsCheck.Fluent;
using Microsoft.FSharp.Core;
using Xunit.Abstractions;

namespace FsCheck.Xunit;

/// <summary>One run of one property with the options that hold for it: the part that does not know how xunit discovers and schedules tests.</summary>
public static class PropertyRun
{
    /// <summary>The environment variable whose triple <c>(seed,gamma,size)</c> overrides every <see cref="PropertyAttribute.Replay"/>.</summary>
    public const string ReplayVariable = "TDPMMU_REPLAY";

    /// <summary>Runs a property with the attributes found on the method, its class and its assembly.</summary>
    /// <param name="method">The property.</param>
    /// <param name="target">The instance, or <see langword="null"/> for a static method.</param>
    /// <param name="output">Receives the report when the property holds.</param>
    /// <param name="replay">Repeats one run; <see langword="null"/> takes <see cref="ReplayVariable"/>, then the attribute.</param>
    /// <exception cref="PropertyFailedException">The property does not hold, or no case met its conditions.</exception>
    public static void Execute(MethodInfo method, object? target, ITestOutputHelper output, string? replay = null)
    {
        ArgumentNullException.ThrowIfNull(method);
        ArgumentNullException.ThrowIfNull(output);
        var layers = Layers(method);
        replay ??= Environment.GetEnvironmentVariable(ReplayVariable) is { Length: > 0 } fromEnvironment ? fromEnvironment : layers.Select(l => l.Replay).FirstOrDefault(r => r is not null);
        var collector = new Collector(output, layers.Any(l => l.Verbose));
        Check.Method(Configure(layers, replay).WithRunner(collector), method, target is null ? FSharpOption<object>.None : FSharpOption<object>.Some(target));
        switch (collector.Result)
        {
            case TestResult.Passed passed:
                if (!layers.Any(l => l.QuietOnSuccess))
                {
                    output.WriteLine(Runner.onFinishedToString(string.Empty, passed));
                }

                break;
            case TestResult.Failed failed:
                string triple = Triple(failed.Item6, failed.Item7);
                throw new PropertyFailedException(
                    $"{Runner.onFinishedToString(method.Name, failed)}{Environment.NewLine}replay: {ReplayVariable}='{triple}' dotnet test --filter FullyQualifiedName={method.DeclaringType?.FullName}.{method.Name}",
                    triple,
                    Arguments(failed.Item3),
                    (failed.Item4 as Outcome.Failed)?.Item);
            case TestResult.Exhausted exhausted:
                throw new PropertyFailedException(Runner.onFinishedToString(method.Name, exhausted), null, [], null);
            default:
                throw new PropertyFailedException($"{method.Name} did not run to an end.", null, [], null);
        }
    }

    /// <summary>FsCheck hands the arguments of a method with several parameters over as one tuple.</summary>
    private static object?[] Arguments(IEnumerable<object> shrunk)
        => [.. shrunk.SelectMany(a => a is ITuple tuple ? Enumerable.Range(0, tuple.Length).Select(i => tuple[i]) : [a])];

    private static string Triple(Rnd seed, int size) => string.Create(CultureInfo.InvariantCulture, $"({seed.Seed},{seed.Gamma},{size})");

    /// <summary>The attributes that hold for a method, the strongest first: method, declaring classes from the inside out, assembly.</summary>
    private static List<PropertyAttribute> Layers(MethodInfo method)
    {
        List<PropertyAttribute> layers = [.. method.GetCustomAttributes<PropertyAttribute>(inherit: true)];
        for (Type? type = method.ReflectedType ?? method.DeclaringType; type is not null; type = type.DeclaringType)
        {
            layers.AddRange(type.GetCustomAttributes<PropertiesAttribute>(inherit: true));
        }

        if (method.DeclaringType is not null)
        {
            layers.AddRange(method.DeclaringType.Assembly.GetCustomAttributes<PropertiesAttribute>());
        }

        return layers;
    }

    private static Config Configure(List<PropertyAttribute> layers, string? replay)
    {
        int Set(Func<PropertyAttribute, int> option) => layers.Select(option).FirstOrDefault(v => v != -1, -1);
        Config config = Config.Default;
        config = Set(l => l.MaxTest) is var tests and not -1 ? config.WithMaxTest(tests) : config;
        config = Set(l => l.MaxRejected) is var rejected and not -1 ? config.WithMaxRejected(rejected) : config;
        config = Set(l => l.StartSize) is var start and not -1 ? config.WithStartSize(start) : config;
        config = Set(l => l.EndSize) is var end and not -1 ? config.WithEndSize(end) : config;
        config = Set(l => l.Parallelism) is var degree and not -1 ? config.WithParallelRunConfig(new ParallelRunConfig(degree)) : config;
        config = config.WithArbitrary(layers.SelectMany(l => l.Arbitrary));
        if (replay is null)
        {
            return config;
        }

        string[] parts = replay.Trim().TrimStart('(').TrimEnd(')').Split(',', StringSplitOptions.TrimEntries);
        return parts.Length switch
        {
            2 when Word(parts[0], out ulong seed) && Word(parts[1], out ulong gamma) => config.WithReplay(seed, gamma),
            3 when Word(parts[0], out ulong seed) && Word(parts[1], out ulong gamma) && int.TryParse(parts[2], NumberStyles.None, CultureInfo.InvariantCulture, out int size) => config.WithReplay(seed, gamma, size),
            _ => throw new ArgumentException($"replay '{replay}' is not (seed,gamma) or (seed,gamma,size)", nameof(replay)),
        };
    }

    private static bool Word(string text, out ulong value) => ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value);

    /// <summary>Keeps the result, and shows the cases when asked to.</summary>
    private sealed class Collector(ITestOutputHelper output, bool verbose) : IRunner
    {
        public TestResult? Result { get; private set; }

        public void OnStartFixture(Type t)
        {
        }

        public void OnArguments(int ntest, Microsoft.FSharp.Collections.FSharpList<object> args, FSharpFunc<int, FSharpFunc<Microsoft.FSharp.Collections.FSharpList<object>, string>> every)
        {
            if (verbose)
            {
                output.WriteLine(every.Invoke(ntest).Invoke(args).TrimEnd());
            }
        }

        public void OnShrink(Microsoft.FSharp.Collections.FSharpList<object> args, FSharpFunc<Microsoft.FSharp.Collections.FSharpList<object>, string> everyShrink)
        {
            if (verbose)
            {
                output.WriteLine(everyShrink.Invoke(args).TrimEnd());
            }
        }

        public void OnFinished(string name, TestResult testResult) => Result = testResult;
    }
}
