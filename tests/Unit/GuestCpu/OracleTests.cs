using System.Globalization;
using System.Text;
using Iced.Intel;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>
/// The simulated CPU against the one this test runs on, from equal random states (td-guest 9). TDPMMU_ORACLE_SETS raises the number of states per decoder code; the full
/// run is 2000.
/// </summary>
public sealed class OracleTests
{
    private const ulong Arithmetic = 0x8D5;
    private static readonly int Sets = int.Parse(Environment.GetEnvironmentVariable("TDPMMU_ORACLE_SETS") ?? "60", CultureInfo.InvariantCulture);

    [Fact]
    public void Every_tier_1_code_gives_the_registers_flags_and_memory_of_the_host_s_processor()
    {
        Assert.True(HostProcessor.IsAvailable, "the oracle needs Linux on x64");
        using HostProcessor host = new();
        using OracleGuest guest = new();
        SeedStream random = new(1, "program");
        StringBuilder failures = new();
        int compared = 0;
        int faults = 0;
        foreach (Code code in OracleInstructions.Codes)
        {
            int done = 0;
            for (int attempt = 0; done < Sets && attempt < Sets * 4; attempt++)
            {
                ulong[] registers = OracleGuest.RandomRegisters(random);
                byte[]? bytes = OracleInstructions.Draw(code, random, registers, inBlock: false, out Instruction instruction);
                if (bytes is null || IsSplitLock(instruction, registers))
                    continue;
                done++;
                OracleResult result = guest.Compare(host, bytes, registers, random, FlagMask(instruction, registers));
                faults += result.Faulted ? 1 : 0;
                compared += result.Faulted ? 0 : 1;
                if (result.Difference is { } difference)
                {
                    failures.AppendLine(CultureInfo.InvariantCulture, $"{code}: {instruction} [{Convert.ToHexString(bytes)}] {difference}");
                    if (failures.Length > 20_000)
                        Assert.Fail(failures.ToString());
                    break;
                }
            }

            if (done == 0)
                failures.AppendLine(CultureInfo.InvariantCulture, $"{code}: no instance could be encoded");
        }

        Assert.True(failures.Length == 0, failures.ToString());
        Assert.True(OracleInstructions.Codes.Count > 300, $"only {OracleInstructions.Codes.Count} codes");
        Assert.True(compared > OracleInstructions.Codes.Count * Sets / 2, $"{compared} compared, {faults} faulted");
    }

    [Fact]
    public void Random_straight_line_blocks_end_in_the_state_of_the_host_s_processor()
    {
        Assert.True(HostProcessor.IsAvailable, "the oracle needs Linux on x64");
        using HostProcessor host = new();
        using OracleGuest guest = new();
        SeedStream random = new(2, "program");
        Code[] codes = [.. OracleInstructions.Codes.Where(c => c.ToOpCode().Mnemonic is not (Mnemonic.Div or Mnemonic.Idiv or Mnemonic.Clflush or Mnemonic.Pause or Mnemonic.Cmpxchg16b or Mnemonic.Std))];
        int blocks = Sets * 100;
        for (int block = 0; block < blocks; block++)
        {
            ulong[] registers = OracleGuest.RandomRegisters(random);
            registers[3] = HostProcessor.Arena + 0x1000 + (random.Below(0x800) & ~7UL);
            registers[5] = HostProcessor.Arena + 0x1400 + random.Below(0x800);
            List<byte> bytes = [];
            StringBuilder text = new();
            ulong undefined = 0;
            int length = 1 + (int)random.Below(20);
            while (length > 0)
            {
                Code code = codes[(int)random.Below((ulong)codes.Length)];
                byte[]? drawn = OracleInstructions.Draw(code, random, registers, inBlock: true, out Instruction instruction);
                if (drawn is null || instruction.HasLockPrefix || Touches(instruction) || (Bits(instruction.RflagsRead) & undefined) != 0)
                    continue;
                bool conditional = instruction.Op1Kind == OpKind.Register && instruction.Op1Register == Register.CL
                    || instruction.Op2Kind == OpKind.Register && instruction.Op2Register == Register.CL && instruction.OpCount == 3;
                undefined = conditional ? undefined | Bits(instruction.RflagsUndefined) | (Bits(instruction.RflagsModified) & Undefinable) : (undefined & ~Bits(instruction.RflagsModified)) | Undefined(instruction);
                bytes.AddRange(drawn);
                text.Append(instruction).Append("; ");
                length--;
            }

            OracleResult result = guest.Compare(host, [.. bytes], registers, random, Arithmetic & ~undefined);
            Assert.True(result.Difference is null && !result.Faulted, $"block {block}: {text} {result.Difference ?? "faulted"}");
        }
    }

