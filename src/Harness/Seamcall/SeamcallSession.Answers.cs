using System.Globalization;
using System.IO;
using System.Linq;
using Tdp.Harness.Invariants;

namespace Tdp.Harness.Seamcall;

/// <content>Commands of the session, and how answers are shown.</content>
internal sealed partial class SeamcallSession
{
    private static readonly (string Name, string Usage, string Meaning)[] Commands =
    [
        ("boot", "boot", "bring the module up: SYS.INIT to the last SYS.TDMR.INIT"),
        ("lp", "lp N", "make the next calls on processor N"),
        ("access", "access read|write|fetch GPA", "the guest on this processor touches an address"),
        ("interrupt", "interrupt", "an external interrupt makes the guest on this processor leave its TD"),
        ("expect", "expect STATUS", "fail unless the last status is this one, such as TDX_SUCCESS or 'inside the TD'"),
        ("fill", "fill HPA VALUE", "write a 64-bit value over a page of the host"),
        ("show", "show tds | vcpus | sept TDR | pamt HPA | variables", "show state"),
        ("check", "check", "check the module's invariants TM01 to TM06"),
        ("times", "times N LINE", "do the rest of the line N times"),
        ("help", "help [LEAF]", "list everything, or what a leaf takes and answers"),
    ];

    private static readonly string[] CommandNames = [.. Commands.Select(c => c.Name)];

    private string _lastText = string.Empty;

    /// <summary>The commands and leaves, for <c>help</c>.</summary>
    public static void Help(TextWriter to)
    {
        to.WriteLine("commands");
        to.WriteLine($"  {"$NAME = VALUE",-52} set a variable: a number, alloc, alloc 2M, or params [FIELD=N ...]");
        foreach ((_, string usage, string meaning) in Commands)
        {
            to.WriteLine($"  {usage,-52} {meaning}");
        }

        to.WriteLine("leaves");
        foreach (LeafDescription leaf in LeafCatalogue.All)
        {
            to.WriteLine($"  {leaf.Name,-26} {leaf.Summary}");
        }
    }

    /// <summary>What one leaf takes and answers.</summary>
    public static void Help(TextWriter to, LeafDescription leaf)
    {
        to.WriteLine($"{Usage(leaf)}");
        to.WriteLine($"  {leaf.Summary} ({(leaf.IsGuest ? "TDCALL" : "SEAMCALL")} leaf {leaf.Number.ToString(CultureInfo.InvariantCulture)}{(leaf.MaxVersion > 0 ? ", version 0 or 1" : string.Empty)})");
        foreach (LeafOperand operand in leaf.Operands)
        {
            string where = operand.Register.ToString().ToUpperInvariant() + (operand.Bits.Length > 0 ? " " + operand.Bits : string.Empty);
            to.WriteLine($"  {operand.Name,-14} {where,-12} {operand.Meaning}{(operand.Version > 0 ? " (version 1)" : string.Empty)}");
        }

        foreach (LeafResult result in leaf.Results)
        {
            to.WriteLine($"  -> {result.Name,-11} {result.Register.ToString().ToUpperInvariant(),-12} {result.Meaning}");
        }

        to.WriteLine("  statuses");
        foreach (LeafStatus status in leaf.Statuses)
        {
            to.WriteLine($"    {status.Status + (status.HasDetails ? " | ..." : string.Empty),-52} {status.When}");
        }
    }

    private static string Usage(LeafDescription leaf) =>
        string.Join(' ', leaf.Operands.Select(o => o.Default is null ? $"{o.Name}=..." : $"[{o.Name}=...]").Prepend(leaf.Name));

