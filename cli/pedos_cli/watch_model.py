"""What a watcher knows: the answers to `watch.next` folded into one picture, and what is new in it.

No I/O: a program asks what `question` says, gives the answer to `take`, and shows the events. An
event is a map for people and programs:

- `device.present`, `vm.present`: what there is at the beginning;
- `device.added`, `device.changed`, `device.removed`, and the same for VMs: each with the number of
  the change. `changes` says what has changed: of a device the keys of its map, of a VM words;
- `gap`: some changes were missed, and `reason` says why. The events that follow, up to `ready`, are
  the differences between what was known before and what there is now;
- `ready`: everything up to `number` is shown.
"""

from __future__ import annotations

from pedos_protocol.names import natural_key

from pedos_cli.answers import take, take_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Subject = tuple[str, ...]  # class, source and id of a device; the name of a VM alone
    Map = dict[str, object]
    Event = dict[str, object]


class Model:
    """One watcher's picture. `known` has each device and VM as the service last told of it."""

    def __init__(self) -> None:
        self.known: dict[Subject, Map] = {}
        self._place: Map = {"numbering": None, "number": 0, "begun": 0}
        self._is_first = True
        self._anew: dict[Subject, Map] | None = {}  # everything, as far as it is told

    def question(self, device_class: str | None) -> Map:
        """The parameters of the next request."""
        return {"device_class": device_class, **self._place}

    def take(self, answer: Map) -> list[Event]:
        """Fold an answer; return what is new. ProtocolError if it is malformed."""
        events: list[Event] = []
        if (reason := answer.get("gap")) is not None:
            events.append({"event": "gap", "number": take(answer, "number", int), "reason": reason})
            self._anew = {}
        changes = sorted(_changes(answer), key=lambda each: each[0])
        is_complete = take(answer, "complete", bool)
        self._place = {
            "numbering": take(answer, "numbering", str),
            "number": take(answer, "number", int),
            "begun": take(answer, "begun", int),
        }
        if self._anew is None:
            for number, subject, now in changes:
                events += self._note(number, subject, now)
            return events
        for _, subject, now in changes:
            _put(self._anew, subject, now)
        if is_complete:
            events += self._settle(self._anew)
            self._anew = None
        return events

    def _settle(self, anew: dict[Subject, Map]) -> Iterator[Event]:
        """Everything is told: what is different from what was known, and that this is all."""
        number = take(self._place, "number", int)
        for subject in sorted(self.known.keys() | anew.keys(), key=_in_order):
            yield from self._note(number, subject, anew.get(subject))
        self._is_first = False
        yield {"event": "ready", "number": number, "numbering": self._place["numbering"]}

    def _note(self, number: int, subject: Subject, now: Map | None) -> Iterator[Event]:
        before = self.known.get(subject)
        _put(self.known, subject, now)
        if before == now:
            return
        kind = "vm" if _is_vm(subject) else "device"
        if before is None:
            what = "present" if self._is_first else "added"
        else:
            what = "removed" if now is None else "changed"
        event: Event = {"event": f"{kind}.{what}", "number": number, kind: now or before}
        if before is not None and now is not None:
            event["changes"] = (vm_changes if kind == "vm" else device_changes)(before, now)
        yield event


def device_changes(before: Map, now: Map) -> list[str]:
    """The keys of a device that have other values now, or are new or missing."""
    return [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]


def vm_changes(before: Map, now: Map) -> list[str]:
    """What has happened to a VM, in words."""
    ran, runs = (each.get("state") != "Halted" for each in (before, now))
    changes = []
    if runs and not ran:
        changes.append("started")
    elif ran and not runs:
        changes.append("stopped")
    elif before.get("domid") != now.get("domid"):
        changes.append("restarted")
    elif before.get("state") != now.get("state"):
        changes.append(f"is {str(now.get('state')).lower()}")
    if now.get("agent") and not before.get("agent"):
        changes.append("agent connected")
    elif runs and before.get("agent") and not now.get("agent"):
        changes.append("agent lost")
    return changes


def _changes(answer: Map) -> Iterator[tuple[int, Subject, Map | None]]:
    for each in take_maps(answer, "devices"):
        names = (take(each, key, str) for key in ("device_class", "backend", "device"))
        yield take(each, "number", int), tuple(names), _now(each)
    for each in take_maps(answer, "vms"):
        yield take(each, "number", int), (take(each, "vm", str),), _now(each)


def _now(change: Map) -> Map | None:
    return None if change.get("now") is None else take(change, "now", dict)


def _put(picture: dict[Subject, Map], subject: Subject, now: Map | None) -> None:
    if now is None:
        picture.pop(subject, None)
    else:
        picture[subject] = now


def _in_order(subject: Subject) -> list[object]:
    """VMs first, then devices by class and in natural order."""
    return [len(subject), [natural_key(name) for name in subject]]


def _is_vm(subject: Subject) -> bool:
    return len(subject) == 1
