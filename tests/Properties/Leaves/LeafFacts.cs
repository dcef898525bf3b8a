namespace Tdp.Tests.Properties.Leaves;

/// <summary>States of an entry in the model (tdx-module 5.2, stage 1).</summary>
internal enum EntryState
{
    Free,
    NlMapped,
    NlBlocked,
    Mapped,
    Blocked,
    Pending,
    PendingBlocked,
}

/// <summary>Status values and entry formats, written down once more for the model: it shares nothing with the module (tdx-module 1.4, 5.1, 5.4).</summary>
internal static class LeafFacts
{
    public const ulong Success = 0;
    public const ulong InterruptedResumable = 0x8000_0003_0000_0000;
    public const ulong InterruptedRestartable = 0x8000_0004_0000_0000;
    public const ulong OperandInvalid = 0xC000_0100_0000_0000;
    public const ulong OperandAddrRangeError = 0xC000_0101_0000_0000;
    public const ulong OperandBusy = 0x8000_0200_0000_0000;
    public const ulong PreviousEpochBusy = 0x8000_0201_0000_0000;
    public const ulong HostPriorityTimeout = 0x9000_0205_0000_0000;
    public const ulong PageMetadataIncorrect = 0xC000_0300_0000_0000;
    public const ulong AssociatedPagesExist = 0xC000_0400_0000_0000;
    public const ulong LifecycleIncorrect = 0xC000_0607_0000_0000;
    public const ulong OpStateIncorrect = 0xC000_0608_0000_0000;
    public const ulong VcpuStateIncorrect = 0xC000_0700_0000_0000;
    public const ulong VcpuAssociated = 0x8000_0701_0000_0000;
    public const ulong VcpuNotAssociated = 0x8000_0702_0000_0000;
    public const ulong NoValidVeInfo = 0xC000_0704_0000_0000;
    public const ulong KeysNotConfigured = 0x8000_0810_0000_0000;
    public const ulong WbcacheNotComplete = 0x8000_0817_0000_0000;
    public const ulong NoHkidReady = 0x0000_0821_0000_0000;
    public const ulong FlushVpNotDone = 0x8000_0824_0000_0000;
    public const ulong WalkFailed = 0xC000_0B00_0000_0000;
    public const ulong NotBlocked = 0xC000_0B06_0000_0000;
    public const ulong AlreadyBlocked = 0x0000_0B07_0000_0000;
    public const ulong TrackingNotDone = 0xC000_0B08_0000_0000;
    public const ulong PromoteConditions = 0xC000_0B09_0000_0000;
    public const ulong AlreadyAccepted = 0x0000_0B0A_0000_0000;
    public const ulong SizeMismatch = 0xC000_0B0B_0000_0000;
    public const ulong StateIncorrect = 0xC000_0B0D_0000_0000;
    public const ulong PageNotFree = 0xC000_0B0E_0000_0000;

    public const ulong Rcx = 1;
    public const ulong Rdx = 2;
    public const ulong R8 = 8;
    public const ulong TdrId = 128;
    public const ulong SeptTree = 146;
    public const ulong TdEpoch = 169;
    public const ulong OpState = 172;

    public const int NoType = 0;
    public const int Reg = 3;
    public const int TdrType = 4;
    public const int Tdcx = 5;
    public const int Tdvpr = 6;
    public const int Ept = 8;

    public const ulong FreeWord = 0x80E0_0000_0000_0000;
    public const ulong LockBit = 1UL << 11;
    public const ulong PriorityBit = 1UL << 52;

    public static bool IsLeaf(EntryState state) => state >= EntryState.Mapped;

    public static bool IsTable(EntryState state) => state is EntryState.NlMapped or EntryState.NlBlocked;

    public static bool IsBlocked(EntryState state) => state is EntryState.NlBlocked or EntryState.Blocked or EntryState.PendingBlocked;

    public static EntryState Blocked(EntryState state) => state switch
    {
        EntryState.NlMapped => EntryState.NlBlocked,
        EntryState.Mapped => EntryState.Blocked,
        _ => EntryState.PendingBlocked,
    };

    public static EntryState Open(EntryState state) => state switch
    {
        EntryState.NlBlocked => EntryState.NlMapped,
        EntryState.Mapped or EntryState.Blocked => EntryState.Mapped,
        _ => EntryState.Pending,
    };

    /// <summary>The word in the Secure EPT.</summary>
    public static ulong Word(EntryState state) => state switch
    {
        EntryState.Free => FreeWord,
        EntryState.NlMapped => 0x8000_0000_0000_0007,
        EntryState.NlBlocked => 0x8080_0000_0000_0000,
        EntryState.Mapped => 0x8000_0000_0000_00F7,
        EntryState.Blocked => 0x8080_0000_0000_00F0,
        EntryState.Pending => 0x8100_0000_0000_00F0,
        _ => 0x8180_0000_0000_00F0,
    };

    public static ulong Public(EntryState state) => state switch
    {
        EntryState.Free => 0,
        EntryState.NlMapped => 0x84,
        EntryState.NlBlocked => 0x81,
        EntryState.Mapped => 4,
        EntryState.Blocked => 1,
        EntryState.Pending => 2,
        _ => 3,
    };
}
