"""What the policy window shows, made from the service's answers: no Qt, no I/O.

The words are those of the commands `explain`, `qvm-policy status` and `qvm-audit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pedos_cli import audit_text
from pedos_cli.answers import take
from pedos_cli.audit_log import Unread, take_record
from pedos_cli.device_explain import explained
from pedos_cli.devices import device_name
from pedos_cli.output import escaped, show
from pedos_cli.policy_status import status_lines
from pedos_protocol.errors import ProtocolError

from pedos_widget.i18n import _, ngettext

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Answer = Mapping[str, object]

RECENT = 100
"""Lines of the audit log that are asked for: a few screens; `qvm-audit` has the rest."""

CHOICES_MAX = 500
"""Devices to choose from: more than anybody scrolls through. What is left out is counted, and
`explain` takes any."""

AUDIT_HEADER = audit_text.HEADER


@dataclass(frozen=True, slots=True)
class Choice:
    """A device that can be asked about. `text` is harmless."""

    device_class: str
    backend: str
    device: str
    text: str

    @property
    def name(self) -> str:
        """SOURCE:ID."""
        return f"{self.backend}:{self.device}"


@dataclass(frozen=True, slots=True)
class Question:
    """May `source` do that with a device, for `vm`?"""

    verb: str
    device: Choice
    vm: str
    source: str = "dom0"

    @property
    def params(self) -> dict[str, object]:
        """The parameters of `device.explain`."""
        return {
            "verb": self.verb,
            "device_class": self.device.device_class,
            "vm": self.vm,
            "backend": self.device.backend,
            "device": self.device.device,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A line of the audit log: its `cells` under AUDIT_HEADER, and what it says in sentences."""

    cells: tuple[str, ...]
    sentences: str


@dataclass(frozen=True, slots=True)
class Audit:
    """The last lines, the newest first, and what is to be said of them."""

    lines: tuple[AuditLine, ...]
    note: str


def choices(listed: Iterable[Answer]) -> list[Choice]:
    """The devices of answers to `device.list`; ProtocolError if they are none."""
    found = []
    for each in listed:
        device_class = take(each, "device_class", str)
        words = (device_name(each), take(each, "description", str), device_class)
        text = ", ".join(show(word) for word in words if word)
        backend, device = take(each, "backend", str), take(each, "device", str)
        found.append(Choice(device_class, backend, device, text))
    return found


def left_out(found: list[Choice]) -> str:
    """How many devices are not among those to choose from; "" if all are."""
    count = len(found) - CHOICES_MAX
    if count <= 0:
        return ""
    text = ngettext(
        "{n} more device is not in the list: qvm-device CLASS explain takes it.",
        "{n} more devices are not in the list: qvm-device CLASS explain takes them.",
        count,
    )
    return text.format(n=count)


def explanation(question: Question, answer: Answer) -> list[str]:
    """The decision: the verdict first, then the rule, why, and every rule that was tried."""
    who = "" if question.source == "dom0" else f" (asked by {question.source})"
    verdict = take(answer, "verdict", str)
    lines = [f"{show(verdict)}: {question.verb} {question.device.name} -> {question.vm}{who}"]
    lines += (f"  {each}" for each in explained(answer, question.vm, trace=True))
    return [escaped(each) for each in lines]


def status(answer: Answer) -> list[str]:
    """What is in force, and each error with its place, its line and its correction."""
    return [escaped(each) for each in status_lines(answer, "utf-8")]


def audit(answer: Answer) -> Audit:
    """An answer to `audit.recent`. A line that is no record is counted and hides no other."""
    unread = Unread()
    lines = []
    for each in take(answer, "lines", list):
        if not isinstance(each, str):
            raise ProtocolError("the service's answer has no proper 'lines'")
        record = take_record(each.encode(), unread)
        if record is not None:
            cells = tuple(show(cell) for cell in audit_text.row(record))
            lines.append(AuditLine(cells, "\n".join(map(escaped, audit_text.sentences(record)))))
    notes = []
    if unread.lines:
        text = ngettext("{n} line cannot be read.", "{n} lines cannot be read.", unread.lines)
        notes.append(text.format(n=unread.lines))
    if answer.get("more") is True:
        notes.append(_("There are earlier ones: qvm-audit shows them."))
    if not lines and not notes:
        notes.append(_("There is none yet."))
    return Audit(tuple(reversed(lines)), " ".join(notes))
