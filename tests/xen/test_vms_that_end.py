"""VMs that reboot or are destroyed while they lend or borrow. Last, for some do not come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .driving import (
    START_LIMIT,
    connected,
    domid,
    holders,
    listed,
    run_personal,
    traces,
    wait_until,
)

if TYPE_CHECKING:
    from .bench import Bench


def test_a_reboot_ends_what_a_vm_had_and_it_can_have_it_again(bench: Bench, stick: str) -> None:
    run_personal(bench)
    bench.run("dom0", f"qvm-block attach personal {stick}1").check()
    before = domid(bench, "personal")
    bench.run("dom0", "xl reboot personal").check()
    again = f'[ "$(xl domid personal 2>/dev/null || echo 0)" -gt {before} ]'
    wait_until(bench, "dom0", again, START_LIMIT)
    wait_until(bench, "dom0", connected("personal"), START_LIMIT)
    assert holders(bench, f"{stick}1") == []
    assert not bench.run("personal", "ls /dev | grep xvdi").out
    assert not traces(bench, "personal")
    bench.run("dom0", f"qvm-block attach personal {stick}1").check()


WRITING = "dd if=/dev/zero of=/dev/xvdi bs=64K oflag=direct >/dev/null 2>&1 &"


def test_a_target_that_is_destroyed_gives_the_device_back(bench: Bench, stick: str) -> None:
    run_personal(bench)
    bench.run("dom0", f"qvm-block attach personal {stick}1").check()
    number = domid(bench, "personal")
    bench.run("personal", WRITING).check()
    bench.run("dom0", "xl destroy personal").check()
    wait_until(bench, "dom0", listed(f"{stick}1", attached=False))
    source = domid(bench, "sys-usb")
    left = f"xenstore-ls -f /local/domain/{source}/backend | grep '/vbd/{number}/'"
    wait_until(bench, "dom0", f"! {left}")
    bench.run("dom0", f"qvm-block attach work {stick}1").check()


def test_a_source_that_is_destroyed_is_not_listed_nor_attached(bench: Bench, stick: str) -> None:
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    bench.run("work", WRITING).check()
    bench.run("dom0", "xl destroy sys-usb").check()
    wait_until(bench, "dom0", f"! {listed(stick + '1')}")
    # Its kernel never gets an answer to what was on its way (docs/xen.md); dom0 is done with it.
    assert bench.run("work", "hostname").check() == "work\n"
    left = f"xenstore-ls -f /libxl/{domid(bench, 'work')}/device | grep -c vbd/51840"
    wait_until(bench, "dom0", f"[ $({left}) = 0 ]")
