"""The scenarios that users are promised, between dom0, a driver domain and guests of a real Xen."""

from __future__ import annotations

import concurrent.futures
import json
import re
from typing import TYPE_CHECKING

import pytest

from .driving import (
    BUSY,
    DENIED,
    DISK,
    POLICY,
    START_LIMIT,
    domid,
    holders,
    plug,
    refuse,
    remove_disk,
    run_personal,
    traces,
    unplug,
    wait_for,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bench import Bench

ROUNDS = 30


def test_agents_connect_by_themselves_before_anybody_logs_in(bench: Bench) -> None:
    vms = json.loads(bench.run("dom0", "qvm-ls --json").check())["vms"]
    assert {vm["name"] for vm in vms if vm["agent"]} == {"dom0", "sys-usb", "work"}
    for where, *units in AGENTS:
        shown = bench.run(
            where,
            f"systemctl show -p Id,NRestarts,ActiveEnterTimestampMonotonic {' '.join(units)} "
            "systemd-user-sessions",
        ).check()
        *agents, logins = shown.strip().split("\n\n")
        assert len(agents) == len(units)
        for agent in agents:
            assert 0 < entered(agent) < entered(logins), (where, shown)
            assert "NRestarts=0" in agent, (where, shown)


def entered(shown: str) -> int:
    """When a unit became active, in microseconds since the boot."""
    return int(re.search(r"ActiveEnterTimestampMonotonic=(\d+)", shown)[1])  # type: ignore[index]


AGENTS = (
    ("dom0", "pedos-dom0", "pedos-dom0-agent"),
    ("sys-usb", "pedos-agent"),
    ("work", "pedos-agent"),
)


@pytest.mark.usefixtures("started")
def test_what_a_guest_writes_stands_on_the_stick(bench: Bench, stick: str) -> None:
    said = json.loads(bench.run("dom0", "/usr/bin/qvm-device block list --json").check())
    (record,) = (each for each in said["devices"] if f"sys-usb:{each['device']}" == f"{stick}1")
    assert record["parent"] == "sda"
    assert record["size"] > 8 << 20
    attach = "/usr/bin/qvm-block attach -o frontend-dev=xvdk"
    said = bench.run("dom0", f"{attach} work {stick}1").check()
    assert "attached to work as xvdk" in said
    written = bench.run(
        "work",
        "dd if=/dev/urandom of=/dev/xvdk bs=64K count=16 conv=fsync 2>/dev/null && "
        "dd if=/dev/xvdk bs=64K count=16 iflag=direct 2>/dev/null | sha256sum; qvm-block list",
    ).check()
    assert f"{stick}1" in written, "the guest is told of what it has"
    bench.run("dom0", f"qvm-block detach work {stick}1").check()
    assert "xvdk" not in bench.run("work", "ls /dev").check()
    assert not traces(bench, "work")
    read = bench.run("sys-usb", "dd if=/dev/sda1 bs=64K count=16 iflag=direct | sha256sum").check()
    assert read.split()[0] in written


def test_read_only_is_so_in_the_guests_kernel(bench: Bench, stick: str) -> None:
    # From xvdq on, xenstore has other numbers.
    bench.run("dom0", f"qvm-block attach --ro -o frontend-dev=xvdz work {stick}1").check()
    tried = bench.run("work", "blockdev --getro /dev/xvdz; echo x > /dev/xvdz")
    assert tried.out.split() == ["1"]
    assert tried.status != 0
    bench.run("dom0", f"qvm-block attach -o devtype=cdrom work {stick}2").check()
    node = f"/libxl/{domid(bench, 'work')}/device/vbd/51840/device-type"
    assert bench.run("dom0", f"xenstore-read {node}").check() == "cdrom\n"
    assert bench.run("work", "blockdev --getro /dev/xvdi").check() == "1\n"


def test_dom0_lends_a_disk_of_its_own(bench: Bench) -> None:
    """Its toolstack runs the script itself, in the sandbox of the service."""
    make = "modprobe loop; truncate -s 8M /run/own.img && losetup /dev/loop0 /run/own.img"
    bench.run("dom0", make).check()
    wait_for(bench, "idle dom0:loop0")
    bench.run("dom0", "qvm-block attach -o frontend-dev=xvdp work dom0:loop0").check()
    bench.run("work", "echo from work | dd of=/dev/xvdp conv=fsync 2>/dev/null").check()
    bench.run("dom0", "qvm-block detach work dom0:loop0").check()
    read = "dd if=/dev/loop0 count=1 iflag=direct 2>/dev/null | head -n 1; losetup -d /dev/loop0"
    assert bench.run("dom0", read).check() == "from work\n"


def test_the_policy_refuses_and_says_by_which_line(bench: Bench, stick: str) -> None:
    rule = "device.attach.block  +sys-usb:sda2  @adminvm  work  deny"
    bench.run("dom0", f"echo '{rule}' > {POLICY}; qvm-policy status >/dev/null").check()
    refused = bench.run("dom0", f"qvm-block attach work {stick}2")
    refuse(refused, DENIED, "denied", "20-bench.policy:1", rule.split()[1])
    assert holders(bench, f"{stick}2") == []


def test_what_is_mounted_is_not_lent_nor_taken_away(bench: Bench, stick: str) -> None:
    mount = "mkfs.ext4 -q /dev/{0} && mkdir -p /run/m && mount /dev/{0} /run/m"
    bench.run("sys-usb", mount.format("sda2")).check()
    wait_for(bench, f"in-use {stick}2")
    refuse(bench.run("dom0", f"qvm-block attach work {stick}2"), BUSY, "mounted")
    bench.run("sys-usb", "umount /run/m").check()
    wait_for(bench, f"idle {stick}2")

    bench.run("dom0", f"qvm-block attach work {stick}2").check()
    bench.run("work", mount.format("xvdi") + " && cp /etc/hostname /run/m && sync").check()
    refuse(bench.run("dom0", f"qvm-block detach work {stick}2"), BUSY, "mounted")
    assert holders(bench, f"{stick}2") == ["work"]
    assert bench.run("work", "cat /run/m/hostname; umount /run/m").status == 0
    bench.run("dom0", f"qvm-block detach work {stick}2").check()


def test_a_guest_asks_and_the_policy_decides(bench: Bench, stick: str) -> None:
    rules = "\n".join(
        f"device.{verb}.block  +{stick}1  work  work  allow" for verb in ("attach", "detach")
    )
    bench.run("dom0", f"echo '{rules}' > {POLICY}; qvm-policy status > /dev/null").check()
    said = bench.run(
        "work", f"/usr/bin/qvm-device block attach work {stick}1 && lsblk -n /dev/xvdi"
    ).check()
    assert "attached to work" in said
    assert holders(bench, f"{stick}1") == ["work"]
    bench.run("work", f"qvm-device block detach work {stick}1 && ! lsblk /dev/xvdi").check()
    denied = bench.run("work", f"qvm-device block attach work {stick}2")
    refuse(denied, DENIED, "denied", "request")
    assert "policy.d" not in denied.text, "a VM must not learn the rules"
    assert ".policy:" not in denied.text, "a VM must not learn the rules"


def test_a_stick_that_is_pulled_out_is_gone_everywhere(bench: Bench, stick: str) -> None:
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    unplug(bench)
    wait_for(bench, f"gone {stick}", f"gone {stick}1")
    wait_until(bench, "work", "[ ! -e /dev/xvdi ]")
    assert not traces(bench, "work")
    plug(bench)
    bench.run("dom0", f"qvm-block attach work {stick}1").check()


#: The first line of an init in the kernel's log, of whatever version.
INIT_STARTS = r"systemd\[1\]: systemd [0-9]"


def test_assigned_devices_are_there_before_a_vm_runs_or_it_does_not_start(
    bench: Bench, started: Callable[[], str]
) -> None:
    """Two VMs have the same device assigned, and only one of them can be started."""
    started()
    assert holders(bench, DISK) == ["personal"]
    seen = bench.run("personal", f"dmesg | grep -n -e 'blkfront: xvdi' -e '{INIT_STARTS}'").check()
    assert seen.index("xvdi") < seen.index("systemd"), "it came after the VM had booted"

    refuse(bench.run("dom0", "qvm-start vault"), 1, f"{DISK} is attached to personal")
    bench.run("dom0", f"qvm-block detach personal {DISK}").check()
    remove_disk(bench)
    refuse(bench.run("dom0", "qvm-start vault"), 1, f"{DISK} is missing", "plug it in")
    assert "vault" not in bench.run("dom0", "xl list").check()
    bench.run("dom0", f"qvm-block detach vault {DISK}").check()


def test_what_is_mounted_outlives_agents_and_a_polite_shutdown_of_its_source(
    bench: Bench, stick: str
) -> None:
    bench.run("dom0", f"qvm-block attach work {stick}2").check()
    mount = "mkfs.ext4 -q /dev/xvdi && mkdir -p /run/m && mount /dev/xvdi /run/m"
    bench.run("work", f"{mount} && cp /etc/hostname /run/m && sync").check()
    refuse(bench.run("dom0", "qvm-shutdown sys-usb", limit=START_LIMIT), BUSY, "work")
    restarts = "systemctl show -p NRestarts --value pedos-agent"
    for where in ("work", "sys-usb"):
        before = bench.run(where, restarts).check().strip()
        bench.run(where, "systemctl kill --kill-whom=main -s KILL pedos-agent").check()
        wait_until(bench, where, f"[ $({restarts}) != {before} ]")
        wait_for(bench, "agent work", "agent sys-usb")
        assert holders(bench, f"{stick}2") == ["work"]
        bench.run("work", "cd /run/m && cp hostname again && sync && cmp hostname again").check()
    bench.run("work", "umount /run/m").check()
    bench.run("dom0", f"qvm-block detach work {stick}2").check()


REFUSE = r"""printf '#!/bin/sh
xenstore-write $XENBUS_PATH/hotplug-error "not today" $XENBUS_PATH/hotplug-status error
exit 1
' > /run/refuse; chmod +x /run/refuse; mount --bind /run/refuse /usr/libexec/pedos/block"""


def test_a_start_that_fails_half_way_leaves_no_domain(bench: Bench, stick: str) -> None:
    bench.run("dom0", f"qvm-block attach --persistent vault {stick}2").check()
    bench.run("sys-usb", REFUSE).check()
    refused = bench.run("dom0", "qvm-start vault", limit=START_LIMIT)
    bench.run("sys-usb", "umount /usr/libexec/pedos/block").check()
    refuse(refused, 1, "vault was stopped again", "not today")
    assert "vault" not in bench.run("dom0", "xl list").check()
    assert holders(bench, f"{stick}2") == []
    bench.run("dom0", f"qvm-block detach vault {stick}2").check()


def test_a_disk_is_not_lent_twice_nor_in_parts(bench: Bench, stick: str) -> None:
    run_personal(bench)
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    refuse(bench.run("dom0", f"qvm-block attach personal {stick}1"), BUSY, "work")
    refuse(bench.run("dom0", f"qvm-block attach personal {stick}"), BUSY, "work")
    assert not re.search("xvd[i-z]", bench.run("personal", "ls /dev").check())
    bench.run("dom0", f"qvm-block attach personal {stick}2").check()
    assert holders(bench, f"{stick}2") == ["personal"]


def test_a_service_that_is_killed_comes_back_with_its_attachments(bench: Bench, stick: str) -> None:
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    # As a service that was killed in the middle of something leaves it: ours, and without a lease.
    stray = "format=raw,vdev=xvdz,access=rw,script=/usr/libexec/pedos/block"
    bench.run("dom0", f"xl block-attach work {stray},backend=sys-usb,target=/dev/sda2").check()
    bench.run("dom0", "systemctl kill --kill-whom=main -s KILL pedos-dom0").check()
    wait_for(bench, "agent work", "agent sys-usb")
    assert holders(bench, f"{stick}1") == ["work"]
    # Its kernel lets go first, and the toolstack then.
    wait_until(bench, "work", "[ ! -e /dev/xvdz ]")
    backend = f"/local/domain/{domid(bench, 'sys-usb')}/backend/vbd/{domid(bench, 'work')}"
    wait_until(bench, "dom0", f"! xenstore-exists {backend}/268441856")
    bench.run("work", "dd if=/dev/xvdi of=/dev/null bs=64K count=4 iflag=direct").check()
    bench.run("dom0", f"qvm-block detach work {stick}1").check()
    assert not traces(bench, "work")


@pytest.mark.parametrize("where", ["work", "sys-usb"])
def test_an_agent_that_is_killed_takes_its_attachments_along(
    bench: Bench, stick: str, where: str
) -> None:
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    bench.run(where, "systemctl kill --kill-whom=main -s KILL pedos-agent").check()
    wait_for(bench, f"free {stick}1")
    wait_for(bench, "agent work", "agent sys-usb")
    wait_until(bench, "work", "[ ! -e /dev/xvdi ]")
    assert not traces(bench, "work")
    bench.run("dom0", f"qvm-block attach work {stick}1").check()


def test_an_upgrade_of_the_service_leaves_attachments_alone(bench: Bench, stick: str) -> None:
    pid = "systemctl show -p MainPID --value pedos-dom0"
    bench.run("dom0", f"qvm-block attach work {stick}1").check()
    before = bench.run("dom0", pid).check()
    bench.run(
        "work",
        "rm -f /run/stop; (while [ ! -e /run/stop ]; do dd if=/dev/zero of=/dev/xvdi bs=64K "
        "count=4 oflag=direct 2>/dev/null || touch /run/failed; sleep 0.2; done) >/dev/null 2>&1 &",
    ).check()
    bench.run("dom0", "dpkg -i /var/tmp/debs/pedos-dom0_*.deb", limit=240).check()
    wait_for(bench, "agent work", "agent sys-usb")
    assert bench.run("dom0", pid).check() != before, "the new version does not run"
    assert holders(bench, f"{stick}1") == ["work"]
    assert bench.run("work", "touch /run/stop; [ ! -e /run/failed ]").status == 0
    wait_until(bench, "work", "! pgrep -x dd")
    bench.run("dom0", f"qvm-block detach work {stick}1").check()


def test_many_rounds_leave_everything_as_it_was(bench: Bench, stick: str) -> None:
    """xenstore, grants that the driver domain holds, processes, and descriptors."""
    source, target = domid(bench, "sys-usb"), domid(bench, "work")
    store = "xenstore-ls -f / | sed 's/ = .*//' | sort"
    grants = (
        "xl dmesg -c > /dev/null; xl debug-keys g; xl dmesg | "
        f'awk \'/grant-table for remote d/ {{of = $NF == "d{target}" || / d{target} /}} '
        f'of && $3 == "{source}"\' | wc -l'
    )
    # Workers of the kernel and of udev wait a while for more to do.
    processes = (
        "ps -e --no-headers -o comm | grep -v -e kworker -e udev-worker -e '^ps' | sort | uniq -c; "
        "for pid in $(systemctl show -p MainPID --value pedos-agent pedos-dom0 pedos-dom0-agent); "
        "do [ $pid = 0 ] || ls /proc/$pid/fd | wc -l; done"
    )

    def picture() -> list[str]:
        listed = bench.run("dom0", processes).check()  # before others run there
        with concurrent.futures.ThreadPoolExecutor() as threads:
            looks = [("sys-usb", processes), ("work", processes), ("dom0", f"{store}; {grants}")]
            each = [threads.submit(bench.run, *look) for look in looks]
            return [listed, *(one.result().check() for one in each)]

    bench.run("dom0", f"qvm-block attach work {stick}2").check()
    with_device = int(bench.run("dom0", grants).check())
    bench.run("dom0", f"qvm-block detach work {stick}2").check()
    before = picture()
    assert with_device > int(before[-1].split()[-1]), "grants are not seen at all"
    said = bench.run("dom0", f"bench-rounds {ROUNDS} work sys-usb sda2", limit=600).check()
    print(said)
    assert picture() == before
