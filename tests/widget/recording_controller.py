"""A controller that notes what it is told to do, and shows what a test gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pedos_widget.model.view import Action, DeviceRef, DeviceRow, Result, Section, View, VmRow

TITLES = {"block": "Block devices", "mic": "Microphones", "usb": "USB devices"}


def vm_row(vm: str, action: Action = Action.ATTACH, **changes: object) -> VmRow:
    row = VmRow(
        vm=vm, action=action, text=vm, enabled=True, bold=False, detail="", is_ask=False,
        is_again=False,
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


VMS = tuple(vm_row(name) for name in ("personal", "untrusted", "work"))


def device_row(device: str, device_class: str = "block", **changes: object) -> DeviceRow:
    ref = DeviceRef(device_class, "sys-usb", device, f"identity-of-{device}")
    row = DeviceRow(
        ref=ref, text=f"sys-usb:{device} Stick", spoken=f"sys-usb:{device} Stick", bold=False,
        indent=0, icon="disk", search=f"sys-usb:{device} stick", enabled=True, detail="", vms=VMS,
        note="",
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


def view_of(*rows: DeviceRow, **changes: object) -> View:
    sections = tuple(
        Section(name, title, tuple(row for row in rows if row.ref.device_class == name), "None.")
        for name, title in TITLES.items()
    )
    view = View(connected=True, status="", sections=sections, attached=0, generation=1)
    return replace(view, **changes)  # type: ignore[arg-type]


class RecordingController:
    def __init__(self, *rows: DeviceRow) -> None:
        self.view = view_of(*rows)
        self.openings = 0
        self.calls: list[tuple[str, DeviceRef, str | None]] = []
        self._changed: list[Callable[[], None]] = []
        self._results: list[Callable[[Result], None]] = []

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._changed.append(callback)
        return lambda: self._changed.remove(callback)

    def on_result(self, callback: Callable[[Result], None]) -> None:
        self._results.append(callback)

    def opened(self) -> None:
        self.openings += 1

    def look(self, ref: DeviceRef) -> None:
        self.calls.append(("look", ref, None))

    def attach(self, ref: DeviceRef, vm: str) -> None:
        self.calls.append(("attach", ref, vm))

    def detach(self, ref: DeviceRef, vm: str) -> None:
        self.calls.append(("detach", ref, vm))

    @property
    def done(self) -> list[tuple[str, DeviceRef, str | None]]:
        return [call for call in self.calls if call[0] != "look"]

    def show(self, *rows: DeviceRow, **changes: object) -> None:
        generation = self.view.generation + 1
        self.view = view_of(*rows, **{"generation": generation, **changes})
        for callback in self._changed:
            callback()

    def tell(self, ref: DeviceRef, vm: str, verb: str, state: str, reason: str = "") -> None:
        for callback in self._results:
            callback(Result(ref=ref, vm=vm, verb=verb, state=state, reason=reason))

    def rows(self) -> Sequence[DeviceRow]:
        return [row for section in self.view.sections for row in section.rows]
