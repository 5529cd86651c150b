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


def request_of(record: Record, call: str) -> str | None:
    """Return the request of the call whose id this is, or begins so; None if the record is of
    another."""
    whole, request = record.get("call"), record.get("request")
    if not (isinstance(whole, str) and isinstance(request, str)):
        return None
    return request if whole.startswith(call) and len(call) >= ID_MIN else None


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
