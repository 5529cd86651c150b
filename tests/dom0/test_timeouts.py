"""A command waits longer than the service can take, so it never gives up what is still going on."""

from __future__ import annotations

from pedos_cli import timeouts
from pedos_dom0.agents import AGENT_GRACE
from pedos_dom0.drivers.local import SHUTDOWN_TIMEOUT, START_TIMEOUT
from pedos_dom0.prompts import ASK_TIMEOUT
from pedos_dom0.reconcile import SETTLE_TIMEOUT
from pedos_dom0.takedown import STOP_TIMEOUT
from pedos_dom0.transaction import EXPORT_TIMEOUT, IMPORT_TIMEOUT
from pedos_dom0.vmstart import BOOT_TIMEOUT

ASK = ASK_TIMEOUT
FIND = AGENT_GRACE + SETTLE_TIMEOUT
ATTACH = EXPORT_TIMEOUT + IMPORT_TIMEOUT
DETACH = 2 * STOP_TIMEOUT


def test_an_attach_that_fails_in_every_step_is_waited_for() -> None:
    assert timeouts.ATTACH_S > 2 * FIND + 2 * ASK + ATTACH + DETACH


def test_a_detach_of_vms_that_hang_is_waited_for() -> None:
    assert timeouts.DETACH_S > SETTLE_TIMEOUT + ASK + DETACH


def test_a_start_that_fails_at_its_end_is_waited_for() -> None:
    begin = FIND + ASK + START_TIMEOUT + BOOT_TIMEOUT + ATTACH
    undo = DETACH + DETACH + 2 * SHUTDOWN_TIMEOUT
    assert begin + undo < timeouts.START_S


def test_a_shutdown_of_vms_that_hang_is_waited_for() -> None:
    assert timeouts.SHUTDOWN_S > DETACH + SHUTDOWN_TIMEOUT + DETACH
