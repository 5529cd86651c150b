"""A lost system fails its own test at once, and no other test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import KeptSystem, Prepare, needs_fuse
from .faults import FaultController
from .system import PATIENCE_S, LocalSystem, wait_until

pytestmark = needs_fuse


@pytest.fixture
def braked(tmp_path: Path) -> Iterator[LocalSystem]:
    """A system that gives up a program that dies once."""
    local = LocalSystem(tmp_path / "system", is_warm=True)
    local.init(restarts=0)
    try:
        local.up()
        yield local
    finally:
        if local.is_up:  # the test has failed before its end, or the system has not come up in time
            local.kill()


def test_a_given_up_service_ends_the_machine_and_every_wait_for_it_at_once(
    braked: LocalSystem,
) -> None:
    (service,) = braked.victim("dom0")
    os.kill(service, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(AssertionError, match="never: the service is back"):
        braked.wait_until(lambda: False, "the service is back")
    assert time.monotonic() - begun < PATIENCE_S
    assert braked.wait() == 1
    assert braked.processes() == []
    assert "dom0's service does not run any more: going down" in braked.log()


def test_a_given_up_agent_ends_every_wait_at_once_and_the_others_go_on(braked: LocalSystem) -> None:
    (agent,) = braked.victim("agent:work")
    os.kill(agent, signal.SIGKILL)
    with pytest.raises(AssertionError, match="never: work is back"):
        braked.wait_until(lambda: False, "work is back")
    wait_until(lambda: braked.agents() == {"dom0", "sys-usb", "vault"}, "the others go on")
    assert braked.down() == 0


def test_a_program_that_ends_before_it_is_ready_is_not_waited_for(tmp_path: Path) -> None:
    local = LocalSystem(tmp_path / "system")
    local.init()
    (tmp_path / "system" / "pedos.toml").write_text("broken = ")
    with pytest.raises(AssertionError, match=r"ended with 5\n(?s:.*)not valid TOML"):
        local.up()


def test_the_next_test_after_a_loss_has_a_fresh_system(
    faults: FaultController, prepare: Prepare
) -> None:
    kept = KeptSystem(faults, prepare, is_warm=True)
    first = kept.get()
    assert kept.get() is first
    first.plug("sys-usb", "stick.img", bytes(1 << 16))
    first.ok("qvm-block", "attach", "work", "sys-usb:stick.img")
    kept.drop()
    assert first.processes() == []
    assert first.frontends("work") == []
    second = kept.get()
    try:
        assert second.folder != first.folder
        assert second.devices() == {}
    finally:
        kept.end()
