"""Records of the audit log as text for people: a row of a list, or sentences.

A record is whatever the file has: any field may be missing or of a type that the service does not
write, so no function here relies on one. `output` makes the result harmless.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pedos_protocol.reasons import says_more

from pedos_cli import audit_calls
from pedos_cli.answers import options_text
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Record = Mapping[str, object]

HEADER = ("TIME", "REQUEST", "EVENT", "WHO", "RESULT", "WHAT")
FIELD_MAX = 256
"""Characters of one field in a row or sentence; `--json` has the whole field."""

_VM_FIELDS = ("vm", "caller", "source", "target")
# Fields that have a column of their own, or that the words of every event contain.
_SHOWN = {
    "time", "event", "request", "caller", "verb", "device_class", "device", "vm", "verdict",
    "outcome", "rule", "reason", "seconds", "options", "service", "argument", "source", "target",
    "calls", "ids", "not_named", "not_begun",
}  # fmt: skip
_TO_OR_FROM = {"detach": "from"}


def local_time(record: Record) -> str:
    """Return the time, in this machine's time zone, in a form that `--since` accepts."""
    written = str(record.get("time"))
    try:
        moment = datetime.fromisoformat(written)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        local = moment.astimezone()
    except (ValueError, OverflowError, OSError):
        return show(written, 32)
    return local.replace(tzinfo=None).isoformat(sep=" ", timespec="milliseconds")


def is_about(record: Record, vm: str) -> bool:
    """Say whether the VM asks, gets, has or lends in this record."""
    named = [value for field in _VM_FIELDS if isinstance(value := record.get(field), str)]
    # A user of dom0's desktop is "dom0 (uid 1000)".
    if any(value == vm or value.startswith(f"{vm} (") for value in named):
        return True
    vms = record.get("vms")
    if (isinstance(vms, list) and vm in vms) or audit_calls.has_target(record, vm):
        return True
    device = record.get("device")
    return isinstance(device, str) and device.partition(":")[0] == vm


def is_denial(record: Record) -> bool:
    """Say whether this is a denial, or a sum that may contain denials: one of calls does not."""
    events = record.get("events") if record.get("calls") is None else None
    if record.get("event") == "summed_up" and isinstance(events, dict):
        return bool({"decision", "answered"} & events.keys())
    outcome = record.get("outcome")
    return record.get("verdict") == "deny" or (
        isinstance(outcome, str) and outcome.partition(":")[0] == "denied"
    )


def has_id(record: Record, request: str) -> bool:
    """Say whether the record belongs to a request, or is a sum with it as the first or last one, or
    one that names it or its call."""
    named = (record.get("request"), record.get("first_request"), record.get("last_request"))
    return request in named or audit_calls.in_sum(record, request)


def row(record: Record) -> tuple[str, str, str, str, str, str]:
    """Return the cells of one line; see HEADER."""
    result, rest = _result(record)
    who = _text(record.get("caller") or record.get("source") or record.get("vm"))
    subject = _subject(record)
    subject = "" if subject == who else subject  # a column of its own has it
    counted = audit_calls.sum_row(record)
    what = " ".join(filter(None, (subject, rest, _why(record), counted, _others(record))))
    return (
        local_time(record),
        _text(record.get("request")),
        _text(record.get("event")),
        who,
        result,
        what,
    )


def sentences(record: Record) -> list[str]:
    """Return what happened, in words: one or more sentences."""
    event = record.get("event")
    known = _SENTENCES.get(event) if isinstance(event, str) else None
    if event in audit_calls.EVENTS:
        known = _of_call
    said = known(record) if known is not None else [_plain(record)]
    others = _others(record, audit_calls.TOLD if event in audit_calls.EVENTS else frozenset())
    return [*said, f"({others})"] if others and event != "summed_up" else said


def _plain(record: Record) -> str:
    """An event without sentences of its own."""
    result, rest = _result(record)
    parts = (_subject(record), result if result != "-" else "", rest, _why(record))
    return f"{_text(record.get('event'))}: {' '.join(filter(None, parts))}"