    private bool Command(string[] words)
    {
        switch (words)
        {
            case ["boot"]:
                Boot();
                return true;
            case ["lp", var number]:
                ulong lp = Value(number);
                _lp = lp < (ulong)_machine.Processors.Count ? (int)lp : throw new SessionException($"lp {number}: allowed is 0 to {_machine.Processors.Count - 1}");
                return true;
            case ["access", var kind, var gpa]:
                Touch(kind, Value(gpa));
                return true;
            case ["interrupt"]:
                Vmcs running = Running("interrupt");
                running.Exit = new VmExit { Reason = ExitReason.ExternalInterrupt, InterruptInfo = 0x8000_0020 };
                Leave(_machine.Processors[_lp], running, null);
                return true;
            case ["expect", ..]:
                Expect(string.Join(' ', words[1..]));
                return true;
            case ["fill", var page, var value]:
                Fill(Value(page), Value(value));
                return true;
            case ["show", ..]:
                Show(words[1..]);
                return true;
            case ["check"]:
                Check();
                return true;
            case ["help"]:
                using (StringWriter all = new())
                {
                    Help(all);
                    _print(all.ToString().TrimEnd());
                }

                return true;
            case ["help", var name]:
                LeafDescription leaf = LeafCatalogue.Find(name) ?? throw new SessionException($"help {name}: no such leaf; help lists them");
                using (StringWriter one = new())
                {
                    Help(one, leaf);
                    _print(one.ToString().TrimEnd());
                }

                return true;
            default:
                return Array.IndexOf(CommandNames, words[0]) >= 0
                    ? throw new SessionException($"'{string.Join(' ', words)}': allowed is {Array.Find(Commands, c => c.Name == words[0]).Usage}")
                    : false;
        }
    }

    private Vmcs Running(string command) =>
        _module.CurrentVmcs(_machine.Processors[_lp]) ?? throw new SessionException($"{command}: no guest is inside on LP {_lp}; TDH.VP.ENTER comes first");

    private void Touch(string kind, ulong gpa)
    {
        AccessKind access = kind switch
        {
            "read" => AccessKind.Read,
            "write" => AccessKind.Write,
            "fetch" => AccessKind.Fetch,
            _ => throw new SessionException($"access {kind}: allowed is read, write, fetch"),
        };
        Vmcs vmcs = Running("access");
        LogicalProcessor lp = _machine.Processors[_lp];
        if (GuestPhysical.TryTranslate(_machine, lp, vmcs, gpa, access, out ulong hpa))
        {
            Answer(null, default, string.Create(CultureInfo.InvariantCulture, $"reaches 0x{hpa:x}"), $"guest {kind}");
            return;
        }

        GuestPhysical.DescribeLinear(vmcs, gpa, isPageTable: false);
        Leave(lp, vmcs, null);
    }

    private void Fill(ulong page, ulong value)
    {
        if ((page & 4095) != 0 || !_machine.Memory.Exists(new Hpa(page)) || _machine.Ledger.UseOf(new Hpa(page)) is FrameUse.Module)
        {
            throw new SessionException(string.Create(CultureInfo.InvariantCulture, $"fill 0x{page:x}: allowed is a page of the host, aligned to 4K"));
        }

        _machine.Memory.Fill(new Hpa(page), value);
    }

    private void Expect(string status)
    {
        if (status.Length == 0)
        {
            throw new SessionException("expect: allowed is a status, such as TDX_SUCCESS");
        }

        if (_lastText != status)
        {
            string failure = string.Create(CultureInfo.InvariantCulture, $"line {_line}: expected {status}, the last answer is {(_lastText.Length == 0 ? "missing" : _lastText)}");
            Failures.Add(failure);
            _print($"  FAILED {failure}");
        }
    }

    private void Check()
    {
        FindingLog findings = new();
        ModuleInvariants.Check(_module, findings);
        foreach (Finding finding in findings.All)
        {
            Failures.Add($"line {_line}: {finding.Rule}: {finding.Text}");
            _print($"  FAILED {finding.Rule}: {finding.Text}");
        }

        if (findings.Count == 0)
        {
            _print("check: TM01 to TM06 hold");
        }
    }

