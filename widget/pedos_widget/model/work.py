"""Clicks that are being carried out: one at a time a device, and each ends in one result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..i18n import _
from .picture import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pedos_protocol.messages import Listed

    from .picture import Picture
    from .view import DeviceRef

    Verb = Literal["attach", "detach"]

OWN_S = 5.0
"""Seconds after a result in which its change is told at the latest, and is this user's own doing.
Both come from the same service, in milliseconds."""


_UNDONE: Mapping[Verb, Verb] = {"attach": "detach", "detach": "attach"}


@dataclass(frozen=True, slots=True)
class Work:
    """One click."""

    ref: DeviceRef
    vm: str
    verb: Verb

    def is_shown(self, device: Listed) -> bool:
        """Whether the device is as it is to be afterwards: the change comes before the result."""
        return any(each.vm == self.vm for each in device.attachments) == (self.verb == "attach")


def key_of(ref: DeviceRef) -> Key:
    """Where the device was when it was shown."""
    return Key(ref.device_class, ref.backend, ref.device)


class Works:
    """What is being done. Times are of the clock of the one who asks, in seconds."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Work] = {}
        # Changes that will be this user's own doing, and until when.
        self._expected: dict[tuple[Key, str, Verb], float] = {}

    def of(self, key: Key) -> Work | None:
        """The work on that device."""
        return self._by_key.get(key)

    def keys(self) -> Iterable[Key]:
        """The devices that something is being done with."""
        return self._by_key.keys()

    def begin(self, work: Work, picture: Picture) -> str | None:
        """Note that it begins; or return why it cannot, as a sentence."""
        key = key_of(work.ref)
        if (why := why_not(work.ref, picture)) is not None:
            return why
        if key in self._by_key:
            return _("Another request for {device} is not finished yet.").format(
                device=name_of(key)
            )
        self._by_key[key] = work
        self._expected[key, work.vm, work.verb] = float("inf")
        self._expected[key, work.vm, _UNDONE[work.verb]] = float("inf")
        return None

    def end(self, work: Work, now: float, *, is_done: bool) -> None:
        """Note that it has its result."""
        key = key_of(work.ref)
        if self._by_key.get(key) is work:
            del self._by_key[key]
        # What fails half-way is undone, and the result has said so.
        for verb, is_to_come in ((work.verb, is_done), (_UNDONE[work.verb], not is_done)):
            expected = (key, work.vm, verb)
            if expected in self._expected:
                self._expected[expected] = now + OWN_S if is_to_come else now

    def is_own(self, key: Key, vm: str, verb: Verb, *, now: float) -> bool:
        """Whether that change is what this user asked for; asked once for each change."""
        self._expected = {each: end for each, end in self._expected.items() if end > now}
        return self._expected.pop((key, vm, verb), None) is not None


def why_not(ref: DeviceRef, picture: Picture) -> str | None:
    """Why nothing can be done with the device that was shown, as a sentence; None if it can."""
    key = key_of(ref)
    device = picture.devices.get(key)
    if device is None or not device.present:
        return _("{device} is not there any more.").format(device=name_of(key))
    if device.identity != ref.identity:
        return _("Another device has become {device} meanwhile. Look at it again.").format(
            device=name_of(key)
        )
    return None


def name_of(key: Key) -> str:
    """SOURCE:ID, as people and commands name a device."""
    return f"{key.backend}:{key.device}"
