"""Where tasks wait to be woken, for the many places at which there is mostly none."""

from __future__ import annotations

import trio


class Parking:
    """trio's parking lot, made when the first task comes and given up when the last one goes: an
    empty one has a quarter of a KiB, and each peer has six."""

    __slots__ = ("_lot",)

    def __init__(self) -> None:
        self._lot: trio.lowlevel.ParkingLot | None = None

    def __bool__(self) -> bool:
        """Whether a task waits."""
        return self._lot is not None and bool(self._lot)

    async def park(self) -> None:
        """Waits for `unpark`."""
        if self._lot is None:
            self._lot = trio.lowlevel.ParkingLot()
        lot = self._lot
        try:
            await lot.park()
        finally:
            if not lot and self._lot is lot:
                self._lot = None

    def unpark(self, count: int = 1) -> int:
        """Wakes so many of those that wait, the first ones first; returns how many there were."""
        return 0 if self._lot is None else len(self._lot.unpark(count=count))

    def unpark_all(self) -> None:
        """Wakes all."""
        if self._lot is not None:
            self._lot.unpark_all()
