"""Where tasks wait to be woken, for the many places at which there is mostly none."""

from __future__ import annotations

import trio


class Parking:
    """trio's parking lot, made when the first task comes and given up when the last one goes: an
    empty one has a quarter of a KiB, and each peer has six."""

    __slots__ = ("lot",)

    def __init__(self) -> None:
        #: None where no task has been for a while: faster to look at than whether one waits.
        self.lot: trio.lowlevel.ParkingLot | None = None

    def __bool__(self) -> bool:
        """Whether a task waits."""
        return self.lot is not None and bool(self.lot)

    async def park(self) -> None:
        """Waits for `unpark`."""
        if self.lot is None:
            self.lot = trio.lowlevel.ParkingLot()
        lot = self.lot
        try:
            await lot.park()
        finally:
            if not lot and self.lot is lot:
                self.lot = None

    def unpark(self, count: int = 1) -> int:
        """Wakes so many of those that wait, the first ones first; returns how many there were."""
        return 0 if self.lot is None else len(self.lot.unpark(count=count))

    def unpark_all(self) -> None:
        """Wakes all."""
        if self.lot is not None:
            self.lot.unpark_all()
