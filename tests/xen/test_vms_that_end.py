"""VMs that reboot or are destroyed while they lend or borrow, and peers that end with them.

These run last, because some VMs do not come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .channels import ended
from .driving import (
    BUSY,
    START_LIMIT,
    STICK,
    domid,
    holders,
    refuse,
    run_personal,
    traces,
    wait_for,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bench import Bench


def test_a_reboot_ends_what_a_vm_had_and_it_can_have_it_again(
    bench: Bench, rebooted: Callable[[], None]
) -> None:
    rebooted()
    assert holders(bench, f"{STICK}1") == []
    assert "xvdi" not in bench.run("personal", "ls /dev").check()
    assert not traces(bench, "personal")
    bench.run("dom0", f"qvm-block attach work {STICK}1").check()
    bench.run("dom0", f"qvm-block detach work {STICK}1").check()
    bench.run("dom0", f"qvm-block attach personal {STICK}1").check()


def test_a_shutdown_asks_the_guest_first_and_takes_from_nobody_what_is_in_use(
    bench: Bench, stick: str
) -> None:
    """What was written just before, and not yet to the disk, is kept."""
    run_personal(bench)
    bench.run("sys-usb", "mkfs.ext4 -q /dev/sda2").check()
    bench.run("dom0", f"qvm-block attach personal {stick}2").check()
    bench.run(
        "personal", "mkdir -p /run/m && mount /dev/xvdi /run/m && hostname > /run/m/late"
    ).check()
    refuse(bench.run("dom0", "qvm-shutdown sys-usb"), BUSY, "sys-usb was not shut down", "mounted")
    assert holders(bench, f"{stick}2") == ["personal"]
    bench.run("dom0", "qvm-shutdown personal", limit=START_LIMIT).check()
    assert holders(bench, f"{stick}2") == []
    read = "mkdir -p /run/m && mount -o ro /dev/sda2 /run/m && cat /run/m/late; umount /run/m"
    assert bench.run("sys-usb", read).check() == "personal\n"
    wait_for(bench, f"idle {stick}2")


# The program that has the channels is the newest fork of warm.py. It is dead when nothing is left
# of it: under emulation the kernel may take a second for that.
KILL = (
    "pid=$(pgrep -nf '__main__.py [w]arm') && date +%s.%N && kill -9 $pid && "
    "while [ -d /proc/$pid ]; do :; done && date +%s.%N"
)


def test_the_end_of_a_process_is_noticed_within_a_second(bench: Bench) -> None:
    """By the kernel's last word."""
    run_personal(bench)
    killed = ended(bench, KILL, "personal")
    assert all("closed" in each.how and each.in_time for each in killed), killed


WRITING = (
    "(while :; do dd if=/dev/zero of=/dev/xvdi bs=64K oflag=direct; done) >/dev/null 2>&1 & "
    # One dd after the other: there is a moment without any. Field 7: sectors written.
    "until [ $(awk '{print $7}' /sys/block/xvdi/stat) -gt 0 ] && pgrep -x dd; do sleep 0.2; done"
)
# The hypervisor tells xenstored when a domain has died; xl is busy for seconds before and after.
DESTROY = (
    "(xenstore-watch -n 2 @releaseDomain; date +%s.%N >/run/released) >/dev/null & "
    "sleep 1; date +%s.%N; xl destroy personal; wait; cat /run/released"
)


def test_a_target_that_is_destroyed_gives_back_the_device_and_its_peers_know(
    bench: Bench, stick: str
) -> None:
    """In dom0 and in a guest, in a stream and in a pump, within a second."""
    run_personal(bench)
    bench.run("dom0", f"qvm-block attach personal {stick}1").check()
    number = domid(bench, "personal")
    bench.run("personal", WRITING).check()
    destroyed = ended(bench, DESTROY, "dom0")
    assert all(
        ("gone without closing" in each.how or "died" in each.how) and each.in_time
        for each in destroyed
    ), destroyed
    wait_for(bench, f"free {stick}1")
    left = f"xenstore-ls -f /local/domain/{domid(bench, 'sys-usb')}/backend | grep '/vbd/{number}/'"
    wait_until(bench, "dom0", f"! {left}")
    bench.run("dom0", f"qvm-block attach work {stick}1").check()


def test_vms_that_come_and_go_leave_nothing_of_ours_in_dom0s_part_of_xenstore(bench: Bench) -> None:
    """Several have by now, and dom0 has had channels with all, as client and as server."""
    run_personal(bench)
    number = domid(bench, "personal")
    bench.run("dom0", "xl destroy personal").check()
    wait_until(bench, "dom0", f"! xenstore-exists /local/domain/{number}")
    left = "/local/domain/0/data/vchan"
    wait_until(bench, "dom0", f'! xenstore-exists {left} || [ -z "$(xenstore-list {left})" ]')


def test_a_source_that_is_destroyed_is_not_listed_nor_attached(bench: Bench, stick: str) -> None:
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    bench.run("work", WRITING).check()
    bench.run("dom0", "xl destroy sys-usb").check()
    wait_for(bench, f"gone {stick}1")
    # Its kernel never gets an answer to what was on its way (docs/xen.md); dom0 is done with it.
    assert bench.run("work", "hostname").check() == "work\n"
    left = f"xenstore-ls -f /libxl/{domid(bench, 'work')}/device | grep -c vbd/51840"
    wait_until(bench, "dom0", f"[ $({left}) = 0 ]")
