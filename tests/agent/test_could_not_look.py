"""An error is not an empty value: what cannot be looked at stays as it was, and is looked at again.

Each system call of each look fails in turn; the result is then either right or an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from unittest import mock

import attrs
import pytest
import trio
import trio.testing
from pedos_agent.connections import local_socket
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes import on_machine as discovery_sysfs
from pedos_agent.device_classes import pinned
from pedos_agent.device_classes.base import Carried
from pedos_agent.device_classes.block import discovery_block
from pedos_agent.device_classes.block.overlays import layer_file
from pedos_agent.inventory import looking
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.inventory.local_device import LocalDevice, unseen, unseen_class
from pedos_agent.settings import Settings
from pedos_agent.system import closing, reading, uevents
from pedos_agent.system.revision import Revision
from pedos_host import backoff
from pedos_host.folder_watch import FolderWatch
from pedos_host.unix import UnixListener
from pedos_protocol.agent_messages import Device, Missing
from pedos_protocol.errors import CallError
from pedos_vchan.clients import ACCEPT_RETRY

from tests.failing_calls import BROKEN, Failing, each_call_failing
from tests.failing_calls import STARVED as STARVED_CODES
from tests.patience import PATIENCE

from .conftest import ATTACHMENT, FakeDom0, Pair, needs_fuse
from .test_discovery import write_tree
from .test_xen_block import Agent, agent  # noqa: F401 - a fixture
from .xen_tree import Tree

STARVED = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def a_block_tree(root: Path) -> Callable[[], list[LocalDevice]]:
    """A VM on Xen with everything that makes a disk busy."""
    tree = Tree(root)
    tree.mount(tree.add("sda", ID_SERIAL="s"), "/mnt")
    tree.add("sda1", parent="sda")
    tree.swap("/dev/" + "sdb")
    tree.add("sdb")
    tree.field("sdb", "device/vendor", "ACME")
    tree.serve(9, tree.add("sdc"))
    tree.add("sdd")
    tree.field("sdd", "holders/dm-0", "")
    tree.add("dm-0")
    tree.field("dm-0", "dm/name", "vault")
    tree.add("loop0")
    tree.field("loop0", "loop/backing_file", "/dev/sde")
    tree.add("sde")
    return partial(discovery_block.scan, Carried(), tree.roots)


def a_folder(root: Path) -> Callable[[], list[LocalDevice]]:
    """A VM of local mode."""
    (root / "block").mkdir()
    (root / "usb").mkdir()
    (root / "block/one.img").write_bytes(b"x" * 512)
    (root / "block/two.img").symlink_to("one.img")
    (root / "usb/1-2").write_text("USB Receiver\nidentity=046d:c52b::u030101\n")
    return partial(discovery_folder.scan, root)


def a_machine(root: Path) -> Callable[[], list[LocalDevice]]:
    """dom0's own usb and pci devices."""
    stick, port = "bus/usb/devices/1-2", "bus/pci/devices/0000:00:1f.0"
    files = {
        **{f"{stick}/{name}": "00" for name in ("bDeviceClass", "idVendor", "idProduct", "serial")},
        **{f"{stick}/{name}": "Receiver" for name in ("product", "descriptors")},
        **{f"{port}/{name}": "0x01" for name in ("vendor", "device", "class")},
        f"{port}/label": "Onboard",
    }
    write_tree(root, files)
    return partial(discovery_sysfs.scan, root, root)


def essence(item: LocalDevice) -> LocalDevice:
    """Everything except descriptions for people, which some drivers always refuse to give."""
    return attrs.evolve(item, device=attrs.evolve(item.device, description=""))


looks = pytest.mark.parametrize("make", [a_block_tree, a_folder, a_machine])
Make = Callable[[Path], Callable[[], list[LocalDevice]]]
# Properties that concern all devices of a VM: without them no device is known.
OF_ALL = ("/class/block", "/self/mountinfo", "/swaps", "/boot_id", "/xen-backend/devices")


