"""`pedos-local up` says "everything is up" only when it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio.testing
from pedos_dom0.local import bringup
from pedos_dom0.local.config import Config, Sound, VmConfig
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.verbs import _how_much_is_up
from pedos_protocol.errors import CallError
from pedos_protocol.messages import parse_params

CONFIG = Config((VmConfig("sys-usb"), VmConfig("work"), VmConfig("vault", autostart=False)))


class Service:
    """dom0's service, of which a test says what is wrong with it."""

    def __init__(self) -> None:
        self.does_not_start: set[str] = set()
        self.silent: set[str] = set()
        self.ends_again: set[str] = set()
        self.policy_ok = True
        self.microphones: list[list[dict[str, Any]]] = []  # one answer after the other
        self._told: set[str] = set()

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if method == "vm.start":
            if params["vm"] in self.does_not_start:
                raise CallError("failed", "no disk", {"hint": "qvm-ls"})
            return {}
        if method == "vm.list":
            names = ("dom0", "sys-usb", "work", "vault")
            return {"vms": [{"name": name, "agent": self._has_agent(name)} for name in names]}
        parse_params(method, params)  # what the real service would not take fails here
        if method == "device.list":
            answer, *rest = self.microphones
            self.microphones = rest or [answer]
            return {"devices": [each for each in answer if each["backend"] in params["vms"]]}
        agents = sorted({"dom0", "sys-usb", "work"} - self.silent)
        return {"agents": agents, "policy": {"ok": self.policy_ok}}

    def _has_agent(self, name: str) -> bool:
        if name in self._told & self.ends_again:
            return False
        self._told.add(name)
        return name not in self.silent | {"vault"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()

    @asynccontextmanager
    async def connected(_layout: Layout) -> AsyncIterator[Service]:
        await trio.lowlevel.checkpoint()
        yield service

    monkeypatch.setattr(bringup, "service", connected)
    return service


async def said(layout: Layout, config: Config = CONFIG) -> list[str]:
    problems = await bringup._autostart(layout, config)
    return _how_much_is_up(bringup.Up(cast(Any, None), tuple(problems)))


async def test_everything_is_up_when_all_have_started_and_reported(
    layout: Layout, service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    assert await said(layout) == ["everything is up; Ctrl-C ends it"]


@pytest.mark.parametrize(
    ("wrong", "value", "lines"),
    [
        ("does_not_start", {"work"}, ["work does not start: no disk", "  try:  qvm-ls"]),
        ("silent", {"work"}, ["work started, but its agent did not report within 15 s"]),
        ("silent", {"dom0"}, ["dom0's own agent did not report, so dom0's devices are missing"]),
        ("ends_again", {"sys-usb"}, ["sys-usb came up, but its agent has ended again"]),
        (
            "policy_ok",
            False,
            ["the policy has an error, and denies everything", "  try:  qvm-policy status"],
        ),
    ],
)
async def test_otherwise_it_is_said_what_is_not_and_why(
    layout: Layout,
    service: Service,
    autojump_clock: trio.testing.MockClock,
    wrong: str,
    value: Any,
    lines: list[str],
) -> None:
    setattr(service, wrong, value)
    first, *rest = await said(layout)
    assert first == "not everything is up; Ctrl-C ends what is:"
    assert rest == [f"  {line}" for line in lines]


SPEAKS = Config((VmConfig("sys-usb", sound=Sound("pipewire", microphone=True)), VmConfig("work")))
BUSY = {"backend": "sys-usb", "device": "mic", "busy": "no sound server runs"}
FREE = {"backend": "sys-usb", "device": "mic"}


async def test_a_microphone_is_waited_for(
    layout: Layout, service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    service.microphones = [[], [BUSY], [BUSY], [FREE]]
    assert await said(layout, SPEAKS) == ["everything is up; Ctrl-C ends it"]
    assert service.microphones == [[FREE]]


async def test_one_that_does_not_come_is_told(
    layout: Layout, service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    service.microphones = [[BUSY]]
    first, what, look = await said(layout, SPEAKS)
    assert first == "not everything is up; Ctrl-C ends what is:"
    assert what == "  not every microphone of sys-usb is there"
    assert look.startswith("    try:  tail ")


async def test_one_whose_vm_did_not_start_is_not_waited_for(
    layout: Layout, service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    service.does_not_start = {"sys-usb"}
    start = trio.current_time()
    assert len(await said(layout, SPEAKS)) == 3
    assert trio.current_time() - start < bringup.REPORT_TIMEOUT
