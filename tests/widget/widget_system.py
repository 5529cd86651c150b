"""The widget's controller against the fake service, on a real socket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio
from pedos_widget.controller import Controller
from pedos_widget.model.view import DeviceRow, Happened, Result, VmRow

from tests.patience import PATIENCE
from tests.widget.fake_service import FakeService, device, vm


class System:
    """Both, and what a window was told."""

    def __init__(self, folder: Path) -> None:
        self.service = FakeService(folder / "dom0.sock")
        self.memory = folder / "state/pedos/widget.json"
        self.controller = Controller(str(self.service.path), memory=self.memory)
        self.results: list[Result] = []
        self.happened: list[Happened] = []
        self.changes = 0
        self.nursery: trio.Nursery | None = None
        self._something = trio.Event()
        self.controller.on_change(self._changed)
        self.controller.on_happened(self._note(self.happened))
        self.controller.on_result(self._note(self.results))

    def _changed(self) -> None:
        self.changes += 1
        self._wake()

    def _note(self, into: list[object]) -> Callable[[object], None]:
        def note(value: object) -> None:
            into.append(value)
            self._wake()

        return note

    def _wake(self) -> None:
        self._something.set()
        self._something = trio.Event()

    async def until(self, is_so: Callable[[], object]) -> None:
        """Returns when it is so."""
        with trio.fail_after(PATIENCE):
            while not is_so():
                await self._something.wait()

    async def service_again(self) -> None:
        """The service that was ended is started again."""
        assert self.nursery is not None
        await self.nursery.start(self.service.serve)

    async def connected(self) -> None:
        await self.until(lambda: self.controller.view.connected)

    def row(self, name: str) -> DeviceRow | None:
        """The row of the device SOURCE:ID."""
        for section in self.controller.view.sections:
            for row in section.rows:
                if f"{row.ref.backend}:{row.ref.device}" == name:
                    return row
        return None

    async def vms(self, name: str) -> tuple[VmRow, ...]:
        """The VMs of a device, after a look."""
        row = self.row(name)
        assert row is not None, name
        self.controller.look(row.ref)
        await self.until(lambda: (found := self.row(name)) and found.vms is not None)
        row = self.row(name)
        assert row is not None
        assert row.vms is not None
        return row.vms

    async def result(self, number: int = 1) -> Result:
        """The `number`th result that is final."""

        def final() -> list[Result]:
            return [each for each in self.results if each.state != "working"]

        await self.until(lambda: len(final()) >= number)
        return final()[number - 1]


@contextlib.asynccontextmanager
async def running(folder: Path, *, is_served: bool = True) -> AsyncIterator[System]:
    """A system with some VMs and a stick, connected; or with no service."""
    system = System(folder)
    system.service.put_vms(vm("dom0"), vm("sys-usb"), vm("work"), vm("vault"))
    system.service.put_vms(vm("off", runs=False))
    system.service.put(device("sys-usb:sda", description="Flash Disk", size=2**30))
    async with trio.open_nursery() as nursery:
        system.nursery = nursery
        if is_served:
            await nursery.start(system.service.serve)
        nursery.start_soon(system.controller.run)
        if is_served:
            await system.connected()
        yield system
        nursery.cancel_scope.cancel()