def _text(value: object) -> str:
    return "-" if value is None or value == "" else show(value, FIELD_MAX)


def _result(record: Record) -> tuple[str, str]:
    """Return the word for the outcome, and the further details."""
    if record.get("verdict") is not None:
        return _text(record["verdict"]), ""
    outcome = record.get("outcome")
    if isinstance(outcome, str):
        word, _, rest = outcome.partition(": ")
        # A denial repeats its subject, which is shown beside it.
        return _text(word), "" if word == "denied" else show(rest, FIELD_MAX)
    what = record.get("what")
    return (_text(what), "") if record.get("event") == "service" else ("-", "")


def _subject(record: Record) -> str:
    """Return the subject: `attach block sys-usb:sda -> work`, a service and its target, or a VM."""
    words = [_text(record[name]) for name in ("verb", "device_class", "device") if record.get(name)]
    if not words and record.get("service"):
        words = [f"{_text(record['service'])}{show(record.get('argument') or '', FIELD_MAX)}"]
    target = record.get("vm") or record.get("target")
    vms = record.get("vms")
    if isinstance(vms, list) and vms and not target:  # that could have it
        words += ["->", " or ".join(map(_text, vms))]
    if target:
        words += ["->", _text(target)] if words else [_text(target)]
    options = record.get("options")
    if isinstance(options, dict) and options:
        words.append(f"({show(options_text(options), FIELD_MAX)})")
    return " ".join(words)


def _why(record: Record) -> str:
    parts = []
    if record.get("rule"):
        parts.append(f"[{_text(record['rule'])}]")
    elif record.get("event") == "decision":
        parts.append("[no rule matched]")
    parts.append(_reason(record))
    return " ".join(filter(None, parts))


def _reason(record: Record) -> str:
    """Return the reason, unless it only repeats the rule and the verdict, which are shown beside
    it."""
    reason = record.get("reason")
    if not reason or not says_more(reason, record.get("rule"), record.get("verdict")):
        return ""
    return _text(reason)


def _others(record: Record, told: frozenset[str] = frozenset()) -> str:
    """Return the fields that nothing else shows, without the empty ones (None, no, none of
    them)."""
    hidden = _SHOWN | told | ({"what"} if record.get("event") == "service" else set())
    return ", ".join(
        f"{show(name, 64)}={_value(value)}"
        for name, value in record.items()
        if name not in hidden and value not in (None, False, "", [], {})
    )


