"""`qvm-policy suggest`: turns denials in the audit log into rules that would allow them.

Each rule is the narrowest one: one service, one device, one source and one target. A malformed
request of a VM never becomes a rule.
"""

from __future__ import annotations

import os

from pedos_protocol.errors import CallError
from pedos_protocol.kinds import open_part

from pedos_cli import output, place, policy_engine, policy_files
from pedos_cli.answers import DONE
from pedos_cli.output import show
from pedos_cli.place import inside_vm, vm_here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pedos_dom0.policy.reading import Loaded
    from pedos_dom0.policy.system import System

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

    Asked = tuple[str, str, str, str]

DEFAULT_FILE = "30-user.policy"

DISTINCT_MAX = 1000
"""Different requests to keep: a VM may have asked for anything, over and over."""

PENDING_MAX = 1000
"""Questions to dom0's user whose answers are still missing: at most 32 are open at a time."""

REQUESTS_MAX = 8
"""Request ids beside a rule, the latest ones; the others are counted."""

MALFORMED = "malformed request"
"""The beginning of dom0's reason for denying a malformed request."""

_HEX = frozenset("0123456789abcdef")
REQUEST_MAX = 32
"""Characters of a request's id; they have 12."""

DESCRIPTION = (
    "Read the audit log, and suggest for each kind of denied request the narrowest rule that "
    "would allow it, with how often and under which request ids it was denied. Requests that the "
    "policy allows by now, or that no rule could allow, are left out. The lines are rules and "
    "comments of a policy file; the first matching rule decides, so put them before the rules "
    "that deny. Read them before you use them: a request is no reason to allow it."
)
EXAMPLES = (
    ("qvm-policy suggest", "rules for everything that was denied"),
    ("qvm-policy suggest --vm work --ask", "for what work asked for, with ask instead of allow"),
    (
        "qvm-policy suggest --into 05-suggested.policy",
        "would they work in that file; replace NAME new writes the output",
    ),
)


def add_arguments(parser: Parser) -> None:
    """Add what `suggest` takes."""
    parser.add_argument(
        "--audit", metavar="FILE",
        help="the audit log (default: the one that qvm-audit reads)",
    )  # fmt: skip
    parser.add_argument(
        "--into", metavar="NAME", default=DEFAULT_FILE,
        help="try the rules at the beginning of this policy file, without writing it "
        f"(default: {DEFAULT_FILE})",
    )  # fmt: skip
    parser.add_argument("--vm", metavar="VM", action="append", help="only what VM asked for")
    parser.add_argument(
        "--asked", action="store_true",
        help="also for requests that the policy asks about, and that were not granted",
    )  # fmt: skip
    parser.add_argument("--ask", action="store_true", help="suggest ask instead of allow")
    policy_engine.add_trial_options(parser)
    policy_engine.add_system_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


class Denied:
    """One kind of denied request: how often, when, under which ids, and whether at least one denial
    was the answer to a question."""

    def __init__(self) -> None:
        self.count = 0
        self.requests: list[str] = []
        self.first = ""
        self.last = ""
        self.by_person = False

    def add(self, record: Mapping[str, object]) -> None:
        """Count one more."""
        self.count += 1
        time = str(record.get("time"))
        self.first = self.first or time
        self.last = time
        request = record.get("request")
        if isinstance(request, str) and len(request) <= REQUEST_MAX and set(request) <= _HEX:
            self.requests = [*self.requests[1 - REQUESTS_MAX :], request]


class Found:
    """What the log has: the denied requests, and what it does not tell of them."""

    def __init__(self) -> None:
        self.denied: dict[Asked, Denied] = {}
        self.malformed = 0
        self.summed_up = 0
        self.beyond = 0

    def add(self, asked: Asked, record: Mapping[str, object], *, by_person: bool = False) -> None:
        """Take one more denial: by a rule, or by dom0's user."""
        if asked not in self.denied and len(self.denied) >= DISTINCT_MAX:
            self.beyond += 1
            return
        denied = self.denied.setdefault(asked, Denied())
        denied.add(record)
        denied.by_person = denied.by_person or by_person


