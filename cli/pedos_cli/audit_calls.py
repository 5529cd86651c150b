"""Records of the audit log about calls of services, as sentences.

As in `audit_text`, nothing here relies on a field that a record should have.
"""

from __future__ import annotations

from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Record = Mapping[str, object]

EVENTS = ("call", "call_ended", "call_adopted")

TOLD = frozenset(
    {
        "call", "requested", "user", "channel", "stages", "kind", "status", "text", "stdin",
        "stdout", "stderr", "by",
    }
)  # fmt: skip
"""Fields that these sentences contain, beside those that all events have."""

ID_MIN = 12
"""Characters of a call's id by which its story is found: as many as `qvm-calls` shows."""

_STAGES = {
    "decide": "deciding",
    "autostart": "starting the VM",
    "channel": "making the channel",
    "start": "starting the service",
    "running": "running",
}

_KINDS = {
    "exited": "ended with status {status}",
    "signalled": "was ended by signal {status}",
    "problem": "failed, with status 125 for the caller",
    "refused": "was refused in the target, with status 126 for the caller",
    "not_found": "was not found in the target, with status 127 for the caller",
    "aborted": "ended as its caller went away",
    "lost": "ended as the other VM, or its agent, went away",
}


#: Fields of a sum, and which calls they count.
_OTHERS = (
    ("not_named", "of services that had no room here"),
    ("not_begun", "that started nothing"),
)


def request_of(record: Record, call: str) -> str | None:
    """Return the request of the call whose id this is, or begins so; None if the record is of
    another."""
    whole, request = record.get("call"), record.get("request")
    if not (isinstance(whole, str) and isinstance(request, str)):
        return None
    return request if whole.startswith(call) and len(call) >= ID_MIN else None


def in_sum(record: Record, name: str) -> bool:
    """Say whether the record is a sum that counts the call whose id, or whose request's, begins
    so."""
    texts = record.get("ids")
    if not isinstance(texts, list) or len(name) < ID_MIN:
        return False
    return any(name[:ID_MIN] in text.split() for text in texts if isinstance(text, str))


def lacks_ids(record: Record) -> bool:
    """Say whether the record is a sum that counts calls without their ids."""
    return record.get("event") == "summed_up" and bool(record.get("ids_left_out"))


def has_target(record: Record, vm: str) -> bool:
    """Say whether the record is a sum of calls, and the VM serves some of them."""
    return any(kind.get("target") == vm for kind in _kinds(record))


def sum_sentences(record: Record) -> list[str]:
    """Return which calls a sum counts, and how they ended."""
    said = []
    for kind in _kinds(record):
        calls, how = kind.get("calls"), _outcomes(kind)
        words = f"{_calls(calls)} of {_kind(kind)}" if calls else f"{_kind(kind)}, called before"
        said.append(f"{words}{how}.")
    for name, what in _OTHERS:
        others = record.get(name)
        if isinstance(others, dict):
            said.append(f"{_calls(others.get('calls'))} {what}{_outcomes(others)}.")
    return said


def sum_row(record: Record) -> str:
    """Return the same in a few words."""
    kinds = [f"{show(kind.get('calls'), 20)} {_kind(kind)}" for kind in _kinds(record)]
    return f"({', '.join(kinds)})" if kinds else ""


def _kinds(record: Record) -> list[Record]:
    calls = record.get("calls") if record.get("event") == "summed_up" else None
    return [kind for kind in calls if isinstance(kind, dict)] if isinstance(calls, list) else []


def _kind(kind: Record) -> str:
    """What was called: `app.Sign+letters -> vault`."""
    argument = kind.get("argument")
    more = " with other arguments" if argument is None else ""
    shown = "" if argument in (None, "+") else show(argument)
    return f"{show(kind.get('service') or '-')}{shown}{more} -> {show(kind.get('target') or '-')}"


def _calls(number: object) -> str:
    return "1 call" if number == 1 else f"{show(number, 20)} calls"


def _outcomes(kind: Record) -> str:
    outcomes = kind.get("outcomes")
    if not isinstance(outcomes, dict) or not outcomes:
        return ""
    return f": {', '.join(f'{show(n, 20)} {show(how, 64)}' for how, n in outcomes.items())}"


def sentences(record: Record, subject: str, took: str) -> list[str]:
    """Return what happened to the call of `subject`, which took as long as `took` says."""
    event = record.get("event")
    if event == "call":
        return _begun(record, subject, took)
    return _ended(record, subject, took) if event == "call_ended" else _adopted(record, subject)


def _begun(record: Record, subject: str, took: str) -> list[str]:
    """Whether the service was started, and how long that took."""
    outcome = show(record.get("outcome") or "-")
    if outcome != "started":
        return [f"The call of {subject} did not begin{took}: {outcome}.", *_stages(record)]
    user = f" as {show(record['user'])}" if record.get("user") else ""
    over = {"new": ", over a new channel", "idle": ", over a channel that was idle"}
    said = [f"{subject} was started{user}{took}{over.get(str(record.get('channel')), '')}."]
    if record.get("requested"):
        said.append(f"The caller had named {show(record['requested'])}.")
    return [*said, *_stages(record)]


def _ended(record: Record, subject: str, took: str) -> list[str]:
    """How it ended, and how much was carried."""
    kind = record.get("kind")
    how = _KINDS.get(kind) if isinstance(kind, str) else None
    words = (how or f"ended ({show(kind)})").format(status=show(record.get("status")))
    said = [f"{subject} {words}{took}."]
    if record.get("text"):
        said.append(f"It was said: {show(record['text'])}")
    if record.get("by"):
        said.append(f"{show(record['by'])} ended it.")
    read, out, err = (_bytes(record.get(name)) for name in ("stdin", "stdout", "stderr"))
    said.append(f"It was sent {read}, and wrote {out} to standard output and {err} to error.")
    return [*said, *_stages(record)]


def _adopted(record: Record, subject: str) -> list[str]:
    """The service was restarted while it ran."""
    why = f" ({show(record['reason'])})" if record.get("reason") else ""
    return [f"The call of {subject} went on while dom0's service was restarted{why}."]


def _stages(record: Record) -> list[str]:
    stages = record.get("stages")
    if not isinstance(stages, dict):
        return []
    times = [
        f"{_STAGES.get(str(name), show(name, 64))} {passed * 1e3:.1f} ms"
        for name, passed in stages.items()
        if isinstance(passed, int | float) and passed
    ]
    return [f"Of that: {', '.join(times)}."] if times else []


def _bytes(count: object) -> str:
    if not isinstance(count, int):
        return "an unknown number of bytes"
    return "1 byte" if count == 1 else f"{count} bytes"
