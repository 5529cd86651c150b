"""`qvm-policy test`: a policy's own unit tests, written in the columns of the policy itself.

A line is a request and what is expected of it:

    SERVICE  ARGUMENT  SOURCE  TARGET  allow|ask|deny  [NAME=VALUE ...]

and `!vm NAME [FACT=VALUE ...]` makes a VM, so that a file of tests can stand for itself.
"""

from __future__ import annotations

from pedos_protocol.errors import CallError
from pedos_protocol.names import parse_vm_name

from pedos_cli import output, policy_engine, policy_files
from pedos_cli.answers import DONE, FAILED, USAGE, rule_text
from pedos_cli.output import show
from pedos_cli.policy_replace import content

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_dom0.policy.system import System

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

COLUMNS = ("SERVICE", "ARGUMENT", "SOURCE", "TARGET", "VERDICT")
VERDICTS = ("allow", "ask", "deny")
YES_NO = {"yes": True, "no": False}

TEXTS = {"target": "target", "user": "user", "default_target": "default_target"}
TRUTHS = {"notify": "notify", "autostart": "autostart", "read-only": "read_only"}
EXPECTATIONS = (*TEXTS, *TRUTHS, "rule", "candidates")
"""The expectations about a decision beside its verdict."""

FACT_TEXTS = {
    "type": "type",
    "uuid": "uuid",
    "default-dispvm": "default_dispvm",
    "state": "power_state",
}
FACT_TRUTHS = {"template-for-dispvms": "template_for_dispvms", "internal": "internal"}
FACTS = (*FACT_TEXTS, *FACT_TRUTHS, "tags")

ERRORS_MAX = 100
"""Errors of one file of tests that are shown: a file of another kind has an error in every line."""

DESCRIPTION = (
    "Run a policy's unit tests. A line of a test file is a request and the expected verdict, "
    "in the columns of a rule: SERVICE ARGUMENT SOURCE TARGET allow|ask|deny, and after that "
    f"optionally any of {', '.join(each + '=' for each in EXPECTATIONS)}. rule= is FILE:LINE, FILE "
    "or none; candidates= has commas. A line '!vm NAME' makes a VM, with any of "
    f"{', '.join(each + '=' for each in FACTS)}; if there is one, only such VMs and dom0 exist, "
    "otherwise those of --system or of the service. A '#' at the start of a line is a comment. "
    "The exit status is 1 if a test fails and 2 if a file is no test file."
)
EXAMPLES = (
    ("qvm-policy test my.tests", "does the policy do what my.tests expects"),
    (
        "qvm-policy test --with 30-user.policy=draft my.tests",
        "would it, with the file draft in its place",
    ),
)


def add_arguments(parser: Parser) -> None:
    """Add what `test` takes."""
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="a file of tests; - is standard input"
    )
    policy_engine.add_trial_options(parser)
    policy_engine.add_system_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


class Case:
    """One line of a test file: the request, and what is expected."""

    def __init__(
        self, line: int, asked: tuple[str, str, str, str], expected: Mapping[str, object]
    ) -> None:
        self.line = line
        self.asked = asked
        self.expected = expected

    def unmet(self, decision: Mapping[str, object]) -> list[str]:
        """Return the unmet expectations, each as half a sentence; nothing if all are met."""
        return [
            f"{name} is {_said(got)}, expected {_said(wanted)}"
            for name, wanted in self.expected.items()
            if not _met(name, wanted, got := decision.get(name))
        ]


def _met(name: str, wanted: object, got: object) -> bool:
    if name == "rule" and isinstance(wanted, str) and ":" not in wanted:
        return isinstance(got, str) and got.rpartition(":")[0] == wanted
    return wanted == got


