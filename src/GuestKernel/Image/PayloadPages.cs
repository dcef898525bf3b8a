namespace Tdp.Kernel;

/// <summary>
/// Cuts the payload into runs of whole pages. Only pages that hold bytes of the file become part of the image; pure BSS pages stay unaccepted RAM,
/// which reads zero once accepted. Two segments that share a page end up in one run.
/// </summary>
internal static class PayloadPages
{
    public static void Add(ElfImage payload, List<ImageSegment> segments)
    {
        ulong start = 0, end = 0;
        foreach (ElfSegment segment in payload.Segments)
        {
            if (segment.FileBytes.IsEmpty)
                continue;
            ulong from = segment.Address & ~(GuestAbi.PageBytes - 1);
            ulong to = (segment.Address + (ulong)segment.FileBytes.Length + GuestAbi.PageBytes - 1) & ~(GuestAbi.PageBytes - 1);
            if (from > end && end != 0)
            {
                segments.Add(Fill(payload, start, end));
                end = 0;
            }
            if (end == 0)
                start = from;
            end = to;
        }
        if (end != 0)
            segments.Add(Fill(payload, start, end));
    }

    private static ImageSegment Fill(ElfImage payload, ulong start, ulong end)
    {
        byte[] bytes = new byte[end - start];
        foreach (ElfSegment segment in payload.Segments)
        {
            if (segment.Address >= start && segment.Address < end)
                segment.FileBytes.Span.CopyTo(bytes.AsSpan((int)(segment.Address - start)));
        }
        return new ImageSegment("payload", start, bytes, end - start);
    }
}