def read_log(records: Iterable[Mapping[str, object]], vms: Sequence[str] | None) -> Found:
    """Return the denials to `vms` (None: to any), in the order of their first occurrence."""
    found = Found()
    pending: dict[str, Asked] = {}
    for record in records:
        if record.get("event") == "answered":
            wanted = pending.pop(str(record.get("request")), None)
            if wanted is not None and record.get("verdict") == "deny":
                found.add(wanted, record, by_person=True)
            continue
        if record.get("event") == "summed_up":
            is_of_calls = "calls" in record  # which were allowed
            if not is_of_calls and (not vms or record.get("vm") in vms):
                found.summed_up += _decisions(record.get("events"))
            continue
        verdict = record.get("verdict")
        if record.get("event") != "decision" or verdict not in ("deny", "ask"):
            continue
        if vms and record.get("source") not in vms:
            continue
        asked = _asked(record)
        if asked is None:
            found.malformed += verdict == "deny"
        elif verdict == "deny":
            found.add(asked, record)
        else:
            pending[str(record.get("request"))] = asked
            if len(pending) > PENDING_MAX:
                del pending[next(iter(pending))]
    return found


def _decisions(untrusted: object) -> int:
    count = untrusted.get("decision") if isinstance(untrusted, dict) else None
    return count if isinstance(count, int) else 0


def _asked(record: Mapping[str, object]) -> Asked | None:
    """Return the request; None if it was malformed, or the record does not tell it."""
    if str(record.get("reason")).startswith(MALFORMED):
        return None
    service, argument, source = (record.get(key) for key in ("service", "argument", "source"))
    # A redirect may have changed the target: for a device, `vm` is the requested one.
    target = record.get("vm") if "device_class" in record else record.get("target")
    if not (
        isinstance(service, str)
        and isinstance(argument, str)
        and isinstance(source, str)
        and isinstance(target, str)
    ):
        return None
    return service, argument, source, target


def _sure(device_class: str, argument: str) -> str:
    """Return the selector that surely matches the device: without IDENTITY if that is empty or
    incomplete."""
    place, _, rest = argument.partition(":")
    port, _, identity = rest.partition(":")
    unknown = open_part(device_class, identity)
    says_nothing = not identity or (unknown is not None and unknown.fill is None)
    return f"{place}:{port}" if port and says_nothing else argument


def rule_for(asked: Asked, action: str) -> str:
    """Return the narrowest rule that matches the request."""
    service, argument, source, target = asked
    if service.startswith("device."):
        argument = _sure(service.rpartition(".")[2], argument)
    if action == "allow" and target in ("", "@default"):
        action = "allow target=VM"  # the one thing that a log cannot know
    return f"{service}  {argument}  {source}  {target or '@default'}  {action}"


def run(session: Session) -> int:
    """Print the rules."""
    args = session.args
    name = policy_files.file_name(args.into)
    found, unread = _found(session)
    where = policy_files.folders(args)
    instead = policy_engine.replaced(args)
    now = policy_engine.read_good(args, where, instead)
    facts = _facts(session)
    action = "ask" if args.ask else "allow"
    suggestions: list[dict[str, object]] = []
    skipped = {"malformed": found.malformed, "allowed_now": 0, "asked_now": 0, "impossible": 0}
    wanted: list[tuple[Asked, Denied, str]] = []
    for asked, denied in found.denied.items():
        rule = rule_for(asked, action)
        if not policy_engine.is_rule(rule):
            skipped["malformed"] += denied.count
            continue
        verdict = "ask" if denied.by_person else "deny"  # unless it can be tried
        if facts is not None:
            verdict = policy_engine.decide(now, facts, asked, trace=False).verdict
        if verdict == "allow" or (verdict == "ask" and (args.ask or not args.asked)):
            skipped["asked_now" if verdict == "ask" else "allowed_now"] += denied.count
            continue
        if facts is not None and not _is_there(asked, facts):
            skipped["impossible"] += denied.count
            continue
        wanted.append((asked, denied, rule))
    after = _with_rules(where, instead, name, [rule for _, _, rule in wanted])
    for asked, denied, rule in wanted:
        works: bool | None = None
        why = ""
        if facts is not None:
            decision = policy_engine.decide(after, facts, asked, trace=False)
            works = decision.verdict == action
            if not works:
                # A rule of the same file follows it, so the new rule does not match.
                if decision.rule is None or decision.rule.file == name:
                    skipped["impossible"] += denied.count
                    continue
                why = f"{decision.rule.where} comes before it and decides"
        suggestions.append(
            {
                "rule": " ".join(rule.split()),
                "count": denied.count,
                "requests": denied.requests,
                "first": denied.first,
                "last": denied.last,
                "works": works,
                "why": why,
            }
        )
    if args.json:
        output.put_json(
            {
                "suggestions": suggestions,
                "skipped": skipped,
                "only_counted": found.summed_up + found.beyond,
                "unread_lines": unread,
            }
        )
        return DONE
    _put(suggestions)
    _notes(session, found, skipped, unread, facts, suggestions)
    return DONE