    private const ulong Undefinable = Arithmetic;

    // RIP-relative operands depend on where in the block they stand; SHLD of 16 bits may have no defined result.
    private static bool Touches(in Instruction instruction) =>
        instruction.IsIPRelativeMemoryOperand
        || (instruction.Mnemonic is Mnemonic.Shld or Mnemonic.Shrd && instruction.Op1Register.GetSize() == 2)
        || (instruction.Mnemonic is Mnemonic.Bsf or Mnemonic.Bsr)
        || instruction.Mnemonic is Mnemonic.Rcl or Mnemonic.Rcr && instruction.Op1Kind == OpKind.Register;

    private static bool IsSplitLock(in Instruction instruction, ulong[] registers)
    {
        bool locks = instruction.HasLockPrefix || (instruction.Mnemonic == Mnemonic.Xchg && (instruction.Op0Kind == OpKind.Memory || instruction.Op1Kind == OpKind.Memory));
        if (!locks)
            return false;
        ulong address = instruction.GetVirtualAddress(instruction.Op0Kind == OpKind.Memory ? 0 : 1, 0, (register, _, _) => register.GetFullRegister() switch
        {
            >= Register.RAX and <= Register.R15 => Cut(registers[register.GetFullRegister() - Register.RAX], register.GetSize()),
            _ => 0,
        });
        if (instruction.Mnemonic is Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && instruction.Op1Kind == OpKind.Register)
            return true;
        return (address & 63) + (ulong)instruction.MemorySize.GetSize() > 64;
    }

    private static ulong Cut(ulong value, int bytes) => bytes == 8 ? value : value & ((1UL << (8 * bytes)) - 1);

    private static ulong Bits(RflagsBits bits) =>
        (bits.HasFlag(RflagsBits.CF) ? 1UL : 0) | (bits.HasFlag(RflagsBits.PF) ? 4UL : 0) | (bits.HasFlag(RflagsBits.AF) ? 0x10UL : 0)
        | (bits.HasFlag(RflagsBits.ZF) ? 0x40UL : 0) | (bits.HasFlag(RflagsBits.SF) ? 0x80UL : 0) | (bits.HasFlag(RflagsBits.OF) ? 0x800UL : 0);

    /// <summary>Flags that the manual defines for this very instance: the count decides for shifts.</summary>
    private static ulong FlagMask(in Instruction instruction, ulong[] registers)
    {
        if (!IsShift(instruction.Mnemonic))
            return Arithmetic & ~Bits(instruction.RflagsUndefined);
        int last = instruction.OpCount - 1;
        int size = BytesOf(instruction);
        int count = (instruction.GetOpKind(last) == OpKind.Register ? (byte)registers[1] : (byte)instruction.GetImmediate(last)) & (size == 8 ? 63 : 31);
        if (count == 0)
            return Arithmetic;
        bool rotate = instruction.Mnemonic is Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr;
        ulong undefined = rotate ? 0UL : 0x10;
        if (count != 1)
            undefined |= 0x800;
        if (instruction.Mnemonic is Mnemonic.Shl or Mnemonic.Sal or Mnemonic.Shr && count >= size * 8)
            undefined |= 1;
        if (instruction.Mnemonic is Mnemonic.Shld or Mnemonic.Shrd && size == 2 && count > 16)
            return OracleGuest.SkipResult;
        return Arithmetic & ~undefined;
    }

    private static ulong Undefined(in Instruction instruction) =>
        IsShift(instruction.Mnemonic) ? Arithmetic & ~FlagMask(instruction, new ulong[17]) : Bits(instruction.RflagsUndefined);

    private static int BytesOf(in Instruction instruction) =>
        instruction.Op0Kind == OpKind.Register ? instruction.Op0Register.GetSize() : instruction.MemorySize.GetSize();

    private static bool IsShift(Mnemonic mnemonic) =>
        mnemonic is Mnemonic.Shl or Mnemonic.Sal or Mnemonic.Shr or Mnemonic.Sar or Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr or Mnemonic.Shld or Mnemonic.Shrd;
}
