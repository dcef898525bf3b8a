using System.IO;
using System.Text;
using Iced.Intel;
using Tdp.Kernel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.GuestKernel.Running;

/// <summary>A payload written in the test itself: instructions from 0x400000 on, strings behind them.</summary>
internal sealed class Payload
{
    public const ulong Address = 0x40_0000;

    /// <summary>Linear address of the test device, through the shared window.</summary>
    public const ulong Device = GuestAbi.SharedWindow + GuestAbi.MmioScratch;

    private readonly List<(Label Label, string Text)> _texts = [];

    private Payload()
    {
    }

    public Assembler A { get; } = new(64);

    /// <summary>Assembles a program. It runs on every vCPU, RSI = vCPU index; where it ends, vCPU 0 exits with code 0.</summary>
    public static ElfImage Assemble(Action<Payload> program)
    {
        var payload = new Payload();
        Assembler a = payload.A;
        a.push(rbx);
        program(payload);
        a.xor(eax, eax);
        a.pop(rbx);
        a.ret();
        foreach ((Label label, string text) in payload._texts)
        {
            Label place = label;
            a.Label(ref place);
            a.db([.. Encoding.ASCII.GetBytes(text), 0]);
        }
        using var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), Address);
        return ElfImage.Parse(ElfBytes.WithCode(stream.ToArray()));
    }

    /// <summary>Prints <c>report name = RAX</c>; all registers but RAX survive.</summary>
    public void Report(string name)
    {
        Label text = A.CreateLabel();
        _texts.Add((text, name));
        A.push(rdi);
        A.push(rsi);
        A.mov(rsi, rax);
        A.lea(rdi, __[text]);
        A.mov(eax, (int)GuestService.Report);
        A.@int(GuestAbi.ServiceVector);
        A.pop(rsi);
        A.pop(rdi);
    }

    /// <summary>RAX = the service's result.</summary>
    public void Call(GuestService service, ulong first = 0, ulong second = 0)
    {
        A.mov(rdi, first);
        A.mov(rsi, second);
        A.mov(eax, (int)service);
        A.@int(GuestAbi.ServiceVector);
    }

    /// <summary>Raw bytes, for forms that the assembler would encode otherwise.</summary>
    public void Bytes(params byte[] bytes) => A.db(bytes);
}