def _value(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{show(name, 64)}: {show(item, 64)}" for name, item in value.items())
        return "{" + show(", ".join(pairs), FIELD_MAX) + "}"
    if isinstance(value, list):
        return "[" + show(", ".join(show(item, 64) for item in value), FIELD_MAX) + "]"
    return "yes" if value is True else show(value, FIELD_MAX)


# Sentences


def _decision(record: Record) -> list[str]:
    who = _text(record.get("caller") or record.get("source"))
    verdict = record.get("verdict")
    rule = record.get("rule")
    by = f"by the rule {_text(rule)}" if rule else "as no rule matched"
    meaning = {"allow": "allowed it", "deny": "denied it", "ask": "said that a person be asked"}
    answer = meaning.get(verdict) if isinstance(verdict, str) else None
    said = [
        f"{who} asked: {_wish(record)}.",
        f"The policy {answer or f'said {_text(verdict)}'}, {by}.",
    ]
    if reason := _reason(record):
        said.append(f"Reason: {reason}.")
    return said


def _wish(record: Record) -> str:
    verb, device, vm = record.get("verb"), record.get("device"), record.get("vm")
    if verb and device:
        kind = record.get("device_class")
        words = f"{_text(verb)} the {_text(kind)} device" if kind else _text(verb)
        way = _TO_OR_FROM.get(str(verb), "to")
        return f"{words} {_text(device)}" + (f" {way} {_text(vm)}" if vm else "")
    return _subject(record) or "something that the log does not name"


def _asked(record: Record) -> list[str]:
    return [f"A person was asked about {_subject(record) or 'it'}."]


def _answered(record: Record) -> list[str]:
    verdict = record.get("verdict")
    target = record.get("target")
    word = {"allow": "yes", "deny": "no"}.get(str(verdict), _text(verdict))
    whom = f", for {_text(target)}" if target else ""
    why = record.get("reason")
    whose = f" of {_text(record.get('by'))}" if record.get("by") else ""
    said = f"The answer{whose}{_took(record)} was {word}{whom}."
    return [f"{said} Reason: {_text(why)}." if why else said]


def _done(record: Record) -> list[str]:
    what = {"suspend": "detach before the sleep", "resume": "attach after the sleep"}
    name = what.get(str(record.get("event")), _text(record.get("event")))
    word, rest = _result(record)
    rest = rest or show(record.get("reason") or "", FIELD_MAX)
    ended = f"The {name}{_of(record)} ended{_took(record)}: {word}"
    return [f"{ended}: {rest}." if rest else f"{ended}."]


def _listening(record: Record) -> list[str]:
    device, vm = _text(record.get("device")), _text(record.get("vm"))
    word = "began" if record.get("outcome") == "begins" else "ended"
    return [f"{vm} {word} to listen to {device}."]


def _not_attached(record: Record) -> list[str]:
    return [
        f"{_text(record.get('device'))} was there, and no VM got it by itself: "
        f"{_text(record.get('reason'))}."
    ]


def _ended(record: Record) -> list[str]:
    return [f"The attachment{_of(record)} ended{_took(record)}: {_text(record.get('reason'))}."]


def _undone(record: Record) -> list[str]:
    return [
        f"What was begun{_of(record)} was undone{_took(record)}: {_text(record.get('reason'))}."
    ]


def _left_over(record: Record) -> list[str]:
    holder = record.get("holder", "toolstack")
    lacks = "the toolstack does not take it away"
    if holder != "toolstack":
        lacks = f"the agent of {_text(holder)} does not say that it has ended its part"
    return [
        f"The attachment{_of(record)} should end ({_text(record.get('reason'))}), but {lacks}; it "
        "is tried again every minute."
    ]


def _of_call(record: Record) -> list[str]:
    return audit_calls.sentences(record, _subject(record), _took(record))


def _summed_up(record: Record) -> list[str]:
    events = record.get("events")
    counts = events if isinstance(events, dict) else {}
    counted = ", ".join(f"{show(number, 20)} {show(name, 64)}" for name, number in counts.items())
    within = f" within {show(record['seconds'], 20)} s" if record.get("seconds") else ""
    return [
        f"{_text(record.get('vm'))} did more of the same{within}, which was only counted: "
        f"{counted or 'nothing'}.",
        *audit_calls.sum_sentences(record),
        f"The first was request {_text(record.get('first_request'))}, "
        f"the last {_text(record.get('last_request'))}.",
    ]


def _disconnected(record: Record) -> list[str]:
    return [f"The agent of {_text(record.get('vm'))} disconnected: {_text(record.get('reason'))}."]


def _of(record: Record) -> str:
    subject = _subject(record)
    return f" of {subject}" if subject else ""


def _took(record: Record) -> str:
    seconds = record.get("seconds")
    return f" after {seconds:.1f} s" if isinstance(seconds, float | int) else ""


_SENTENCES = {
    "decision": _decision,
    "asked": _asked,
    "answered": _answered,
    "attach": _done,
    "assign": _done,
    "unassign": _done,
    "listening": _listening,
    "mute": _done,
    "unmute": _done,
    "not_attached": _not_attached,
    "detach": _done,
    "start": _done,
    "shutdown": _done,
    "suspend": _done,
    "resume": _done,
    "ended": _ended,
    "undone": _undone,
    "left_over": _left_over,
    "summed_up": _summed_up,
    "disconnected": _disconnected,
}
