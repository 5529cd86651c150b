"""What there is, as the service last told of it: devices and VMs, read and checked one by one.

`pedos_cli.watch_model` folds the answers to `watch.next`; here each device and each VM is parsed by
itself, so that one that this program cannot read costs its own row and nothing else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from pedos_cli.watch_model import Model
from pedos_protocol.fields import parse_message
from pedos_protocol.messages import Listed, VmInfo
from pedos_protocol.names import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Subject = tuple[str, ...]  # class, source and id of a device; the name of a VM alone
    Untrusted = Mapping[str, Any]

T = TypeVar("T", Listed, VmInfo)

ANEW = "anew"
"""No count of changes is called that: the service makes up their names from random digits."""

logger = logging.getLogger(__name__)


class Key(NamedTuple):
    """Where a device is."""

    device_class: str
    backend: str
    device: str


class Change(NamedTuple):
    """A device that is another one than before; None is one that is not there or not readable."""

    key: Key
    before: Listed | None
    now: Listed | None


class Picture:
    """The devices and VMs of one moment, once it `is_complete`. Only `take` changes them."""

    def __init__(self) -> None:
        self.devices: dict[Key, Listed] = {}
        self.vms: dict[str, VmInfo] = {}
        self.is_complete = False
        #: Another number whenever anything is different.
        self.version = 0
        #: Another number whenever there are other devices, or one is a part of another than before.
        self.shape = 0
        self._model = Model()
        self._strange: set[Subject] = set()
        self._nameless = 0
        self._was_complete = False

    @property
    def strange(self) -> int:
        """How many devices and VMs there are that this program cannot read."""
        return len(self._strange) + self._nameless

    def question(self, *, anew: bool = False) -> dict[str, object]:
        """The parameters of the next `watch.next`. `anew`: of one that is answered at once, with
        everything. The service knows no changes of a count that it does not keep, and says so."""
        question = self._model.question(None)
        if anew and question["numbering"] is not None:
            question["numbering"] = ANEW
        return question

    def take(self, untrusted_answer: Untrusted) -> list[Change]:
        """Fold an answer; return which devices have changed, which is nothing when all is told for
        the first time. ProtocolError if the answer as a whole is malformed."""
        was_known, strange = self._was_complete, self.strange
        answer = dict(untrusted_answer)
        if answer.get("gap") is not None or answer.get("numbering") is None:
            self._nameless = 0
        answer["devices"] = self._named(answer.get("devices"), Key._fields, Key._fields)
        answer["vms"] = self._named(answer.get("vms"), ("vm",), ("name",))
        changes: list[Change] = []
        events = self._model.take(answer)
        for event in events:
            kind, _, what = str(event["event"]).partition(".")
            untrusted = cast("dict[str, Any]", event.get(kind))
            if kind == "gap":
                logger.info("some changes were missed: %s", shown(event["reason"]))
                self.is_complete = False
            elif kind == "ready":
                self.is_complete = self._was_complete = True
            elif kind == "vm":
                self._put_vm(untrusted, is_there=what != "removed")
            elif kind == "device":
                changes += self._put_device(untrusted, is_there=what != "removed")
        if events or self.strange != strange:
            self.version += 1
        return changes if was_known else []

    def _put_vm(self, untrusted: dict[str, Any], *, is_there: bool) -> None:
        name = untrusted["name"]
        now = self._read((name,), VmInfo, untrusted if is_there else None)
        if now is None:
            self.vms.pop(name, None)
        else:
            self.vms[name] = now

    def _put_device(self, untrusted: dict[str, Any], *, is_there: bool) -> Iterator[Change]:
        key = Key(*(untrusted[name] for name in Key._fields))
        before, was_strange = self.devices.get(key), key in self._strange
        now = self._read(key, Listed, untrusted if is_there else None)
        if now is None:
            self.devices.pop(key, None)
        else:
            self.devices[key] = now
        if _place_in_family(before) != _place_in_family(now):
            self.shape += 1
        # Of one that could not be read, or cannot any more, it is not known whether it has changed.
        if not was_strange and key not in self._strange and before != now:
            yield Change(key, before, now)

    def _read(self, subject: Subject, kind: type[T], untrusted: dict[str, Any] | None) -> T | None:
        """What the service tells of it, if it is there and can be read."""
        if untrusted is not None:
            try:
                read = parse_message(kind, untrusted)
            except ValueError as error:
                if subject not in self._strange:
                    self._strange.add(subject)
                    name = " ".join(map(shown, subject))
                    logger.warning("%s is left out, because it cannot be read: %s", name, error)
                return None
            self._strange.discard(subject)
            return cast("T", read)
        self._strange.discard(subject)
        return None

    def _named(
        self, untrusted_changes: object, keys: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Any]] | object:
        """The changes that say of what they are. What is told of one bears its own names then: it
        is reduced to these if it calls itself otherwise, and so will not be readable."""
        if not isinstance(untrusted_changes, list):
            return untrusted_changes
        named = []
        for each in untrusted_changes:
            if not _is_change(each, keys):
                self._nameless += 1
                if self._nameless == 1:
                    logger.warning("a change is left out, because it does not say of what it is")
                continue
            own = {name: each[key] for name, key in zip(names, keys, strict=True)}
            now = each.get("now")
            if now is not None and not (isinstance(now, dict) and own.items() <= now.items()):
                each = each | {"now": own}  # noqa: PLW2901
            named.append(each)
        return named


def _is_change(untrusted: object, keys: Sequence[str]) -> bool:
    return (
        isinstance(untrusted, dict)
        and type(untrusted.get("number")) is int
        and all(type(untrusted.get(key)) is str for key in keys)
    )


def _place_in_family(device: Listed | None) -> tuple[str | None, str | None] | None:
    return None if device is None else (device.parent, device.parent_class)
