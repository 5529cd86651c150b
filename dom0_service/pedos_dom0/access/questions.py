"""Questions to dom0's user: who can ask, how many may be open, and which answers count.

No I/O and no clock here; `prompters` has those. An answer comes from a program, so only one that
matches the question in every part is a yes.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import SCHEMA, parse_result, to_wire

from pedos_dom0.access.subjects import DeviceSubject, ServiceSubject

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pedos_protocol.messages import Mode

    from pedos_dom0.access.subjects import Subject

# Seconds for dom0's user to read the question and to look at the device.
ASK_TIMEOUT = 60.0
# Open questions of one asker (a VM, root, a user of dom0's desktop): as many as a person can cause
# in a minute. More of them would only bury those of others.
OPEN_PER_ASKER = 4
# Open questions of all askers of a kind: a user does not answer a screen full of them. VMs take no
# places of dom0's user, and the desktop's programs none of root's or of the service's.
OPEN_MAX = {"vm": 32, "desktop": 16}
# Programs that may ask: a widget and some terminals; and those of them that are dom0's desktop's,
# which do not take all places, so that root can always be asked.
PROMPTERS_MAX = 16
DESKTOP_PROMPTERS_MAX = 8
# Seconds for which a VM's question that was not granted is denied instead of asked again: a VM that
# repeats it would wear dom0's user down. The short time is for a withdrawn question: a user who
# tries again does not wait for long, and questions do not flicker.
COOL_DOWN = 30.0
COOL_DOWN_WITHDRAWN = 5.0
# Devices for which one VM has to wait. Beyond this it has to wait for everything; otherwise a VM
# with many devices could still ask without end.
COOLING_MAX = 16

NO_PROMPTER = "no prompter is running to ask dom0's user"
LATE = f"no answer came within {ASK_TIMEOUT:g} s"
ANSWERED = "another prompter has the answer"
ASKER_GONE = "the command that asked has ended"
PROMPTER_GONE = "the prompter went away, and there is no other"
SAID_NO = "dom0's user said no"

P = TypeVar("P")


@frozen
class Question:
    """May `source` have the subject, and from or in which of `candidates`?

    `shown` describes the subject, as it was when the question was made.
    """

    request: str
    source: str
    subject: Subject
    shown: Mapping[str, Any]
    read_only: bool
    candidates: tuple[str, ...]
    default: str | None
    # Who asks, in the audit log; "" for the source.
    asker: str = ""
    # The mode of the assignment that asks; None for a command or program.
    assigned: Mode | None = None

    @property
    def audited(self) -> str:
        return self.asker or self.source

    def params(self, seconds: float) -> dict[str, Any]:
        """The message to a prompter that has so many seconds."""
        said = self.subject.prompt(self.shown, read_only=self.read_only)
        if self.assigned is not None:
            said = {**said, "assigned": self.assigned}
        return to_wire(
            SCHEMA[self.method].params(
                request=self.request,
                source=self.source,
                service=self.subject.service,
                **said,
                candidates=self.candidates,
                default=self.default,
                timeout_s=time_given(seconds),
            )
        )

    @property
    def method(self) -> str:
        """The request with which a prompter is asked it."""
        return self.subject.question

    @property
    def names(self) -> dict[str, str]:
        """The fields that name its subject in the audit log."""
        return {"service": self.subject.service, **self.subject.names}


def time_given(seconds: float) -> int:
    """The whole seconds that a prompter is told; dom0's own clock decides."""
    return max(0, math.ceil(seconds))


@frozen
class Outcome:
    """The outcome of a question: `target` is the chosen VM, None means no. `by` is whose prompter
    answered, in the audit log's words; None if none did."""

    target: str | None
    reason: str
    by: str | None = None

    @property
    def verdict(self) -> str:
        return "deny" if self.target is None else "allow"


class NotNow(Exception):  # noqa: N818 - a state of affairs
    """The question cannot be asked: too many are open, or it was just asked; `str()` says which."""


def judge(question: Question, untrusted_answer: object) -> Outcome:
    """The meaning of an answer. Total: any answer is a yes to one candidate or a no."""
    try:
        answer = parse_result(question.method, untrusted_answer)
    except RemoteProtocolError as error:
        return Outcome(None, f"the prompter's answer is malformed: {error}")
    if answer.verdict != "allow":
        return Outcome(None, SAID_NO)
    if answer.target not in question.candidates:
        named = "no VM" if answer.target is None else answer.target
        return Outcome(None, f"the prompter's answer names {named}, which was not to be chosen")
    return Outcome(answer.target, f"dom0's user chose {answer.target}")


