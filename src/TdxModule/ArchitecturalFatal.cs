namespace Tdp.Module;

/// <summary>
/// The real module would execute UD2 and the platform would shut it down: a bug of the simulator, never a normal result (tdx-module 0.3; decisions D24).
/// </summary>
public sealed class ArchitecturalFatalException : Exception
{
    /// <summary>Makes the exception.</summary>
    public ArchitecturalFatalException(string message)
        : base(message)
    {
    }
}
