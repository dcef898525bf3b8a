namespace Tdp.Kernel;

/// <summary>
/// The file is not a guest program that the loader can run. The message is one line naming the place in the file and the reason.
/// It is the only exception that <see cref="ElfImage"/> and the placement checks of <see cref="GuestImage"/> throw, whatever the bytes are.
/// </summary>
public sealed class ElfFormatException : Exception
{
    /// <summary>Creates the exception.</summary>
    /// <param name="message">One line: place and reason.</param>
    public ElfFormatException(string message)
        : base(message)
    {
    }
}