    // The same calls that a host makes, without a line for each of them.
    private void Boot()
    {
        if (_module.State is not SystemState.SYSINIT_PENDING)
        {
            throw new SessionException($"boot: the module is in state {_module.State} already");
        }

        void Call(int lp, TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0)
        {
            SeamRegisters registers = SeamRegisters.Call(leaf, rcx, rdx, r8);
            _module.Seamcall(_machine.Processors[lp], ref registers);
            if (registers.Status.IsError)
            {
                throw new SessionException($"boot: {leaf.FullName()} answered {registers.Status}");
            }
        }

        MachineDescription description = _machine.Description;
        ulong array = Allocate(4096);
        ulong info = Allocate(4096);
        for (int i = 0; i < description.Tdmrs.Count; i++)
        {
            TdmrDescription tdmr = description.Tdmrs[i];
            ulong at = info + ((ulong)i * 512);
            _machine.Memory.Word(array + ((ulong)i * 8)) = at;
            ulong[] words =
            [
                tdmr.Range.Base, tdmr.Range.Size, tdmr.Pamt1G.Base, tdmr.Pamt1G.Size, tdmr.Pamt2M.Base, tdmr.Pamt2M.Size, tdmr.Pamt4K.Base, tdmr.Pamt4K.Size,
                .. tdmr.Reserved.SelectMany(r => (ulong[])[r.Base - tdmr.Range.Base, r.Size]),
            ];
            for (int w = 0; w < words.Length; w++)
            {
                _machine.Memory.Word(at + ((ulong)w * 8)) = words[w];
            }
        }

        Call(0, TdhLeaf.SYS_INIT);
        foreach (LogicalProcessor lp in _machine.Processors)
        {
            Call(lp.Id, TdhLeaf.SYS_LP_INIT);
        }

        Call(0, TdhLeaf.SYS_CONFIG, array, (ulong)description.Tdmrs.Count, (ulong)description.FirstPrivateHkid);
        ulong done = 0;
        foreach (LogicalProcessor lp in _machine.Processors)
        {
            if ((done & (1UL << lp.Package)) == 0)
            {
                Call(lp.Id, TdhLeaf.SYS_KEY_CONFIG);
            }

            done |= 1UL << lp.Package;
        }

        foreach (TdmrDescription tdmr in description.Tdmrs)
        {
            while (_module.Pamt(new Hpa(tdmr.Range.End - 4096)) is null)
            {
                Call(0, TdhLeaf.SYS_TDMR_INIT, tdmr.Range.Base);
            }
        }

        _print(string.Create(CultureInfo.InvariantCulture, $"boot: {_module.State}, {_machine.Processors.Count} LPs in {description.Packages} packages, private KeyIDs {description.FirstPrivateHkid + 1} to {description.EndPrivateHkid - 1} free"));
    }

    private void Show(string[] what)
    {
        switch (what)
        {
            case ["tds"]:
                foreach (TdView td in _module.Tds())
                {
                    _print(string.Create(CultureInfo.InvariantCulture, $"  TD {td.Tdr} KeyID {td.Hkid} {td.Lifecycle} {td.OpState}{(td.IsFatal ? " FATAL" : string.Empty)} children {td.ChildCount} vCPUs {td.Vcpus} epoch {td.Epoch} ({td.RefCount0}, {td.RefCount1} inside)"));
                }

                break;
            case ["vcpus"]:
                foreach (VcpuView vcpu in _module.Vcpus())
                {
                    _print(string.Create(CultureInfo.InvariantCulture, $"  vCPU {vcpu.Tdvpr} of {vcpu.Tdr} {vcpu.State} {(vcpu.AssociatedLp < 0 ? "not associated" : $"on LP {vcpu.AssociatedLp}")} epoch {vcpu.Epoch}"));
                }

                break;
            case ["sept", var tdr]:
                Hpa root = new(Value(tdr));
                if (_module.Td(root) is not { Eptp: not 0 })
                {
                    throw new SessionException($"show sept {tdr}: {root} is no initialised TD");
                }

                _module.ForEachSeptEntry(root, (in SeptView e) => _print(string.Create(CultureInfo.InvariantCulture, $"  {e.Gpa} {e.Level} {e.State} {e.Hpa}")));
                break;
            case ["pamt", var page]:
                _print(_module.Pamt(new Hpa(Value(page))) is { } p
                    ? string.Create(CultureInfo.InvariantCulture, $"  {p.Type} owner {p.Owner} size {p.Level} bepoch {p.Bepoch}")
                    : "  in no initialised TDMR");
                break;
            case ["variables"]:
                foreach ((string name, ulong value) in _variables.OrderBy(v => v.Key, StringComparer.Ordinal))
                {
                    _print(string.Create(CultureInfo.InvariantCulture, $"  {name} = 0x{value:x}"));
                }

                break;
            default:
                throw new SessionException($"show {string.Join(' ', what)}: allowed is tds, vcpus, sept TDR, pamt HPA, variables");
        }
    }

