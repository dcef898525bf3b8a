// The hook is one per process: tests that install something run one after the other.
[assembly: CollectionBehavior(DisableTestParallelization = true)]
