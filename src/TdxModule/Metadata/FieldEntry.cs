namespace Tdp.Module;

/// <summary>Who asks for a metadata field; each has masks of its own.</summary>
internal enum FieldCaller : byte
{
    HostProduction,
    HostDebug,
    Guest,
}

/// <summary>One entry of a metadata table: F fields of E elements of B bytes, codes in steps of the stride (tdx-module 1.9a).</summary>
internal sealed record FieldEntry(
    ulong Id,
    int Fields,
    int Elements,
    int Bytes,
    int Stride,
    ulong HostRead,
    ulong HostWrite,
    ulong DebugRead,
    ulong DebugWrite,
    ulong GuestRead,
    ulong GuestWrite)
{
    public int Class => FieldId.ClassOf(Id);

    public uint Code => FieldId.CodeOf(Id);

    public int Count => Fields * Elements;

    public ulong ElementMask => Bytes == 8 ? ulong.MaxValue : (1UL << (8 * Bytes)) - 1;

    /// <summary>Class and first code, for switches over values.</summary>
    public uint Key => ((uint)Class << 24) | Code;

    public ulong ReadMask(FieldCaller caller) => caller switch
    {
        FieldCaller.Guest => GuestRead,
        FieldCaller.HostDebug => DebugRead,
        _ => HostRead,
    };

    public ulong WriteMask(FieldCaller caller) => caller switch
    {
        FieldCaller.Guest => GuestWrite,
        FieldCaller.HostDebug => DebugWrite,
        _ => HostWrite,
    };

    public bool Owns(int fieldClass, uint code) => fieldClass == Class && code >= Code && code < Code + (uint)(Count * Stride);
}

/// <summary>The bits of a metadata field id (tdx-module 1.9a).</summary>
internal static class FieldId
{
    public const ulong Null = ulong.MaxValue;
    private const ulong MustBeZero = (0xFUL << 34) | (0x1FFUL << 38) | (0xFFUL << 24) | (7UL << 47) | (1UL << 55) | (1UL << 62);
    private const ulong ContextBits = 7UL << 52;

    public static uint CodeOf(ulong id) => (uint)id & 0xFF_FFFF;

    public static int ClassOf(ulong id) => (int)(id >> 56) & 0x3F;

    public static bool HasReservedBits(ulong id) => (id & MustBeZero) != 0;

    public static bool IsNull(ulong id) => (id | ContextBits) == Null;

    /// <summary>The caller's id moved to another code, with the context filled in.</summary>
    public static ulong WithCode(ulong id, uint code, ulong context) => (id & ~(0xFF_FFFFUL | ContextBits)) | code | (context & ContextBits);
}

/// <summary>A field that an id names.</summary>
/// <param name="Entry">Its table entry.</param>
/// <param name="Index">Position of the element within the entry.</param>
internal readonly record struct FieldPlace(FieldEntry Entry, int Index);
