"""The calls of services that run, as rows of a table: no Qt, no I/O. The words are those of
`qvm-calls`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pedos_cli import calls
from pedos_cli.answers import take
from pedos_cli.output import show

from pedos_widget.i18n import _

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Told = Mapping[str, object]

HEADER = (
    _("Service"), _("Called by"), _("In"), _("State"), _("Since"), _("Sent"), _("Received"),
)  # fmt: skip

STATES = {
    "asking": _("is asked about"),
    "waiting": _("waits"),
    "starting": _("starts"),
    "running": _("runs"),
    "ending": _("ends"),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call: its `cells` under HEADER, and in one line what it is; both are harmless."""

    id: str
    cells: tuple[str, ...]
    what: str


def rows(listed: Iterable[Told]) -> tuple[Call, ...]:
    """The calls of answers to `call.list`; ProtocolError if one is none."""
    return tuple(map(_row, listed))


def _row(told: Told) -> Call:
    state = take(told, "state", str)
    received = [count for name in ("stdout", "stderr") if isinstance(count := told.get(name), int)]
    cells = (
        calls.service(told),
        take(told, "source", str),
        calls.target(told),
        STATES.get(state, state),
        calls.age(calls.seconds(told)),
        calls.size(told.get("stdin")),
        calls.size(sum(received) if received else None),
    )
    return Call(calls.call_id(told), tuple(map(show, cells)), calls.what(told))
