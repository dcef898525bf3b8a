// One exploration at a time in a process: it owns the hook.
[assembly: CollectionBehavior(DisableTestParallelization = true)]
