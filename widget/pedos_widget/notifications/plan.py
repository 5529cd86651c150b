"""Which notifications there are, and when. No I/O; times are of any one clock.

A device has one notification, which is replaced in place: plugged in, then attached. A stick with
its disk and partitions is one device here until something of it is attached. What the user just did
in the widget says nothing, unless it takes a while or does not succeed. Many at once become one.
A VM can make devices come and go at will, so what is shown of them is bounded per time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pedos_protocol.names import printable_text

from pedos_widget.i18n import _, ngettext

if TYPE_CHECKING:
    from pedos_widget.model.view import DeviceRef, Happened, Result

# Seconds for which news are held: a stick, its disk and its partitions appear one after another,
# and an assigned device is attached right after that.
SETTLE_S: Final = 0.7
# Seconds that what the user does may take before it is worth a word.
SLOW_S: Final = 1.0
# Notifications of one kind about single devices within BURST_S seconds: as many as a person reads.
# What exceeds them is counted, in one that is replaced at most every BURST_GAP_S seconds.
SINGLES_MAX: Final = 4
BURST_S: Final = 10.0
BURST_GAP_S: Final = 5.0
# News that are held; more are only counted. Devices come 200 at a time on a large machine.
HELD_MAX: Final = 256
# Devices of one family whose disappearance is noted while news of them are held.
FAMILY_MAX: Final = 64
# VMs that get or lose a microphone at once and are named: more than a title holds.
VMS_MAX: Final = 16
# Devices whose notification can still be replaced: more than any screen shows.
IDS_MAX: Final = 128
# What the user has begun and is not done; more are told of when they are done, however fast.
WORKING_MAX: Final = 64
# Devices that a notification about many names.
NAMED_MAX: Final = 4

TITLE_MAX: Final = 100
BODY_MAX: Final = 200
"""Characters; daemons cut them in their own ways, and not all at a place that can be read."""
_TEXT_MAX = 80  # of the device in a body that also has a reason

KINDS: Final = ("appeared", "attached", "detached")

Key = Hashable


@dataclass(frozen=True, slots=True)
class Note:
    """A notification about `key`, in plain text. It takes the place of the one before about `key`,
    or, if there is none, of that about `instead_of`."""

    key: Key
    title: str
    body: str
    category: str  # of the desktop notifications' specification
    instead_of: Key | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """The notification that the daemon shows under this id is not true any more."""

    number: int


@dataclass(slots=True)
class _Held:
    kind: str
    due: float
    text: str
    family: DeviceRef
    vms: dict[str, str] = field(default_factory=dict)  # and what became of each, the last last
    refs: set[DeviceRef] = field(default_factory=set)  # of the family, that have appeared


@dataclass(slots=True)
class _Working:
    result: Result
    since: float
    is_told: bool = False


@dataclass(slots=True)
class _Burst:
    """Of one kind: when single ones were told, and what the notification about many says."""

    singles: deque[float] = field(default_factory=lambda: deque(maxlen=SINGLES_MAX))
    count: int = 0
    uncounted: int = 0  # that were not held
    names: deque[str] = field(default_factory=lambda: deque(maxlen=NAMED_MAX))
    told_at: float | None = None


class Plan:
    """Takes in what happened, and says what to tell now, and when to ask again."""

    def __init__(self) -> None:
        self._held: dict[Key, _Held] = {}
        self._bursts = {kind: _Burst() for kind in KINDS}
        self._working: dict[DeviceRef, _Working] = {}
        self._now: list[Note | Close] = []
        self._ids: dict[Key, int] = {}  # the last told are the last
        self._on_its_way: dict[Key, bool] = {}  # to the daemon; is it still true?
        self.generation = 0

    # What comes in

    def happened(self, happened: Happened, now: float) -> None:
        """Takes in news of a device."""
        if happened.kind == "gone":
            self._gone(happened)
        elif happened.kind in KINDS and not happened.own:
            self._hold(happened, now)

    def result(self, result: Result, now: float) -> None:
        """Takes in the state of something that the user does."""
        if result.state == "working":
            if len(self._working) < WORKING_MAX:
                self._working[result.ref] = _Working(result, now)
            return
        working = self._working.pop(result.ref, None)
        is_quick = working is not None and not working.is_told and now < working.since + SLOW_S
        if result.state != "done" or not is_quick:
            self._now.append(_result_note(result))
        else:
            self._close(result.ref)  # that it had failed before, say

    # What is to be told

    def due(self, now: float) -> list[Note | Close]:
        """What to tell now, in this order."""
        told, self._now = self._now, []
        for ref, working in self._working.items():
            if not working.is_told and now >= working.since + SLOW_S:
                working.is_told = True
                told.append(_result_note(working.result, key=ref))
        for kind, burst in self._bursts.items():
            told += self._due_of_kind(kind, burst, now)
        self._on_its_way |= {each.key: True for each in told if isinstance(each, Note)}
        return told

    def wake_at(self) -> float | None:
        """When `due` has something to tell if nothing more comes in; None: never."""
        if self._now:
            return 0.0
        times = [each.since + SLOW_S for each in self._working.values() if not each.is_told]
        for kind, burst in self._bursts.items():
            due = [each.due for each in self._held.values() if each.kind == kind]
            if due or burst.uncounted:
                first = min(due, default=0.0)
                times.append(first if burst.told_at is None else max(first, _again_at(burst)))
        return min(times, default=None)

    # The ids that the daemon has given

    def replaces(self, note: Note) -> int:
        """The id of the notification whose place this one takes; 0 if there is none."""
        other = 0 if note.instead_of is None else self._ids.pop(note.instead_of, 0)
        return self._ids.get(note.key, 0) or other

    def posted(self, key: Key, number: int, generation: int) -> None:
        """The daemon shows the notification about `key` under this id, or does not (0).
        `generation` is the one in which it was asked to. To be called for each that was due."""
        is_true = self._on_its_way.pop(key, True)
        if not number or generation != self.generation:
            return
        self._ids.pop(key, None)
        if not is_true:
            self._now.append(Close(number))
        else:
            self._ids[key] = number
        while len(self._ids) > IDS_MAX:
            del self._ids[next(iter(self._ids))]

    def closed(self, number: int) -> None:
        """The daemon does not show it any more: the id may be another's by now."""
        for key in [key for key, shown in self._ids.items() if shown == number]:
            del self._ids[key]

    def forget(self) -> None:
        """Another daemon, or none, is there: ids were those of the one before."""
        self._ids.clear()
        self._now = [each for each in self._now if isinstance(each, Note)]
        self.generation += 1

    # Internals

    def _hold(self, happened: Happened, now: float) -> None:
        family = happened.family or happened.ref
        has_appeared = happened.kind == "appeared"
        key = family if has_appeared else happened.ref
        held = self._held.get(key)
        if held is None and len(self._held) >= HELD_MAX:
            self._bursts[happened.kind].uncounted += 1
            return
        if not has_appeared:
            self._forget_appeared(family)  # that it did goes without saying
        elif held is not None and held.kind != "appeared":
            return
        if held is None or held.kind != happened.kind:
            due = now + SETTLE_S if held is None else held.due
            # One VM may get a microphone, or a disk, at the moment at which another one loses it.
            vms = {} if held is None else held.vms
            held = self._held[key] = _Held(happened.kind, due, happened.text, family, vms)
        if not has_appeared or happened.ref == family:
            held.text = happened.text
        if happened.vm is not None:
            held.vms.pop(happened.vm, None)
            held.vms[happened.vm] = happened.kind
            if len(held.vms) > VMS_MAX:
                del held.vms[next(iter(held.vms))]
        if len(held.refs) < FAMILY_MAX:
            held.refs.add(happened.ref)

    def _gone(self, happened: Happened) -> None:
        family = happened.family or happened.ref
        held = self._held.get(family)
        if held is not None:
            held.refs.discard(happened.ref)
        if happened.ref == family or (held is not None and not held.refs):
            self._forget_appeared(family)
        if happened.ref == family:
            self._close(family)

    def _forget_appeared(self, family: DeviceRef) -> None:
        held = self._held.get(family)
        if held is not None and held.kind == "appeared":
            del self._held[family]

    def _close(self, key: Key) -> None:
        if key in self._on_its_way:
            self._on_its_way[key] = False
        elif (number := self._ids.pop(key, 0)) != 0:
            self._now.append(Close(number))

    def _due_of_kind(self, kind: str, burst: _Burst, now: float) -> list[Note | Close]:
        due = [key for key, each in self._held.items() if each.kind == kind and each.due <= now]
        if not due and not burst.uncounted:
            return []
        if burst.told_at is not None and now >= burst.told_at + BURST_S:
            burst.told_at, burst.count = None, 0
            burst.names.clear()
        lately = sum(1 for told_at in burst.singles if now < told_at + BURST_S)
        if burst.told_at is None and not burst.uncounted and lately + len(due) <= SINGLES_MAX:
            burst.singles.extend([now] * len(due))
            return [_single(key, self._held.pop(key)) for key in due]
        if burst.told_at is not None and now < _again_at(burst):
            return []
        burst.count += len(due) + burst.uncounted
        burst.uncounted = 0
        burst.names.extend(self._held.pop(key).text for key in due)
        burst.told_at = now
        return [_many(kind, burst)]


