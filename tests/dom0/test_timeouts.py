"""A command waits longer than the service can take, so it never gives up a running operation."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from pedos_agent.device_classes.block import xen_block as agents_xen_block
from pedos_agent.device_classes.block.reserve import RESERVE_SECONDS
from pedos_cli import timeouts
from pedos_dom0.access.questions import ASK_TIMEOUT
from pedos_dom0.attachments.fresh import KNOWN_TIMEOUT
from pedos_dom0.attachments.muting import MUTE_TIMEOUT
from pedos_dom0.attachments.reconcile import SETTLE_TIMEOUT
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.attachments.transaction import EXPORT_TIMEOUT, IMPORT_TIMEOUT
from pedos_dom0.drivers import local
from pedos_dom0.drivers.xen import block as xen_block
from pedos_dom0.drivers.xen import driver as xen
from pedos_dom0.local.bringup import VM_START_TIMEOUT
from pedos_dom0.requests.sleep import RETURN_SECONDS, WAKE_SECONDS
from pedos_dom0.tables.agents import AGENT_GRACE
from pedos_host.in_time import ANSWER_SECONDS
from pedos_protocol.events import DEADLINE_MS_MAX

ASK = ASK_TIMEOUT
FIND = AGENT_GRACE + SETTLE_TIMEOUT + KNOWN_TIMEOUT


class Steps(NamedTuple):
    """What each takes at worst, in seconds."""

    attach: float
    detach: float
    start: float
    shutdown: float
    destroy: float


AGENTS_ATTACH = EXPORT_TIMEOUT + IMPORT_TIMEOUT
AGENTS_DETACH = 2 * STOP_TIMEOUT
# That a domain is cleared away is waited for, done by ourselves, and waited for again.
CLEARED = xen.CLEAR_SECONDS + xen.DESTROY_SECONDS + xen.CLEAR_SECONDS

PROCESSES = Steps(
    AGENTS_ATTACH,
    AGENTS_DETACH,
    local.START_TIMEOUT + local.BOOT_TIMEOUT,
    local.SHUTDOWN_TIMEOUT,
    2 * local.SHUTDOWN_TIMEOUT,
)
ON_XEN = Steps(
    AGENTS_ATTACH + xen_block.ATTACH_SECONDS + xen_block.SETTLE_SECONDS,
    AGENTS_DETACH + 2 * (xen_block.DETACH_SECONDS + xen_block.SETTLE_SECONDS),
    xen.CREATE_SECONDS + xen.QUICK_SECONDS + xen.BOOT_SECONDS,
    xen.QUICK_SECONDS + xen.SHUTDOWN_SECONDS + CLEARED,
    xen.DESTROY_SECONDS + CLEARED,
)

on_both = pytest.mark.parametrize("steps", [PROCESSES, ON_XEN], ids=["processes", "xen"])


@on_both
def test_an_attach_that_fails_in_every_step_is_waited_for(steps: Steps) -> None:
    assert 2 * FIND + 2 * ASK + steps.attach + steps.detach < timeouts.ATTACH_S


@on_both
def test_a_detach_of_vms_that_hang_is_waited_for(steps: Steps) -> None:
    assert SETTLE_TIMEOUT + ASK + steps.detach < timeouts.DETACH_S


def test_a_mute_that_sources_do_not_confirm_is_waited_for() -> None:
    assert SETTLE_TIMEOUT + 2 * MUTE_TIMEOUT < timeouts.MUTE_S


def test_an_assignment_that_takes_long_is_waited_for() -> None:
    # On Xen the VM's own disks are looked at.
    assert 2 * FIND + ASK + xen.QUICK_SECONDS < timeouts.ASSIGN_S
    assert ASK < timeouts.UNASSIGN_S


def test_the_machine_sleeps_before_a_vm_that_hangs_has_answered() -> None:
    assert timeouts.SUSPEND_S < STOP_TIMEOUT


@on_both
def test_devices_that_come_back_late_are_waited_for(steps: Steps) -> None:
    attach = 2 * FIND + 2 * ASK + steps.attach + steps.detach
    assert WAKE_SECONDS + RETURN_SECONDS + attach < timeouts.RESUME_S


def start_that_fails_at_its_end(steps: Steps) -> float:
    begin = FIND + ASK + steps.start + steps.attach
    # Who uses what it lends is asked before it is shut down and before it is destroyed.
    stop = 2 * STOP_TIMEOUT + steps.detach + steps.shutdown
    undo = stop + steps.detach + steps.destroy + steps.detach
    return begin + undo


@on_both
def test_a_start_that_fails_at_its_end_is_waited_for(steps: Steps) -> None:
    assert start_that_fails_at_its_end(steps) < timeouts.START_S


def test_a_system_that_comes_up_waits_for_a_start_that_fails_at_its_end() -> None:
    assert start_that_fails_at_its_end(PROCESSES) < VM_START_TIMEOUT


@on_both
def test_a_shutdown_of_vms_that_hang_is_waited_for(steps: Steps) -> None:
    assert STOP_TIMEOUT + steps.detach + steps.shutdown + steps.detach < timeouts.SHUTDOWN_S


def test_a_request_may_carry_as_long_as_a_command_waits() -> None:
    waits = {name: seconds for name, seconds in vars(timeouts).items() if name.endswith("_S")}
    assert waits
    too_long = {name for name, seconds in waits.items() if seconds * 1000 > DEADLINE_MS_MAX}
    assert not too_long


def test_an_agent_of_local_mode_answers_before_dom0_gives_it_up() -> None:
    assert ANSWER_SECONDS + RESERVE_SECONDS < EXPORT_TIMEOUT


def test_an_agent_on_xen_answers_before_dom0_gives_it_up() -> None:
    lend = agents_xen_block.BACKEND_GONE_SECONDS
    to_release = agents_xen_block.QUIET_LOOKS * agents_xen_block.LOOK_SECONDS
    assert 1 + lend < EXPORT_TIMEOUT
    assert 1 + agents_xen_block.APPEAR_SECONDS < IMPORT_TIMEOUT
    assert 1 + to_release < STOP_TIMEOUT
