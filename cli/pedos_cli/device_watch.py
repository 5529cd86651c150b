"""`qvm-device watch`: what there is, and then each change, until Ctrl-C."""

from __future__ import annotations

from pedos_protocol.errors import CallError

from pedos_cli import client, output
from pedos_cli.answers import older_service
from pedos_cli.device_list import detailed_row, row
from pedos_cli.output import NOTHING, show, wait_while_read
from pedos_cli.qvm_ls import row as vm_row
from pedos_cli.watch_model import Model

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session
    from pedos_cli.watch_model import Event, Map

METHOD = "watch.next"

TIMEOUT_S = 60.0
"""Seconds for an answer: the service answers after 30 s even if nothing has changed."""

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0
"""Seconds between attempts to reach a service that went away, doubling: its restart takes a second,
and a person who repairs it should not have to wait long."""

AWAY = ("unavailable", "timeout", "quota")
"""Error answers in the middle of a watch that pass by themselves: the next attempt may succeed."""

WORD_WIDTH = 8

SHOWN = {
    "description", "present", "attachments", "assignments", "orphans", "assignments_left_out",
    "conflict", "busy", "stale",
}  # fmt: skip
SHOWN_IN_DETAIL = SHOWN | {"size", "read_only", "parent", "parent_class", "identity"}
"""What a device's line shows, of the keys of its map. Other changes are named behind it, because
the line looks as it did before."""

WORDS = {
    "instance": "perhaps another device",  # or only another agent, which cannot tell
    "shares": "shares data with other devices",
}
"""What a change of a key is called, where its name would not say it."""


def add_arguments(parser: Parser) -> None:
    """Add what `watch` takes."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line, with every detail"
    )
    parser.set_defaults(verb=run)


def run(session: Session) -> NoReturn:
    """Print events until the user, the reader of the output, or an error ends it."""
    model = Model()
    tell = _tell_json if session.args.json else _tell
    has_begun, pause = False, RETRY_FIRST_S
    while True:
        try:
            question = model.question(session.args.device_class)
            answer = session.follow(METHOD, question, TIMEOUT_S)
        except (CallError, client.Unreachable) as error:
            reason = _why_away(session, error, has_begun)
            session.close()
            if pause == RETRY_FIRST_S:
                tell(session, {"event": "unreachable", "reason": reason})
            wait_while_read(pause)
            pause = min(2 * pause, RETRY_MAX_S)
            continue
        if pause != RETRY_FIRST_S:
            tell(session, {"event": "reachable"})
        has_begun, pause = True, RETRY_FIRST_S
        for event in model.take(answer):
            tell(session, event)


def _why_away(session: Session, error: CallError | client.Unreachable, has_begun: bool) -> str:
    """The reason to try again; raises an error that will not pass."""
    if isinstance(error, client.Unreachable):
        if not has_begun:
            raise error
        return error.why
    if error.code == "unknown_method":
        raise older_service(error, "cannot tell of changes", f"{session.args.command} list")
    if not has_begun or error.code not in AWAY:
        raise error
    return error.message


def _tell_json(_session: Session, event: Event) -> None:
    output.put_json_line(event)
    output.finish()


def _tell(session: Session, event: Event) -> None:
    what = str(event["event"])
    kind, _, word = what.partition(".")
    if kind == "device":
        _put(word, _device_cells(event, word, detailed=session.verbosity > 0))
    elif kind == "vm":
        _put(kind, (*vm_row(_map(event, kind)), ", ".join(_changes(event)) or word))
    elif what == "gap":
        reason = show(event["reason"])
        session.note(f"some changes were missed: {reason}; what is different now follows")
    elif what == "unreachable":
        session.note(f"no service answers: {show(event['reason'])}; trying again until it does")
    elif what == "reachable":
        session.note("the service answers again")


def _device_cells(event: Event, word: str, *, detailed: bool) -> tuple[str, ...]:
    device = _map(event, "device")
    *cells, users = (detailed_row if detailed else row)(device)
    if word == "removed":  # it has no users any more
        return tuple(cells)
    shown = SHOWN_IN_DETAIL if detailed else SHOWN
    if device.get("attachments"):  # these are shown in place of another use
        shown = shown - {"busy"}
    others = [WORDS.get(key, key.replace("_", " ")) for key in _changes(event) if key not in shown]
    if not others:
        return (*cells, users)
    return (*cells, users or NOTHING, f"({', '.join(others)})")


def _changes(event: Event) -> list[str]:
    changes = event.get("changes")
    return list(map(str, changes)) if isinstance(changes, list) else []


def _map(event: Event, key: str) -> Map:
    value = event[key]
    assert isinstance(value, dict)
    return value


def _put(word: str, cells: tuple[str, ...]) -> None:
    """One line at once; the lines that will follow are not known, so columns cannot be aligned."""
    shown = "  ".join(show(cell, output.LINE_MAX) for cell in cells)
    output.put(f"{word:<{WORD_WIDTH}}  {shown}".rstrip())
    output.finish()
