"""The answers to `device.targets`: for the devices whose lists of VMs were opened lately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pedos_protocol.messages import TargetsTold

    from .view import DeviceRef

LOOKS_MAX = 32
"""Answers that are kept: nobody opens more lists within one look at the menu."""

LOOK_S = 60.0
"""Seconds for which the list that was opened last is kept up to date: a menu closes itself after so
long without a hand on it."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the service said of one device: `told`, or `why` it could not say, as a sentence.
    `may_try`: only because it is older than the question, and an attach can be tried."""

    told: TargetsTold | None
    why: str = ""
    may_try: bool = False


class Looks:
    """By the device as it was shown. What is not the latest look is dropped with any change,
    because it may be true no longer."""

    def __init__(self) -> None:
        self._by_ref: dict[DeviceRef, Look] = {}
        self._latest: tuple[DeviceRef, float] | None = None

    def __len__(self) -> int:
        return len(self._by_ref)

    def of(self, ref: DeviceRef) -> Look | None:
        """The answer, if there is one."""
        return self._by_ref.get(ref)

    def begin(self, ref: DeviceRef, now: float) -> None:
        """This list of VMs has been opened at `now`."""
        self._latest = ref, now

    def put(self, ref: DeviceRef, look: Look) -> None:
        """The answer has come."""
        self._by_ref.pop(ref, None)
        self._by_ref[ref] = look
        while len(self._by_ref) > LOOKS_MAX:
            del self._by_ref[next(iter(self._by_ref))]

    def changed(self, now: float) -> DeviceRef | None:
        """Something is different; return which device is to be asked about again, if any."""
        latest = self._latest
        if latest is not None and now - latest[1] > LOOK_S:
            latest = self._latest = None
        if latest is None:
            self._by_ref.clear()
            return None
        self._by_ref = {ref: look for ref, look in self._by_ref.items() if ref == latest[0]}
        return latest[0]

    def clear(self) -> None:
        """Nothing is known any more."""
        self._by_ref.clear()