def _said(value: object) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return ",".join(map(show, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else show(value)


def run(session: Session) -> int:
    """Run all tests of all files; returns 1 if one fails, 2 if a file cannot be read as tests."""
    args = session.args
    parsed = []
    errors: list[dict[str, object]] = []
    for path in args.files:
        cases, vms, wrong = parse(content(path))
        shown = "standard input" if path == "-" else path
        errors += [{"file": shown, "line": line, "message": message} for line, message in wrong]
        parsed.append((shown, cases, vms))
    if errors:
        return _no_tests(session, errors)
    loaded = policy_engine.read_good(args, policy_files.folders(args), policy_engine.replaced(args))
    results: list[dict[str, object]] = []
    known: System | None = None
    for path, cases, vms in parsed:
        if vms is not None:
            facts = policy_engine.system_of(vms)
        else:
            facts = known = known or policy_engine.system(session)
        for case in cases:
            decision = policy_engine.decide(loaded, facts, case.asked, trace=False).to_json()
            unmet = case.unmet(decision)
            results.append(
                {
                    "file": path,
                    "line": case.line,
                    "passed": not unmet,
                    "unmet": unmet,
                    "asked": list(case.asked),
                    "decision": decision,
                }
            )
    return _tell(session, results)


def _no_tests(session: Session, errors: Sequence[Mapping[str, object]]) -> int:
    if session.args.json:
        output.put_json({"errors": list(errors)})
        return USAGE
    for error in errors[:ERRORS_MAX]:
        output.complain(f"{error['file']}:{error['line']}: {error['message']}")
    if len(errors) > ERRORS_MAX:
        output.complain(f"and {len(errors) - ERRORS_MAX} more errors")
    message = "these are no tests, so none was run"
    session.fail(CallError("usage", message, {"hint": "qvm-policy test --help"}))
    return USAGE


def _tell(session: Session, results: Sequence[Mapping[str, object]]) -> int:
    failed = [each for each in results if not each["passed"]]
    if session.args.json:
        output.put_json(
            {
                "passed": len(results) - len(failed),
                "failed": len(failed),
                "results": list(results),
            }
        )
        return FAILED if failed else DONE
    for each in failed:
        asked, unmet, decision = each["asked"], each["unmet"], each["decision"]
        assert isinstance(asked, list)
        assert isinstance(unmet, list)
        assert isinstance(decision, dict)
        output.put(f"{each['file']}:{each['line']}: {' '.join(asked)}")
        for line in unmet:
            output.put(f"  {line}")
        output.put(f"  rule: {rule_text(decision)}")
        output.put(f"  why:  {show(decision['reason'])}")
    session.say(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    if not results:
        session.note("warning: there is not one test")
    return FAILED if failed else DONE


Errors = list[tuple[int, str]]


def parse(data: bytes) -> tuple[list[Case], dict[str, object] | None, Errors]:
    """Return the cases, the facts of the VMs that the file makes (None: no `!vm`), and all
    errors."""
    cases: list[Case] = []
    vms: dict[str, object] | None = None
    errors: Errors = []
    for number, raw in enumerate(data.split(b"\n"), start=1):
        try:
            words = raw.decode("utf-8").split()
        except UnicodeDecodeError:
            errors.append((number, "the line is not UTF-8"))
            continue
        if not words or words[0].startswith("#"):
            continue
        try:
            if words[0].startswith("!"):
                name, facts = _vm(words)
                vms = vms if vms is not None else {}
                if name in vms:
                    raise ValueError(f"{show(name, 64)} is made twice")
                vms[name] = facts
            else:
                cases.append(_case(number, words))
        except ValueError as error:
            errors.append((number, str(error)))
    return cases, vms, errors


def _case(number: int, words: Sequence[str]) -> Case:
    if len(words) < len(COLUMNS):
        missing = ", ".join(COLUMNS[len(words) :])
        raise ValueError(f"{missing} missing: a test is {' '.join(COLUMNS)} [NAME=VALUE ...]")
    service, argument, source, target, verdict = words[: len(COLUMNS)]
    if verdict not in VERDICTS:
        raise ValueError(f"'{show(verdict, 64)}' is no verdict: it is {', '.join(VERDICTS)}")
    if not argument.startswith("+"):
        raise ValueError(f"the argument '{show(argument, 64)}' does not begin with +")
    expected: dict[str, object] = {"verdict": verdict}
    for name, value in _pairs(words[len(COLUMNS) :], EXPECTATIONS):
        if name in TRUTHS:
            expected[TRUTHS[name]] = _truth(name, value)
        elif name == "candidates":
            expected[name] = sorted(part for part in value.split(",") if part)
        else:
            expected[name] = None if value in ("", "none") else value
    return Case(number, (service, argument, source, target), expected)


def _vm(words: Sequence[str]) -> tuple[str, dict[str, object]]:
    if words[0] != "!vm" or len(words) < 2:
        raise ValueError(f"'{show(words[0], 64)}': a line with ! is '!vm NAME [FACT=VALUE ...]'")
    facts: dict[str, object] = {}
    for name, value in _pairs(words[2:], FACTS):
        if name in FACT_TRUTHS:
            facts[FACT_TRUTHS[name]] = _truth(name, value)
        elif name == "tags":
            facts[name] = [part for part in value.split(",") if part]
        else:
            facts[FACT_TEXTS[name]] = value
    try:
        return parse_vm_name(words[1]), facts
    except ValueError as error:
        raise ValueError(f"!vm: {error}") from None


def _pairs(words: Sequence[str], known: Sequence[str]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise ValueError(f"'{show(word, 64)}' is none of {', '.join(k + '=' for k in known)}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    return list(found.items())


def _truth(name: str, value: str) -> bool:
    if value not in YES_NO:
        raise ValueError(f"{name} is '{show(value, 64)}', but can only be yes or no")
    return YES_NO[value]
