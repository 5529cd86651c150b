"""What the tests of a VM's settings do again and again."""

from __future__ import annotations

from dataclasses import replace

from pedos_widget.settings.model import Row, Settings, State
from pedos_widget.settings.saving import lasting_identity, load, try_out

from tests.widget.settings_service import STICK, Service, assigned, listed


def usual_service() -> Service:
    """Some devices, of which one is assigned."""
    made = Service()
    made.devices = [
        listed("sys-usb:1-2"),
        listed("sys-usb:1-3", identity="046d:c52b:x:u030101", description="Receiver"),
        listed("dom0:00_1b.0", "pci", identity="8086:2668:x:p040300", description="Audio"),
        listed("sys-usb:sda", "block", identity="::1234", description="Cruzer"),
    ]
    made.stored = {"usb": [assigned(f"sys-usb:1-2:{STICK}", matches=("1-2",))]}
    return made


async def opened(service: Service, vm: str = "work") -> Settings:
    settings = Settings(vm)
    settings.load(await load(service, vm))
    return settings


def row_of(settings: Settings, name: str) -> Row:
    """The row about SOURCE:ID..., by the beginning of its name."""
    (found,) = (each for each in settings.rows if each.shown.name.startswith(name))
    return found


async def add(service: Service, settings: Settings, name: str) -> Row:
    candidate = next(each for each in settings.candidates() if each.name == name)
    lasting = await lasting_identity(service, candidate)
    row = settings.row(settings.add(replace(candidate, lasting=lasting)))
    assert row is not None
    return row


async def tried(service: Service, settings: Settings) -> None:
    for row in settings.to_try():
        await try_out(service, settings, row)


def states(settings: Settings) -> dict[str, State]:
    return {row.shown.name: row.state for row in settings.rows}


def nothing() -> None:
    """What is called when a row changed."""
