"""Which files count as a device, and how name and text are cleaned."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes import on_machine as discovery_sysfs
from pedos_agent.device_classes.block import folder_disks
from pedos_agent.device_classes.mic import discovery as discovery_mic
from pedos_agent.device_classes.mic.link_server import LinkServer
from pedos_agent.device_classes.mic.session import NOT_YET, Session
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.inventory.local_device import Inode, LocalDevice, device_id_of
from pedos_agent.inventory.report import pages
from pedos_agent.settings import Settings
from pedos_agent.system.revision import Revision
from pedos_host import folder_watch
from pedos_protocol.codec import FRAME_MAX, encode
from pedos_protocol.errors import CallError
from pedos_protocol.fields import DEVICES_MAX, REPORT_PAGES_MAX
from pedos_protocol.messages import Device, to_wire
from pedos_protocol.names import is_device_id, is_identity

from tests.failing_calls import Failing

from .conftest import ATTACHMENT, FakeDom0, make_settings
from .loops import looped
from .test_usb_kinds import configuration, descriptors

Start = Callable[[Settings], Awaitable[FakeDom0]]

HOSTILE_NAMES = [
    b"two words.img",
    b"-rf",
    b"...dots",
    b"semi;colon & <b>markup",
    b"\x1b[31mred\x1b[0m",
    b"new\nline",
    "right\N{RIGHT-TO-LEFT OVERRIDE}to-left".encode(),
    "\N{SNOWMAN}".encode(),
    b"\xff\xfe not UTF-8",
    b"a" * 255,
    b"$(reboot)`reboot`",
]


def ids(found: list[LocalDevice]) -> list[str]:
    return [item.device.device for item in found]


def test_files_and_links_to_files_are_disks_and_nothing_else_is(
    settings: Settings, tmp_path: Path
) -> None:
    block = settings.devices / "block"
    (block / "stick.img").write_bytes(b"x" * 512)
    (tmp_path / "elsewhere.img").write_bytes(b"y" * 1024)
    (block / "linked.img").symlink_to(tmp_path / "elsewhere.img")
    (block / "dangling.img").symlink_to(tmp_path / "nothing")
    (block / "loop.img").symlink_to(block / "loop.img")
    (block / "terminal").symlink_to("/dev/null")
    (block / ".hidden").write_bytes(b"z")
    (block / "folder").mkdir()
    os.mkfifo(block / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{(fd := os.open(block, os.O_PATH))}/sock")
        os.close(fd)
        found = discovery_folder.scan(settings.devices)
    assert [(item.device.device, item.device.size) for item in found] == [
        ("linked.img", 1024),
        ("stick.img", 512),
    ]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_becomes_a_harmless_device(settings: Settings, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(settings.devices / "block") + b"/" + name)).write_bytes(b"x")
    found = discovery_folder.scan(settings.devices)
    if name.startswith(b"."):
        assert found == []
        return
    (device,) = (item.device for item in found)
    assert is_device_id(device.device)
    assert set(device.description).isdisjoint('<>&"\\`\x1b\n\u202e\ufffd')
    assert len(device.description) <= 128


def test_a_good_name_is_the_id_and_bad_ones_stay_apart() -> None:
    assert device_id_of("sda1") == "sda1"
    assert device_id_of("a b") == device_id_of("a b")
    assert len({device_id_of(name) for name in ("a b", "a;b", "a_b", "a\nb")}) == 4


def test_a_file_without_write_permission_is_read_only(settings: Settings) -> None:
    path = settings.devices / "block" / "stick.img"
    path.write_bytes(b"x")
    path.chmod(0o444)
    (found,) = discovery_folder.scan(settings.devices)
    assert found.device.read_only


def test_a_file_has_the_identity_that_its_owner_gave_it_by_any_name(settings: Settings) -> None:
    path = settings.devices / "block" / "stick.img"
    path.write_bytes(b"x")
    try:
        os.setxattr(path, folder_disks.IDENTITY, b"0781:5567:4C53")
    except OSError as error:
        pytest.skip(f"no extended attributes in {path}: {error.strerror}")
    path.rename(path.with_name("other.img"))
    (found,) = discovery_folder.scan(settings.devices)
    assert (found.device.device, found.device.identity) == ("other.img", "0781:5567:4C53")
    for bad in (b"two words", b"\xff", b"x" * 257, b""):
        os.setxattr(path.with_name("other.img"), folder_disks.IDENTITY, bad)
        (found,) = discovery_folder.scan(settings.devices)
        assert found.device.identity == ""


@pytest.mark.parametrize(
    ("code", "unseen"),
    [(errno.EIO, os.strerror(errno.EIO)), (errno.ENODATA, None), (errno.EOPNOTSUPP, None)],
)
def test_an_identity_that_cannot_be_read_is_not_taken_for_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, code: int, unseen: str | None
) -> None:
    (settings.devices / "block" / "stick.img").write_bytes(b"x")

    def fails(_path: object, _name: object) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "getxattr", fails)
    (found,) = discovery_folder.scan(settings.devices)
    assert (found.unseen, found.device.identity) == (unseen, "")


def test_a_second_name_of_the_same_file_is_busy(settings: Settings) -> None:
    block = settings.devices / "block"
    (block / "one.img").write_bytes(b"x")
    (block / "two.img").symlink_to("one.img")
    busy = {
        item.device.device: item.device.busy for item in discovery_folder.scan(settings.devices)
    }
    assert busy == {"one.img": None, "two.img": "the same disk as one.img"}


def test_a_usb_file_describes_a_device(settings: Settings) -> None:
    usb = settings.devices / "usb"
    (usb / "1-2").write_text("USB Receiver\nidentity=046d:c52b::u030101\n")
    (usb / "1-3").write_bytes(b"\x1b]0;owned\x07" + b"A" * 10_000)
    (usb / "1-4").write_text("Camera\nidentity=bad identity!\n")
    devices = {item.device.device: item.device for item in discovery_folder.scan(settings.devices)}
    assert devices["1-2"].description == "USB Receiver"
    assert devices["1-2"].identity == "046d:c52b::u030101"
    assert devices["1-3"].description.startswith("_]0;owned_AAA")
    assert len(devices["1-3"].description) == 128
    assert (devices["1-4"].description, devices["1-4"].identity) == ("Camera", "")


def test_a_partition_names_its_disk_so_that_both_are_never_lent(tmp_path: Path) -> None:
    write_tree(tmp_path, {"sys/sda/dev": "8:0", "sys/sda/sda1/partition": "1"})
    (tmp_path / "sys/8:0").symlink_to(tmp_path / "sys/sda")
    (tmp_path / "sys/8:1").symlink_to(tmp_path / "sys/sda/sda1")
    disk, partition = (
        attrs.evolve(device(minor), inode=Inode(1, 2, os.makedev(8, minor))) for minor in (0, 1)
    )
    found = folder_disks.with_parents([disk, partition], str(tmp_path / "sys"))
    assert [item.device.parent for item in found] == [None, "disk0"]


def test_a_missing_devices_folder_has_no_devices(tmp_path: Path) -> None:
    assert discovery_folder.scan(tmp_path / "nowhere") == []


async def test_without_watches_it_looks_again_and_again(
    settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_watch(_paths: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(discovery_folder, "FolderWatch", no_watch)
    monkeypatch.setattr(discovery_folder, "UNWATCHED_SECONDS", 0.01)
    dom0 = await start(settings)
    (settings.devices / "block" / "stick.img").write_bytes(b"x")
    await dom0.until(lambda report: len(report.devices) == 1)


async def test_links_that_become_too_many_to_follow_end_neither_the_agent_nor_what_it_lends(
    settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_watch, "LINKED_MAX", 3)
    monkeypatch.setattr(discovery_folder, "UNWATCHED_SECONDS", 0.01)
    block = settings.devices / "block"
    (block / "stick.img").write_bytes(b"x" * 512)
    dom0 = await start(settings)
    await dom0.lend(ATTACHMENT, "stick.img", 3)
    for number in range(4):
        (block / f"link{number}").symlink_to(f"missing{number}")
    (block / "later.img").write_bytes(b"x" * 512)
    await dom0.until(lambda report: len(report.devices) == 2)
    (block / "latest.img").write_bytes(b"x" * 512)
    await dom0.until(lambda report: len(report.devices) == 3)
    assert [export.device for export in dom0.report.exports] == ["stick.img"]


async def test_a_block_device_that_is_in_use_here_is_busy_and_not_lent(
    settings: Settings, start: Start, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with looped(image) as path:
        await check_that_a_held_device_is_not_lent(settings, start, path)


async def check_that_a_held_device_is_not_lent(settings: Settings, start: Start, path: str) -> None:
    (settings.devices / "block" / "disk").symlink_to(path)
    (found,) = discovery_folder.scan(settings.devices)
    assert found.device.busy is None
    dom0 = await start(settings)
    holder = os.open(path, os.O_RDONLY | os.O_EXCL)  # as a mount does
    try:
        (found,) = discovery_folder.scan(settings.devices)
        assert found.device.busy == "mounted or otherwise in use in this VM"
        # Mounting causes no event in the folder: the agent looks again before it lends.
        with pytest.raises(CallError, match="otherwise in use") as refused:
            await dom0.lend(ATTACHMENT, "disk", 3)
        assert refused.value.code == "busy"
    finally:
        os.close(holder)


async def test_plugging_growing_and_unplugging_are_reported(
    settings: Settings, start: Start
) -> None:
    dom0 = await start(settings)
    assert dom0.report.devices == ()
    path = settings.devices / "block" / "stick.img"
    path.write_bytes(b"x" * 100)
    await dom0.until(lambda report: [device.size for device in report.devices] == [100])
    path.write_bytes(b"x" * 200)
    await dom0.until(lambda report: [device.size for device in report.devices] == [200])
    path.unlink()
    await dom0.until(lambda report: report.devices == ())


async def test_a_symbolic_link_as_a_device_is_watched_where_it_leads(
    settings: Settings, start: Start, tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere/stick.img"
    (settings.devices / "block" / "stick.img").symlink_to(target)
    dom0 = await start(settings)
    assert dom0.report.devices == ()
    target.parent.mkdir()
    target.write_bytes(b"x" * 100)
    await dom0.until(lambda report: [device.size for device in report.devices] == [100])
    target.write_bytes(b"x" * 200)
    await dom0.until(lambda report: [device.size for device in report.devices] == [200])
    target.unlink()
    await dom0.until(lambda report: report.devices == ())


def device(number: int, text: str = "disk") -> LocalDevice:
    return LocalDevice(
        Device(
            device_class="block",
            device=f"disk{number}",
            identity="",
            description=text,
            size=1,
            parent=None,
            read_only=False,
            busy=None,
        )
    )


def inventory() -> Inventory:
    return Inventory(Revision(), lambda: None)


def test_more_devices_than_a_vm_may_have_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    devices = inventory()
    devices.replace("folder", [device(number) for number in range(DEVICES_MAX + 5)])
    assert len(devices.devices()) == DEVICES_MAX
    assert "5 devices are not listed" in caplog.text


def test_a_known_device_is_not_pushed_out_by_new_ones() -> None:
    devices = inventory()
    devices.replace("folder", [device(999)])
    devices.replace("folder", [device(number) for number in range(1000)])
    assert devices.get("block", "disk999") is not None


def test_the_longest_texts_still_fit_into_one_report() -> None:
    devices = inventory()
    devices.replace("folder", [device(number, "x" * 128) for number in range(DEVICES_MAX)])
    report = list(pages(1, devices.devices(), [], [], devices.missing()))
    assert sum(len(page.devices) for page in report) == DEVICES_MAX
    assert len(report) <= REPORT_PAGES_MAX
    assert all(len(encode([to_wire(page)])) < FRAME_MAX for page in report)


def test_one_burst_of_changes_is_one_revision() -> None:
    revision = Revision()
    devices = Inventory(revision, lambda: None)
    devices.replace("folder", [device(1)])
    devices.replace("folder", [device(1)])
    assert revision.number == 1


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def test_a_usb_device_is_listed_with_its_interfaces_and_a_hub_is_not(tmp_path: Path) -> None:
    usb = "bus/usb/devices"
    write_tree(
        tmp_path,
        {
            f"{usb}/usb1/idVendor": "1d6b",
            f"{usb}/1-1/bDeviceClass": "09",
            f"{usb}/1-1/idVendor": "05e3",
            f"{usb}/1-1/idProduct": "0608",
            f"{usb}/1-2/bDeviceClass": "00",
            f"{usb}/1-2/idVendor": "046d",
            f"{usb}/1-2/idProduct": "c52b",
            f"{usb}/1-2/manufacturer": "Logitech",
            f"{usb}/1-2/product": "USB <Receiver>",
        },
    )
    (tmp_path / usb / "1-2/descriptors").write_bytes(descriptors(configuration("u030101")))
    (found,) = discovery_sysfs.scan(tmp_path, tmp_path)
    assert found.device.device == "1-2"
    assert found.device.identity == "046d:c52b::u030101"
    assert found.device.description == "Logitech USB _Receiver_"


def test_a_serial_number_cannot_pose_as_another_identity(tmp_path: Path) -> None:
    usb = "bus/usb/devices"
    files = {"idVendor": "dead", "idProduct": "beef", "serial": "x::u080650" + "\u202e" * 300}
    write_tree(tmp_path, {f"{usb}/3-1.4/{name}": text for name, text in files.items()})
    (found,) = discovery_sysfs.scan(tmp_path, tmp_path)
    assert is_identity(found.device.identity)
    assert found.device.identity.count(":") == 3


def test_a_pci_device_is_listed_with_its_class(tmp_path: Path) -> None:
    files = {"vendor": "0x8086", "device": "0x1234", "class": "0x0c0330"}
    write_tree(tmp_path, {f"bus/pci/devices/0000:00:1f.0/{k}": v for k, v in files.items()})
    (found,) = discovery_sysfs.scan(tmp_path, tmp_path)
    assert found.device.device == "00_1f.0"
    assert found.device.identity == "8086:1234::p0c0330"
    assert found.device.description == "USB controller: 8086:1234"


def test_a_capture_device_is_the_mic(tmp_path: Path) -> None:
    look = partial(discovery_mic.look, None, str(tmp_path))
    write_tree(tmp_path, {"asound/pcm": "00-03: HDMI 0 : HDMI 0 : playback 1"})
    assert look() == []
    write_tree(tmp_path, {"asound/pcm": "00-00: ALC : ALC Analog : playback 1 : capture 1"})
    (found,) = look()
    assert (found.device.device_class, found.device.device) == ("mic", "mic")
    assert found.device.description == "ALC"
    assert found.device.busy == "this agent serves no sound server (--sound-socket)"
    with Failing(None, errno.EIO, always="asound/pcm"), pytest.raises(OSError, match="Input"):
        look()


def test_the_mic_is_busy_until_the_session_has_listed_its_own(tmp_path: Path) -> None:
    write_tree(tmp_path, {"asound/pcm": "00-00: ALC : ALC Analog : playback 1 : capture 1"})
    link = LinkServer(tmp_path / "sound.sock", make_settings(tmp_path, "work", 3))
    link.session = Session(cast(Any, SimpleNamespace(uid=0)), 1, lambda: None)
    for lack in (NOT_YET, ""):  # before and after it said that a sound server answers
        link.session.lack = lack
        (found,) = discovery_mic.look(link, str(tmp_path))
        assert found.device.busy == NOT_YET


def test_a_machine_without_sysfs_has_no_devices(tmp_path: Path) -> None:
    assert discovery_sysfs.scan(tmp_path, tmp_path) == []