def compared(
    failing: Failing, right: list[LocalDevice], seen: list[LocalDevice]
) -> set[tuple[str, str]]:
    """The devices that could not be looked at; with a class, all of it. The others must be as they
    are, or in use: what is not known of one may be a use of another."""
    classes = {item.key[0] for item in seen if not item.key[1]}
    found = {item.key: item for item in seen if item.key[1]}
    expected = {item.key: item for item in right if item.key[0] not in classes}
    assert found.keys() == expected.keys(), str(failing)
    untold = {(each, "") for each in classes}
    for key, item in found.items():
        if item.unseen is not None:
            untold.add(key)
            continue
        shown, wanted = essence(item), essence(expected[key])
        if shown.device.busy is not None:
            like = {"busy": wanted.device.busy, "shares": wanted.device.shares}
            shown = attrs.evolve(shown, device=attrs.evolve(shown.device, **like))
        is_read_only = str(failing).startswith("access") and failing.code == errno.EACCES
        if is_read_only and shown != wanted:
            wanted = attrs.evolve(wanted, device=attrs.evolve(wanted.device, read_only=True))
        # Of a file that cannot be looked at, no other name is known to be one.
        if shown != wanted and key == ("block", "two.img"):
            assert ("block", "one.img") in untold, str(failing)
            continue
        assert shown == wanted, str(failing)
    return untold


@looks
def test_a_look_gives_what_is_there_or_an_error_and_never_less(tmp_path: Path, make: Make) -> None:
    scan = make(tmp_path)
    right = scan()
    assert len(right) >= 2
    failures = 0
    for failing in each_call_failing(scan, STARVED_CODES):
        try:
            with failing:
                seen = scan()
        except OSError:
            failures += 1
            continue
        compared(failing, right, seen)
    assert failures


@looks
def test_what_fails_at_one_device_is_no_error_of_the_others(tmp_path: Path, make: Make) -> None:
    scan = make(tmp_path)
    right = scan()
    failures = 0
    for failing in each_call_failing(scan, BROKEN):
        try:
            with failing:
                seen = scan()
        except OSError:
            assert failing.path.endswith(OF_ALL), str(failing)
            continue
        untold = compared(failing, right, seen)
        assert len(untold) <= 1, str(failing)
        failures += len(untold)
    assert failures


@pytest.mark.parametrize("code", BROKEN)
@pytest.mark.parametrize(
    ("make", "path", "untold"),
    [
        (a_folder, "/usb", ("usb", "")),
        (a_folder, "/block/two.img", ("block", "two.img")),
        (a_machine, "1-2/serial", ("usb", "1-2")),
        (a_machine, "1-2/descriptors", ("usb", "1-2")),
        (a_machine, "usb/devices", ("usb", "")),
        (a_machine, "1f.0/class", ("pci", "00_1f.0")),
        (a_block_tree, "sdb/size", ("block", "sdb")),
        (a_block_tree, "sdb/dev", ("block", "sdb")),
        (a_block_tree, "sdd/holders", ("block", "sdd")),
        (a_block_tree, "dm-0/dm/name", ("block", "dm-0")),
        (a_block_tree, "dm-0/slaves", ("block", "dm-0")),
        (a_block_tree, "sda1/partition", ("block", "sda1")),
        (a_block_tree, "loop0/loop/backing_file", ("block", "loop0")),
        (a_block_tree, "dev/loop0", ("block", "loop0")),
        (a_block_tree, "dev/sdc", ("block", "sdc")),
    ],
)
def test_what_always_fails_makes_one_device_stale_or_one_class(
    tmp_path: Path, make: Make, path: str, untold: tuple[str, str], code: int
) -> None:
    scan = make(tmp_path)
    right = scan()
    with Failing(None, code, always=path) as failing:
        seen = scan()
    assert failing.failed, "it is looked at"
    assert compared(failing, right, seen) == {untold}


def test_what_this_process_lacks_is_an_error_also_at_a_device_that_fails(tmp_path: Path) -> None:
    scan = a_block_tree(tmp_path)
    with (
        Failing(None, errno.EIO, always="sda1/size") as failing,
        Failing(None, errno.EMFILE, always="sda1/dev"),
        pytest.raises(OSError, match="Too many open files"),
    ):
        scan()
    assert failing.failed