def _again_at(burst: _Burst) -> float:
    assert burst.told_at is not None
    return burst.told_at + BURST_GAP_S


def _single(key: Key, held: _Held) -> Note:
    if held.kind == "appeared":
        return _note(key, _("New device"), held.text, "device.added")
    title, other = (_of_vms(held, each) for each in _first_and_other(held.kind))
    category = "device.added" if held.kind == "attached" else "device.removed"
    return _note(key, title, held.text, category, other, instead_of=held.family)


def _many(kind: str, burst: _Burst) -> Note:
    if kind == "appeared":
        title = ngettext("{count} device appeared", "{count} devices appeared", burst.count)
    elif kind == "attached":
        title = ngettext("{count} device attached", "{count} devices attached", burst.count)
    else:
        title = ngettext("{count} device detached", "{count} devices detached", burst.count)
    each = BODY_MAX // NAMED_MAX - 1
    body = "\n".join(printable_text(name, each) for name in burst.names)
    return Note(kind, title.format(count=burst.count), body, "device")


def _result_note(result: Result, key: Key | None = None) -> Note:
    attaches = result.verb == "attach"
    if result.state == "working":
        title = _("Attaching to {vm}…") if attaches else _("Detaching from {vm}…")
    elif result.state == "done":
        title = _done(attaches)
    elif result.state == "denied":
        title = _("May not be attached to {vm}") if attaches else _("May not be detached from {vm}")
    else:
        title = _("Not attached to {vm}") if attaches else _("Not detached from {vm}")
    failed = result.state in ("failed", "denied")
    category = "device.error" if failed else "device"
    title = title.format(vm=result.vm)
    text = result.text or f"{result.ref.backend}:{result.ref.device}"
    return _note(key or result.ref, title, text, category, result.reason)


def _first_and_other(kind: str) -> tuple[str, str]:
    return ("attached", "detached") if kind == "attached" else ("detached", "attached")


def _of_vms(held: _Held, kind: str) -> str:
    """What became of the VMs to which this happened; "" if to none."""
    names = [vm for vm, each in held.vms.items() if each == kind]
    return _done(kind == "attached").format(vm=", ".join(names)) if names else ""


def _done(attached: bool) -> str:
    return _("Attached to {vm}") if attached else _("Detached from {vm}")


def _note(
    key: Key,
    title: str,
    text: str,
    category: str,
    reason: str = "",
    *,
    instead_of: Key | None = None,
) -> Note:
    if reason:
        text = printable_text(text, _TEXT_MAX)
        body = f"{text}\n{printable_text(reason, BODY_MAX - len(text) - 1)}"
    else:
        body = printable_text(text, BODY_MAX)
    return Note(key, printable_text(title, TITLE_MAX), body, category, instead_of)