    private void Answer(LeafDescription? leaf, SeamRegisters registers, string text, string? name = null)
    {
        _last = registers.Status;
        _lastText = text;
        for (Gpr register = Gpr.Rax; register <= Gpr.R15; register++)
        {
            _variables["$" + register.ToString().ToLowerInvariant()] = registers[register];
        }

        Dictionary<string, string> results = new(StringComparer.Ordinal);
        if (leaf is not null && _last == TdxStatus.SUCCESS && text != "inside the TD")
        {
            foreach (LeafResult result in leaf.Results)
            {
                results[result.Name] = Format(result, registers[result.Register]);
            }
        }
        else if (leaf is { IsGuest: false } && leaf.Name.StartsWith("TDH.M", StringComparison.Ordinal) && _last.Value != 0 && (registers.Rcx | registers.Rdx) != 0 && !leaf.Name.StartsWith("TDH.MNG", StringComparison.Ordinal)
            && _last.Class != TdxStatus.INTERRUPTED_RESTARTABLE && _last.Class != TdxStatus.SYS_NOT_READY && _last != (TdxStatus.OPERAND_INVALID | OperandId.RAX))
        {
            results["entry"] = Hex(registers.Rcx);
            results["state"] = EntryState(registers.Rdx);
        }

        string label = leaf?.Name ?? name ?? "guest";
        string details = string.Concat(results.Select(r => $" {r.Key}={r.Value}"));
        _print($"LP {_lp.ToString(CultureInfo.InvariantCulture)} {label} -> {text}{details}");
        _records.Add(new SeamcallRecord(_line, _lp, label, text, Hex(registers.Rax), results));
    }

    private static string TdExit(SeamRegisters host)
    {
        string reason = Enum.IsDefined((ExitReason)(uint)host.Rax) ? ((ExitReason)(uint)host.Rax).ToString() : ((uint)host.Rax).ToString(CultureInfo.InvariantCulture);
        string outcome = host.Status.Class == TdxStatus.SUCCESS ? string.Empty : host.Status.Class + " ";
        string gpa = (uint)host.Rax == (uint)ExitReason.EptViolation
            ? string.Create(CultureInfo.InvariantCulture, $" gpa 0x{host.R8:x} qualification 0x{host.Rcx:x} extended type {host.Rdx & 15}")
            : string.Empty;
        return $"TD exit {outcome}{reason}{gpa}";
    }

    private static string Format(LeafResult result, ulong value) => result.Kind switch
    {
        ResultKind.Number => value.ToString(CultureInfo.InvariantCulture),
        ResultKind.PageType => ((PageType)value).ToString(),
        ResultKind.Size => Level.FromTdx((int)Math.Min(value, 4)).ToString(),
        ResultKind.EntryState => EntryState(value),
        _ => Hex(value),
    };

    private static string EntryState(ulong rdx)
    {
        uint code = (uint)(rdx >> 8) & 0xFF;
        foreach (SeptState state in Enum.GetValues<SeptState>())
        {
            if (state.Public() == code)
            {
                return $"{Level.FromTdx((int)(rdx & 7))}:{state}";
            }
        }

        return Hex(rdx);
    }

    private static string Hex(ulong value) => string.Create(CultureInfo.InvariantCulture, $"0x{value:x}");
}
