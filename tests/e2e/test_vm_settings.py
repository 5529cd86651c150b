"""The settings of a VM, read, tried and saved with a real service: what the window shows is so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pedos_cli.client import Unreachable
from pedos_widget.settings.model import Row, Settings, State
from pedos_widget.settings.saving import lasting_identity, load, save, try_out

from .conftest import needs_fuse
from .system import LocalSystem

pytestmark = needs_fuse

IDENTITY = "0781:5567:4C53"
NAME = f"sys-usb:one.img:{IDENTITY}"
CONTENT = os.urandom(1 << 16)


class Caller:
    """Stands where the widget's controller does."""

    def __init__(self, system: LocalSystem) -> None:
        self._system = system

    async def call(
        self, method: str, params: dict[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        with self._system.client() as client:
            return client.call(method, params, timeout_s)


@pytest.fixture
def caller(system: LocalSystem) -> Iterator[Caller]:
    try:
        system.put("sys-usb", "one.img", CONTENT, IDENTITY)
    except OSError as error:
        pytest.skip(f"no extended attributes in {system.folder}: {error.strerror}")
    system.wait_until(lambda: "sys-usb:one.img" in system.devices(), "it is listed")
    yield Caller(system)
    system.ok("qvm-block", "unassign", "work")
    system.detach_all("work")
    system.device_file("sys-usb", "one.img").unlink()
    # Else the next test could find it listed still, and then gone.
    system.wait_until(lambda: "sys-usb:one.img" not in system.devices(), "it is gone")


def nothing() -> None:
    """What is called when a row changed."""


async def opened(caller: Caller) -> Settings:
    settings = Settings("work")
    settings.load(await load(caller, "work"))
    assert settings.troubles == ()
    return settings


async def with_stick(caller: Caller) -> tuple[Settings, int]:
    """The settings, to which the stick was added in the window."""
    settings = await opened(caller)
    (candidate,) = (each for each in settings.candidates() if each.name == "sys-usb:one.img")
    lasting = await lasting_identity(caller, candidate)
    return settings, settings.add(replace(candidate, lasting=lasting))


def row(settings: Settings) -> Row:
    (found,) = settings.rows
    return found


async def test_what_the_dry_run_says_happens_once_it_is_saved(
    system: LocalSystem, caller: Caller
) -> None:
    settings, key = await with_stick(caller)
    assert row(settings).shown.name == NAME
    await try_out(caller, settings, row(settings))
    then = "sys-usb:one.img is present, and would be attached to work at once"
    assert settings.lines(row(settings))[-1] == then
    assert system.attached_to("sys-usb:one.img") == []
    assert "no block device is assigned" in system.run("qvm-block", "list", "-s").stderr
    await save(caller, settings, nothing)
    assert settings.is_saved
    system.wait_until(lambda: system.attached_to("sys-usb:one.img") == ["work"], "work has it")
    settings.load(await load(caller, "work"))
    assert settings.lines(row(settings)) == ["attached"]

    settings.change(key, row(settings).shown.with_option("read-only", "yes"))
    assert settings.lines(row(settings)) == [
        "Its options change when it is attached the next time."
    ]
    settings.change(key, settings.choices(row(settings))["device"])
    await try_out(caller, settings, row(settings))
    await save(caller, settings, nothing)
    assert system.ok("qvm-block", "list", "-s").split() == [
        f"sys-usb:*:{IDENTITY}", "work", "auto-attach", "read-only=yes", "attached", "(one.img)",
    ]  # fmt: skip

    settings.load(await load(caller, "work"))
    settings.remove(key)
    stays = "sys-usb:one.img stays attached to work until it is detached"
    assert settings.lines(row(settings)) == [stays]
    await save(caller, settings, nothing)
    assert settings.rows == []
    assert system.attached_to("sys-usb:one.img") == ["work"]


async def test_what_the_service_refuses_is_not_saved_and_says_why(
    system: LocalSystem, caller: Caller
) -> None:
    settings, key = await with_stick(caller)
    wish = replace(row(settings).shown.with_option("frontend-dev", "xvda"), mode="required")
    settings.change(key, wish)
    await try_out(caller, settings, row(settings))
    (why,) = settings.lines(row(settings))
    await save(caller, settings, nothing)
    assert row(settings).state is State.FAILED and row(settings).problem == why
    settings.change(key, row(settings).shown.with_option("frontend-dev", None))
    await save(caller, settings, nothing)
    assert settings.is_saved


async def test_a_killed_service_loses_nothing_of_what_is_edited(
    system: LocalSystem, caller: Caller
) -> None:
    settings, _key = await with_stick(caller)
    for pid in system.victim("dom0"):
        os.kill(pid, signal.SIGKILL)
    await save(caller, settings, nothing)

    def is_back() -> bool:
        try:
            return "sys-usb:one.img" in system.devices()
        except Unreachable:
            return False

    system.wait_until(is_back, "the service is back")
    settings.load(await load(caller, "work"))
    assert row(settings).shown.name == NAME
    await save(caller, settings, nothing)
    assert settings.is_saved
    assert NAME in system.ok("qvm-block", "list", "-s")