@pytest.mark.parametrize("code", [*STARVED_CODES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("written", [False, True])
def test_a_layer_that_cannot_be_looked_at_is_none_that_has_not_the_file(
    tmp_path: Path, written: bool, code: int
) -> None:
    (tmp_path / "upper").mkdir()
    disk = tmp_path / "upper/x.img"
    disk.touch()
    with disk.open() as file:
        number = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text().split()
        mount = number[number.index("mnt_id:") + 1]
        table = tmp_path / "mountinfo"
        table.write_text(
            f"{mount} 1 0:9 / {tmp_path}/upper rw - overlay o rw,upperdir={tmp_path}/upper\n"
        )
        look = partial(layer_file, file.fileno(), written=written, mountinfo=str(table))
        assert look() == str(disk)
        for failing in each_call_failing(look, [code]):
            with failing, contextlib.suppress(OSError):
                assert look() == str(disk), str(failing)


def test_a_class_that_cannot_be_looked_at_makes_no_other_stale() -> None:
    devices = Inventory(Revision(), lambda: None)
    stick = a_disk("1-2")
    stick = attrs.evolve(stick, device=attrs.evolve(stick.device, device_class="usb"))
    devices.replace("folder", [a_disk(), stick])
    devices.replace("folder", [a_disk(), unseen_class("usb", "Permission denied")])
    assert {(each.device, each.stale) for each in devices.devices()} == {
        ("sda", None),
        ("1-2", "Permission denied"),
    }
    assert devices.missing() == (Missing("usb", None, "Permission denied"),)
    devices.replace("folder", [a_disk()])
    assert [each.device for each in devices.devices()] == ["sda"]
    assert devices.missing() == ()


def test_a_loop_device_of_a_file_system_that_does_not_work_keeps_no_file_from_being_lent(
    settings: Settings, tmp_path: Path
) -> None:
    tree = Tree(tmp_path / "machine")
    for name in ("one.img", "two.img"):
        (settings.devices / "block" / name).write_bytes(b"x" * 512)
    tree.add("loop0")
    tree.field("loop0", "loop/backing_file", str(settings.devices / "block/one.img"))

    def busy() -> list[str | None]:
        found = discovery_folder.scan(settings.devices, roots=tree.roots)
        return [item.device.busy for item in found]

    assert busy() == ["used by loop0", None]
    with Failing(None, errno.ESTALE, always="dev/loop0"):
        assert busy() == ["used by loop0", None]
    with Failing(None, errno.EIO, always="loop/backing_file"):
        why = "perhaps used by loop0, which cannot be looked at"
        assert busy() == [why, why]


def test_what_is_gone_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("nowhere", "file/below", "circle", "x" * 300):
        path = str(tmp_path / name)
        assert reading.read_field(path) == ""
        assert reading.names_in(path) == []
        assert not reading.is_there(path)
    assert reading.link_target(tmp_path / "file") is None


def test_a_table_that_is_too_long_is_an_error_and_not_cut(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 100)
    assert reading.read_field(str(tmp_path / "long"), 100) == "x" * 100
    with pytest.raises(OSError, match="more than 99 bytes"):
        reading.read_field(str(tmp_path / "long"), 99)


def a_disk(name: str = "sda") -> LocalDevice:
    placeholder = unseen("block", name, "never")
    return attrs.evolve(
        placeholder, unseen=None, device=attrs.evolve(placeholder.device, busy=None, stale=None)
    )


def test_what_was_found_last_stays_and_is_marked_as_old() -> None:
    revision = Revision()
    devices = Inventory(revision, lambda: None)
    devices.replace("block", [a_disk()])
    devices.failed("block", "Too many open files")
    (device,) = devices.devices()
    assert (device.busy, device.stale) == (None, "Too many open files")
    seen = revision.number
    devices.failed("block", "Too many open files")
    assert revision.number == seen  # which says nothing new
    devices.replace("block", [a_disk()])
    (again,) = devices.devices()
    assert again == attrs.evolve(device, stale=None)  # and the same instance


def test_a_device_alone_that_cannot_be_looked_at_stays_as_it_was() -> None:
    devices = Inventory(Revision(), lambda: None)
    known = attrs.evolve(a_disk(), device=attrs.evolve(a_disk().device, busy="mounted at /mnt"))
    devices.replace("block", [known])
    devices.replace("block", [unseen("block", "sda", "I/O error"), a_disk("sdb")])
    first, second = devices.devices()
    assert (first.busy, first.stale) == ("mounted at /mnt", "I/O error")
    assert second.stale is None


def test_a_known_disk_of_which_udev_says_nothing_for_a_moment_is_what_it_was(
    tmp_path: Path,
) -> None:
    tree = Tree(tmp_path)
    number = tree.add("sda", ID_SERIAL="Stick")
    database = tree.roots.udev / f"b{number}"
    said = database.read_text()
    devices = Inventory(Revision(), lambda: None)

    def look() -> Device:
        devices.replace("block", discovery_block.scan(roots=tree.roots))
        (device,) = devices.devices()
        return device

    known = look()
    assert known.identity == "Stick::"
    database.unlink()
    for _ in range(2):
        assert look() == attrs.evolve(known, stale="udev has not looked at it yet")
    tree.field("sda", "diskseq", "2")
    replaced = look()
    assert (replaced.identity, replaced.instance == known.instance) == ("", False)
    database.write_text(said)
    assert look() == attrs.evolve(known, instance=replaced.instance)


def test_which_one_it_is_that_was_never_looked_at_is_not_told() -> None:
    devices = Inventory(Revision(), lambda: None)
    devices.replace("block", [unseen("block", "sda", "I/O error")])
    assert [device.instance for device in devices.devices()] == [""]
    devices.replace("block", [a_disk()])
    assert "" not in [device.instance for device in devices.devices()]


def test_a_device_that_was_never_looked_at_is_listed_as_in_use(settings: Settings) -> None:
    (settings.devices / "block/stick.img").write_bytes(b"x")
    with mock.patch.object(pinned, "Pin", side_effect=PermissionError(13, "No")):
        (item,) = discovery_folder.scan(settings.devices)
    devices = Inventory(Revision(), lambda: None)
    devices.replace("folder", [item])
    (device,) = devices.devices()
    assert (device.device, device.busy) == ("stick.img", "cannot be looked at: No")


async def test_a_look_that_failed_is_made_again_ever_less_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[object] = []
    looks = looking.Looking(told.append, told.append)

    def fail() -> list[LocalDevice]:
        raise STARVED

    waits = [await looks.look(fail) for _ in range(10)]
    assert waits[:3] == [backoff.BACKOFF_FIRST * factor for factor in (1, 2, 4)]
    assert waits[-1] == backoff.BACKOFF_MAX
    assert told == ["Too many open files"] * 10
    assert await looks.look(lambda: []) == float("inf")
    assert await looks.look(fail) == backoff.BACKOFF_FIRST


async def test_a_mistake_in_a_look_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []
    await looking.Looking(told.append, told.append).look(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert told == ["unexpected ZeroDivisionError"]
    assert "a look at the devices failed unexpectedly" in caplog.text


@needs_fuse
async def test_a_source_without_descriptors_keeps_what_it_lends_and_looks_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.attach()
    with monkeypatch.context() as starving:
        starving.setattr(discovery_folder, "names_in", mock.Mock(side_effect=STARVED))
        (pair.disk.parent / "another.img").write_bytes(b"x")
        report = await pair.source.until(lambda report: report.devices[0].stale is not None)
        (device,) = report.devices
        assert (device.device, device.stale) == ("stick.img", "Too many open files")
        assert [export.device for export in report.exports] == ["stick.img"]
        with pytest.raises(CallError, match=r"cannot be looked at now: Too many open files"):
            await pair.source.lend("f" * 16, "stick.img", 4)
    # Nothing happens in the folder any more: the agent looks again by itself.
    report = await pair.source.until(lambda report: len(report.devices) == 2)
    assert [device.stale for device in report.devices] == [None, None]
    assert [export.attachment for export in report.exports] == [ATTACHMENT]


async def test_an_agent_that_can_watch_no_more_looks_now_and_then(
    settings: Settings,
    start: Callable[[Settings], Awaitable[FakeDom0]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery_folder, "UNWATCHED_SECONDS", 0.01)
    dom0 = await start(settings)
    with monkeypatch.context() as starving:
        starving.setattr(FolderWatch, "_arm", mock.Mock(side_effect=STARVED))
        for name in ("one.img", "two.img"):
            (settings.devices / "block" / name).write_bytes(b"x")
            await dom0.until(lambda report: name in {each.device for each in report.devices})  # noqa: B023


@needs_fuse
async def test_a_replaced_file_is_not_taken_for_one_that_cannot_be_looked_at(pair: Pair) -> None:
    """The reverse: only errors are forgiven."""
    await pair.attach()
    pair.disk.unlink()
    ended = await pair.source.ended()
    assert ended.reason == "the device was unplugged"


async def test_on_xen_nothing_ends_because_a_disk_cannot_be_looked_at(
    agent: Agent,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent.tree.add("xvdi")
    await agent.borrow("xvdi")
    real = os.stat
    starved = threading.Event()
    starved.set()

    def stat(path: object, **more: object) -> os.stat_result:
        if starved.is_set() and str(path).endswith("xvdi"):
            raise STARVED
        return real(path, **more)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(os, "stat", stat)
    agent.attachments.host.rescan.bump()
    await trio.testing.wait_all_tasks_blocked()
    assert len(agent.attachments.imports()) == 1
    with pytest.raises(CallError, match="whether xvdi is in use cannot be told: Too many"):
        await agent.attachments.stop_import(ATTACHMENT)
    starved.clear()
    ended = trio.Event()

    async def note(*what: str) -> None:
        agent.ended.append((what[0], what[1], what[2]))
        ended.set()

    agent.attachments.ended = note
    (agent.tree.roots.dev / "xvdi").unlink()  # without an event: the agent looks again by itself
    with trio.fail_after(PATIENCE):
        await ended.wait()
    assert agent.ended == [(ATTACHMENT, "import", "xvdi has gone")]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_events_that_lack_a_descriptor_are_not_done_without(code: int) -> None:
    broken = mock.patch.object(uevents.socket, "socket", side_effect=OSError(code, "no"))
    with broken, pytest.raises(OSError, match="no"):
        uevents.opened(uevents.KERNEL, missing="nothing")


async def test_a_file_that_is_removed_while_looks_fail_does_not_keep_its_disk_space(
    settings: Settings,
) -> None:
    devices = Inventory(Revision(), lambda: None)
    disk, other = settings.devices / "block/disk.img", settings.devices / "block/other.img"
    disk.write_bytes(b"x" * 512)
    other.write_bytes(b"x" * 512)
    devices.replace("folder", discovery_folder.scan(settings.devices))
    before = {each.device: each.instance for each in devices.devices()}
    disk.unlink()
    devices.failed("folder", "No")
    await devices.release_removed("folder")
    closing.wait_until_closed()
    assert str(disk) + " (deleted)" not in open_files()
    assert {each.device for each in devices.devices()} == before.keys()
    disk.write_bytes(b"y" * 512)
    devices.replace("folder", discovery_folder.scan(settings.devices))
    after = {each.device: each.instance for each in devices.devices()}
    assert after["other.img"] == before["other.img"]
    assert after["disk.img"] != before["disk.img"]


def open_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


async def test_a_removed_image_is_closed_outside_of_the_event_loop(
    settings: Settings,
    start: Callable[[Settings], Awaitable[FakeDom0]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = settings.devices / "block/disk.img"
    disk.write_bytes(b"x" * 512)
    dom0 = await start(settings)
    await dom0.lend(ATTACHMENT, "disk.img", 3)
    number, closed_in, close = disk.stat().st_ino, set(), os.close

    def noted(fd: int) -> None:
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino == number:
                closed_in.add(threading.get_ident())
        close(fd)

    monkeypatch.setattr(os, "close", noted)
    disk.unlink()
    await dom0.until(lambda report: not report.devices and not report.exports)
    await trio.testing.wait_all_tasks_blocked()
    await trio.to_thread.run_sync(closing.wait_until_closed)
    assert str(disk) + " (deleted)" not in open_files()
    assert closed_in
    assert threading.get_ident() not in closed_in


async def test_a_client_that_cannot_be_accepted_is_no_end_of_the_agent(
    tmp_path: Path,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def forward(_method: str, _params: object) -> dict[str, object]:
        return {}

    socket = local_socket.LocalSocket(tmp_path / "sock", forward)
    with monkeypatch.context() as starving:
        starving.setattr(UnixListener, "accept", mock.AsyncMock(side_effect=STARVED))
        await nursery.start(socket.run)
        await trio.sleep(1)
    stream = await trio.open_unix_socket(str(tmp_path / "sock"))
    await trio.sleep(ACCEPT_RETRY * 2)
    assert await stream.receive_some(1)  # its hello
    await stream.aclose()
    assert "a client could not be accepted: Too many open files" in caplog.text
    assert "Traceback" not in caplog.text
