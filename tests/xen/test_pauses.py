"""A pause is no hang: VMs that are paused, and a host that sleeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .driving import holders, wait_for
from .image import HANG_SECONDS

if TYPE_CHECKING:
    from .bench import Bench

PAUSE_SECONDS = HANG_SECONDS * 3 // 2
UNITS = {"dom0": "pedos-dom0 pedos-dom0-agent", "sys-usb": "pedos-agent", "work": "pedos-agent"}
GUESTS = ("sys-usb", "work")

SIGNAL = f"systemctl kill --kill-whom=main -s {{}} {UNITS['dom0']}"
# In dom0, which cannot sleep here, its programs are stopped. `work` is paused before all others.
SLEEP = (
    f"set -e; xl pause work; sleep 2; xl pause sys-usb; {SIGNAL.format('STOP')}; "
    f"sleep {PAUSE_SECONDS}; {SIGNAL.format('CONT')}; xl unpause sys-usb; xl unpause work"
)


def lives(bench: Bench) -> dict[str, str]:
    """The processes that have not been started again as long as this is the same."""
    shown = "systemctl show -p MainPID -p NRestarts {}"
    return {where: bench.run(where, shown.format(unit)).check() for where, unit in UNITS.items()}


def uptime(bench: Bench, where: str) -> float:
    return float(bench.run(where, "cat /proc/uptime").check().split()[0])


def test_a_pause_that_is_longer_than_a_hang_costs_no_disk_and_no_program_its_life(
    bench: Bench, stick: str
) -> None:
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    before = lives(bench)
    times = {guest: uptime(bench, guest) for guest in GUESTS}
    bench.run("dom0", SLEEP).check()
    for guest in GUESTS:
        assert uptime(bench, guest) - times[guest] > PAUSE_SECONDS, "its clock did not jump"
    # What came of it is told by now: an agent that was killed hangs up at once.
    bench.run("dom0", f"qvm-block attach work {stick}2").check()
    wait_for(bench, "agent work", "agent sys-usb")
    assert lives(bench) == before
    assert holders(bench, f"{stick}1") == ["work"]
    bench.run("work", "dd if=/dev/xvdi of=/dev/null bs=64K count=4 iflag=direct").check()