@frozen
class _Registered:
    """The requests by which a prompter can be asked, and whose it is."""

    methods: frozenset[str]
    who: str
    is_desktops: bool


class Prompts(Generic[P]):
    """The prompters, and the number of open questions."""

    def __init__(self) -> None:
        self._prompters: dict[P, _Registered] = {}
        # By the kind of the asker, and its name.
        self._open: Counter[tuple[str, str]] = Counter()

    def register(
        self, prompter: P, *, calls: bool = False, who: str = "", is_desktops: bool = False
    ) -> bool:
        """Makes it one to ask, with `calls` also about calls of services; False if there are too
        many prompters, or too many of dom0's desktop."""
        if self._prompters.pop(prompter, None) is None:
            of_desktop = sum(each.is_desktops for each in self._prompters.values())
            if len(self) >= PROMPTERS_MAX or (is_desktops and of_desktop >= DESKTOP_PROMPTERS_MAX):
                return False
        methods = DeviceSubject.question, *([ServiceSubject.question] if calls else [])
        self._prompters[prompter] = _Registered(frozenset(methods), who, is_desktops)
        return True

    def who(self, prompter: P) -> str | None:
        """Whose it is; None if it is not registered any more."""
        known = self._prompters.get(prompter)
        return None if known is None else known.who

    def unregister(self, prompter: P) -> None:
        """The prompter has gone. Fine if it never was here."""
        self._prompters.pop(prompter, None)

    def able(self, method: str = DeviceSubject.question) -> list[P]:
        """The prompters that can be asked by that request."""
        return [p for p, known in self._prompters.items() if method in known.methods]

    def __len__(self) -> int:
        return len(self._prompters)

    def __iter__(self) -> Iterator[P]:
        return iter(self._prompters)

    def open(self, asker: str, kind: str = "vm") -> None:
        """Opens a question of `asker`, which is of that kind; NotNow if it must not be asked."""
        if self._open[kind, asker] >= OPEN_PER_ASKER:
            raise NotNow(f"{asker} has {OPEN_PER_ASKER} questions open already")
        of_kind = sum(number for (its, _), number in self._open.items() if its == kind)
        if of_kind >= OPEN_MAX.get(kind, OPEN_PER_ASKER):
            raise NotNow(f"{of_kind} questions are open already")
        self._open[kind, asker] += 1

    def close(self, asker: str, kind: str = "vm") -> None:
        """One of its questions has an outcome."""
        self._open[kind, asker] -= 1
        if self._open[kind, asker] <= 0:
            del self._open[kind, asker]

    def standing(self, asker: str | None = None) -> int:
        """The number of open questions, of one asker or of all."""
        return sum(n for (_, its), n in self._open.items() if asker in (None, its))


class CoolDowns:
    """What VMs ask for, or asked for in vain a moment ago: they cannot ask for it again now.

    Times are in seconds of any one clock.
    """

    def __init__(self) -> None:
        self._until: dict[str, dict[object, float]] = {}

    def hold(self, source: str, thing: object, now: float) -> None:
        """A question of `source` about `thing` is to be asked; NotNow if it is too soon for
        that."""
        kept = {it: until for it, until in self._until.pop(source, {}).items() if until > now}
        if kept:
            self._until[source] = kept
        if kept.get(thing) == math.inf:
            raise NotNow(f"{source} is asking for the same already")
        if thing in kept:
            left = math.ceil(kept[thing] - now)
            raise NotNow(f"{source} was not granted it a moment ago, and has to wait {left} s")
        if len(kept) >= COOLING_MAX:
            raise NotNow(f"{source} was not granted {COOLING_MAX} things a moment ago")
        self._until[source] = {**kept, thing: math.inf}

    def release(self, source: str, thing: object, outcome: Outcome | None, now: float) -> None:
        """Its outcome; None if it had none.

        Only a decision of the user, or an act of the VM, is a reason to wait: not the lack of a
        prompter.
        """
        why = None if outcome is None else outcome.reason
        if why in (SAID_NO, LATE):
            self._until[source][thing] = now + COOL_DOWN
        elif why == ASKER_GONE:
            self._until[source][thing] = now + COOL_DOWN_WITHDRAWN
        else:
            del self._until[source][thing]