def _is_there(asked: Asked, facts: System) -> bool:
    """Say whether the VM that would lend the device exists; yes if the request is not about a
    device."""
    service, argument = asked[:2]
    backend = argument.removeprefix("+").partition(":")[0]
    return not service.startswith("device.") or backend in facts.domains


def _put(suggestions: Sequence[Mapping[str, object]]) -> None:
    for each in suggestions:
        requests, count = each["requests"], each["count"]
        assert isinstance(requests, list)
        assert isinstance(count, int)
        times = "once" if count == 1 else f"{count} times"
        ids = ", ".join(requests)
        more = f" and {count - len(requests)} more" if requests and count > len(requests) else ""
        output.put(f"# denied {times}, last {show(each['last'], 64)}: request {ids}{more}")
        if each["why"]:
            output.put(f"# without effect here: {show(each['why'])}")
        output.put(str(each["rule"]).replace(" ", "  "))


def _notes(
    session: Session,
    found: Found,
    skipped: Mapping[str, int],
    unread: int,
    facts: System | None,
    suggestions: Sequence[object],
) -> None:
    if not suggestions:
        session.note("there is nothing to suggest")
    if facts is None:
        session.note("which VMs there are is not known, so the rules were not tried")
    asked_about = "asked about by now"
    if not session.args.asked:
        asked_about += " (--asked suggests rules for them too)"
    for key, what in (
        ("malformed", "of no proper request"),
        ("allowed_now", "allowed by now"),
        ("asked_now", asked_about),
        ("impossible", "of what no rule can allow, such as for a VM that does not exist"),
    ):
        if skipped[key]:
            session.note(f"left out: {_denials(skipped[key])} {what}")
    if found.summed_up + found.beyond:
        session.note(f"left out: {_denials(found.summed_up + found.beyond)} only counted")
    if unread:
        session.note(f"{unread} lines of the log could not be read")


def _denials(count: int) -> str:
    return "1 denial" if count == 1 else f"{count} denials"


def _found(session: Session) -> tuple[Found, int]:
    from pedos_cli import audit_log  # noqa: PLC0415  (json comes with it)

    path = session.args.audit or place.audit_file()
    unread = audit_log.Unread()
    try:
        found = read_log(audit_log.records(path, unread=unread), session.args.vm)
    except OSError as error:
        why = error.strerror or type(error).__name__
        if inside_vm():
            message = f"only dom0 has the audit log, and here is {show(vm_here())}"
            raise CallError("failed", message) from error
        hint = "--audit FILE, or the same as root"
        raise CallError("failed", f"{path} cannot be read: {why}", {"hint": hint}) from error
    return found, unread.lines


def _facts(session: Session) -> System | None:
    try:
        return policy_engine.system(session)
    except CallError as error:
        if error.code != "unavailable":
            raise
        return None


def _with_rules(
    where: Sequence[str],
    instead: Mapping[str, bytes | None],
    name: str,
    rules: Sequence[str],
) -> Loaded:
    """Return the policy as it would be with `rules` at the beginning of the file `name`."""
    path = os.path.join(where[-1], name)
    there = instead[name] if name in instead else policy_files.read(path)
    text = "".join(f"{rule}\n" for rule in rules).encode("ascii") + (there or b"")
    return policy_engine.read(where, {**instead, name: text})
