"""Block devices of a domain, from a /sys, a /proc and a udev database of our own."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from pedos_agent.device_classes.base import Carried
from pedos_agent.device_classes.block import discovery_block
from pedos_agent.device_classes.block.block_use import mounted
from pedos_agent.device_classes.block.discovery_block import watch
from pedos_agent.device_classes.block.identity import identity_of
from pedos_agent.device_classes.xen_backends import connecting
from pedos_agent.inventory.identities import SERIAL_MAX, UUID_MAX, part
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.system.reading import TableTooLong, lines_of
from pedos_agent.system.revision import Revision
from pedos_agent.system.udev_text import as_words, decoded, udev_properties
from pedos_host.exclusive import IN_USE
from pedos_protocol.messages import Device
from pedos_protocol.names import is_identity

from tests.patience import PATIENCE

from .xen_tree import Tree

PROPERTIES = (
    *("ID_SERIAL", "ID_INSTANCE", "ID_NSID", "ID_WWN", "DM_UUID", "MD_UUID", "ID_FS_LABEL_ENC"),
    *("ID_PART_ENTRY_UUID", "ID_FS_UUID", "ID_FS_UUID_ENC"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def scan(
    tree: Tree,
    *,
    exports: Collection[tuple[str, int]] = (),
    borrowed: Collection[str] = (),
    held: str = "",
) -> list[Device]:
    carried = Carried(exports, borrowed)
    found = discovery_block.scan(carried, tree.roots, lambda path: path.endswith(f"/{held}"))
    return [each.device for each in found]


def busy(tree: Tree, **more: Collection[tuple[str, int]]) -> dict[str, str | None]:
    return {device.device: device.busy for device in scan(tree, **more)}


def test_a_stick_with_a_partition(tree: Tree) -> None:
    tree.add("sda", sectors=4096, ID_VENDOR="SanDisk", ID_MODEL="Ultra_Fit", ID_SERIAL="SanDisk_1")
    tree.add(
        "sda1",
        parent="sda",
        read_only=True,
        ID_SERIAL="SanDisk_1",
        ID_PART_ENTRY_UUID="0b1c-02",
        ID_FS_TYPE="vfat",
        ID_FS_LABEL="KEYS",
        ID_FS_UUID="1A2B-3C4D",
    )
    disk, partition = scan(tree)
    assert disk == Device(
        "block", "sda", "SanDisk_1::", "SanDisk Ultra Fit", 2 << 20, None, False, None
    )
    assert partition == Device(
        "block",
        "sda1",
        "SanDisk_1:0b1c-02:",
        "vfat KEYS 1A2B-3C4D",
        1 << 20,
        "sda",
        True,
        None,
    )


def test_a_disk_is_a_part_of_its_usb_stick_and_a_partition_of_its_disk(tree: Tree) -> None:
    tree.add("sda")
    tree.add("sdb", below="pci0000:00/0000:00_14.0/usb2/2-1/2-1.3/2-1.3:1.0/host6/block")
    tree.add("sdb1", parent="sdb", below="pci0000:00/usb2/2-1/2-1.3/2-1.3:1.0/host6/block")
    parents = {each.device: (each.parent_class, each.parent) for each in scan(tree)}
    assert parents == {"sda": (None, None), "sdb": ("usb", "2-1.3"), "sdb1": (None, "sdb")}


def test_disks_come_in_the_order_that_people_count_in(tree: Tree) -> None:
    for name in ("sdb", "sda10", "sda2", "sda"):
        tree.add(name, parent="sda" if name in ("sda10", "sda2") else None)
    assert [device.device for device in scan(tree)] == ["sda", "sda2", "sda10", "sdb"]


def test_the_vms_own_and_its_borrowed_disks_are_not_offered(tree: Tree) -> None:
    names = ("xvda", "xvda1", "xvdd", "xvdi", "xvdi1", "xvdj", "ram0", "zram0", "fd0", "loop7")
    for name in names:
        tree.add(name)
    assert [device.device for device in scan(tree, borrowed={"xvdi"})] == ["loop7", "xvdj"]


async def test_a_disk_that_comes_later_is_being_lent_to_this_vm(tree: Tree) -> None:
    tree.add("xvdj")
    rescan, carried = Revision(), Carried()
    looks: list[list[str]] = []

    async def look(count: int) -> list[str]:
        rescan.bump()
        with trio.fail_after(PATIENCE):
            while len(looks) < count:
                await trio.testing.wait_all_tasks_blocked(0.01)
        return looks[-1]

    def deliver(found: list[LocalDevice]) -> None:
        looks.append([each.device.device for each in found])

    async with trio.open_nursery() as nursery:
        await nursery.start(watch, deliver, lambda: carried, rescan, tree.roots)
        assert looks == [["xvdj"]]
        tree.add("xvdi")
        tree.add("sda")
        assert await look(2) == ["sda", "xvdj"]
        (tree.roots.sys / "class/block/xvdj").unlink()
        assert await look(3) == ["sda"]
        nursery.cancel_scope.cancel()


async def test_what_is_lent_by_hand_is_seen_without_an_event(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery_block, "CONNECT_SECONDS", 0.0)
    number = tree.add("sda")
    tree.serve(7, "0:0")  # the hotplug script tells it later
    busy: list[str | None] = []

    def deliver(found: list[LocalDevice]) -> None:
        busy.append(found[0].device.busy)
        if len(busy) == 2:
            tree.serve(7, number)

    async with trio.open_nursery() as nursery:
        await nursery.start(watch, deliver, Carried, Revision(), tree.roots)
        with trio.fail_after(PATIENCE):
            while len(busy) < 3:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert busy == [None, None, "lent to domain 7 by the toolstack"]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(busy) == 3, "it goes on looking"
        nursery.cancel_scope.cancel()


def test_a_backend_is_connecting_until_it_has_its_device(tree: Tree) -> None:
    tree.serve(7, "0:0")
    assert connecting(tree.roots.sys)
    tree.serve(7, "8:0")
    assert not connecting(tree.roots.sys)


def test_what_has_no_size_is_no_disk(tree: Tree) -> None:
    tree.add("loop0", sectors=0)
    tree.add("sr0", sectors=0)
    assert scan(tree) == []


def test_a_disk_below_a_disk_is_none_of_its_partitions(tree: Tree) -> None:
    tree.mount(tree.add("mmcblk0"), "/mnt")
    tree.add("mmcblk0boot0", parent="mmcblk0")
    (tree.roots.sys / "class/block/mmcblk0boot0/partition").unlink()
    assert [(each.parent, each.busy) for each in scan(tree)] == [
        (None, "mounted at /mnt"),
        (None, None),
    ]


def test_a_name_that_cannot_be_an_id_is_left_out(tree: Tree) -> None:
    tree.add("cciss!c0d0")
    assert scan(tree) == []


def test_a_device_that_goes_while_it_is_looked_at(tree: Tree) -> None:
    tree.add("sda")
    (tree.roots.dev / "sda").unlink()
    assert scan(tree) == []


def test_a_loop_device_is_known_by_its_image(tree: Tree) -> None:
    tree.add("loop0", ID_FS_TYPE="ext4", ID_FS_UUID="f00d")
    tree.field("loop0", "loop/backing_file", "/srv/backup.img")
    (device,) = scan(tree)
    assert device.description == "/srv/backup.img; ext4 f00d"
    assert device.identity == "::f00d"


def test_without_udev_a_disk_is_known_by_its_bus(tree: Tree) -> None:
    number = tree.add("sda")
    (tree.roots.udev / f"b{number}").unlink()
    tree.field("sda", "device/vendor", "ATA")
    tree.field("sda", "device/model", "QEMU HARDDISK")
    (device,) = scan(tree)
    assert (device.description, device.identity) == ("ATA QEMU HARDDISK", "")


def test_a_disk_of_which_udev_has_not_said_what_it_is_is_not_lent(tree: Tree) -> None:
    number = tree.add("sda", ID_SERIAL="Denied_Stick")
    database = tree.roots.udev / f"b{number}"
    said = database.read_text()
    database.unlink()

    def stale() -> list[str | None]:
        return [device.stale for device in scan(tree)]

    assert stale() == ["udev has not looked at it yet"]
    database.write_text(said)
    assert stale() == [None]
    shutil.rmtree(tree.roots.udev)  # where no udev runs, nothing is waited for
    assert stale() == [None]


def test_a_strangers_text_is_harmless(tree: Tree) -> None:
    tree.add("sda", ID_FS_LABEL="<b>\x1b[2J`id`", ID_SERIAL="a/b c\x07")
    (device,) = scan(tree)
    assert not set(device.description) & set("<>\x1b`")
    assert is_identity(device.identity)
    assert device.identity.startswith("a_b_c_-")


def test_a_mounted_partition_makes_its_disk_busy_and_no_other(tree: Tree) -> None:
    tree.add("sda")
    number = tree.add("sda1", parent="sda")
    tree.add("sda2", parent="sda")
    tree.mount(number, "/mnt/my\\040disk")
    assert busy(tree) == {
        "sda": "sda1 is mounted at /mnt/my disk",
        "sda1": "mounted at /mnt/my disk",
        "sda2": None,
    }


def test_a_disk_that_is_used_as_a_whole_makes_its_partitions_busy(tree: Tree) -> None:
    tree.mount(tree.add("sda"), "/mnt")
    tree.add("sda1", parent="sda")
    assert busy(tree)["sda1"] == "sda is mounted at /mnt"


def test_a_file_system_of_several_disks_is_known_by_its_source(tree: Tree) -> None:
    tree.add("sda")
    tree.mount("0:45", "/data", source="/dev/sda")  # btrfs
    assert busy(tree) == {"sda": "mounted at /data"}


def test_mounts_of_a_user_with_long_names_fail_no_look(tree: Tree) -> None:
    tree.add("sda")
    tree.mount(tree.add("sdb"), "/first")
    with (tree.roots.proc / "self/mountinfo").open("a") as file:
        name = "\\040" * 4095
        for number in range(300):  # with FUSE he may have a thousand
            file.write(f"36 35 0:{number} / /{name} rw - fuse.x {name} rw\n")
    tree.mount(tree.add("sdc"), "/last")
    assert (tree.roots.proc / "self/mountinfo").stat().st_size > 8 << 20
    assert busy(tree) == {"sda": None, "sdb": "mounted at /first", "sdc": "mounted at /last"}


def test_with_more_mounts_than_are_read_each_disk_may_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("36 35 8:1 / /a rw - ext4 x rw\n" * 9)
    numbers = {"/dev/sda": "8:1", "/dev/sdb": "8:2"}
    found = mounted(lines_of(str(tmp_path / "mounts"), limit=100), numbers)
    assert found.keys() == {"8:1", "8:2"}
    assert found["8:1"] == "mounted at /a"
    assert found["8:2"].startswith("perhaps mounted")
    with pytest.raises(TableTooLong):
        list(lines_of(str(tmp_path / "mounts"), limit=269))
    assert len(list(lines_of(str(tmp_path / "mounts"), limit=270))) == 9
    assert list(lines_of(str(tmp_path / "none"))) == []


def test_swap_space_is_busy(tree: Tree) -> None:
    tree.add("sda")
    tree.swap("/dev/sda")
    assert busy(tree) == {"sda": "used as swap space"}


def test_what_a_volume_is_made_of_is_busy(tree: Tree) -> None:
    tree.add("sda")
    tree.add("dm-0")
    tree.field("dm-0", "dm/name", "secret")
    (tree.roots.sys / "class/block/sda/holders/dm-0").touch()
    assert busy(tree) == {"dm-0": None, "sda": "part of dm-0 (secret)"}


@pytest.mark.parametrize("path", ["/dev/sda1", "/dev/sda1 (deleted)"])
def test_what_a_loop_device_is_made_of_is_busy(tree: Tree, path: str) -> None:
    tree.add("sda")
    tree.add("sda1", parent="sda")
    tree.add("loop1")
    tree.field("loop1", "loop/backing_file", path)
    assert busy(tree) == {
        "loop1": None,
        "sda": "sda1 is used by loop1",
        "sda1": "used by loop1",
    }


def test_a_volume_that_a_loop_device_is_made_of_is_known_by_its_name(tree: Tree) -> None:
    tree.add("dm-0")
    tree.field("dm-0", "dm/name", "home")
    tree.add("loop1")
    tree.field("loop1", "loop/backing_file", "/dev/mapper/home")
    assert busy(tree) == {"dm-0": "used by loop1", "loop1": None}


@pytest.mark.parametrize("path", ["/srv/dev/sda", "/dev/sda.img", "/dev/sda\x1b[2J", ""])
def test_a_loop_device_of_another_file_makes_no_disk_busy(tree: Tree, path: str) -> None:
    tree.add("sda")
    tree.add("loop1")
    tree.field("loop1", "loop/backing_file", path)
    assert busy(tree) == {"loop1": None, "sda": None}


def test_a_mounted_volume_is_known_by_its_name(tree: Tree) -> None:
    tree.add("dm-0")
    tree.field("dm-0", "dm/name", "home")
    tree.mount("0:99", "/home", source="/dev/mapper/home")
    assert busy(tree) == {"dm-0": "mounted at /home"}


def test_what_somebody_lends_by_hand_is_busy(tree: Tree) -> None:
    tree.serve(7, tree.add("sda"))
    assert busy(tree) == {"sda": "lent to domain 7 by the toolstack"}


def test_what_the_agent_itself_lends_is_not_busy(tree: Tree) -> None:
    tree.add("sda")
    tree.serve(7, tree.add("sda1", parent="sda"))
    # The agent holds it, and with it its disk, exclusively.
    assert scan(tree, exports={("sda1", 7)}, held="sda")[0].busy is None
    assert scan(tree, exports={("sda1", 7)}, held="sda1")[1].busy is None
    assert scan(tree, exports={("sda1", 8)})[1].busy == "lent to domain 7 by the toolstack"


def test_what_is_held_in_some_other_way_is_busy(tree: Tree) -> None:
    tree.add("sda")
    (device,) = scan(tree, held="sda")
    assert device.busy == IN_USE


@pytest.mark.parametrize("line", ["", "1 2", "36 35 8:1 / /mnt rw", "a b c d e f g - x"])
def test_lines_that_are_no_mounts_are_passed_over(line: str) -> None:
    assert mounted([line], {"/dev/sda": "8:1"}) == {}


def test_udevs_database_is_read() -> None:
    text = "S:disk/by-uuid/x\nE:ID_SERIAL=a=b\nE:broken\nG:systemd\nE:EMPTY=\n"
    assert udev_properties(text) == {"ID_SERIAL": "a=b", "EMPTY": ""}


# Ends of lines for str.splitlines, and no end of a line of udev's.
ENDS = "\x0b\x0c\r\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("end", ENDS)
def test_a_label_does_not_become_another_property(tree: Tree, end: str) -> None:
    said = udev_properties(f"E:ID_SERIAL=true\nE:ID_FS_LABEL=a{end}E:ID_SERIAL=false\n")
    assert identity_of(said) == "true::"


@pytest.mark.parametrize("end", ENDS)
def test_a_mount_point_does_not_hide_that_a_disk_is_mounted(tree: Tree, end: str) -> None:
    tree.add("sda")
    tree.mount("8:1", f"/mnt/a{end}b")
    (reason,) = busy(tree).values()
    assert reason is not None
    assert reason.startswith("mounted at /mnt/a")


def test_identities_are_bounded() -> None:
    said = {"ID_SERIAL": "s" * 500, "ID_PART_ENTRY_UUID": "p" * 500, "ID_FS_UUID": "f"}
    serial, partition, system = identity_of(said).split(":")
    assert serial.startswith("s" * 50)
    assert partition.startswith("p" * 20)
    assert (len(serial), len(partition), system) == (SERIAL_MAX, UUID_MAX, "")
    assert identity_of({"ID_WWN": "0x5000"}) == "0x5000::"
    assert identity_of({}) == ""


# Characters that an identity cannot have.
TWO = [
    # One make of sticks, and two slots of a card reader.
    ({"ID_SERIAL": f"{'x' * 60}E0D55EA574A8E42{last}-0:0"} for last in "AB"),
    ({"ID_SERIAL": f"{'x' * 60}-0:{slot}"} for slot in "01"),
    ({"ID_SERIAL": "Reader_1", "ID_INSTANCE": f"0:{slot}"} for slot in "01"),
    ({"ID_SERIAL": "Disk_1", "ID_NSID": space} for space in "12"),
    # Characters that an identity has not.
    ({"ID_SERIAL": serial} for serial in ("a b", "a_b")),
    ({"ID_SERIAL": serial} for serial in ("a b", "a+b")),
    ({"ID_SERIAL": serial} for serial in ("\N{SNOWMAN}", "\N{UMBRELLA}")),
    # Volumes with a copy of one file system, as a snapshot has.
    ({"DM_UUID": f"LVM-{which}", "ID_FS_UUID": "f00d"} for which in "ab"),
    ({"ID_FS_UUID": f"{'0' * 60}{which}"} for which in "ab"),
    ({"ID_FS_UUID": "a_b", "ID_FS_UUID_ENC": uuid} for uuid in (r"a\x20b", "a_b")),
    ({"ID_SERIAL": "1", "ID_PART_ENTRY_UUID": f"{'0' * 60}{which}"} for which in "ab"),
]


@pytest.mark.parametrize("said", TWO)
def test_what_is_cut_is_replaced_by_a_digest_of_the_whole(said: Iterable[dict[str, str]]) -> None:
    first, second = map(identity_of, said)
    assert is_identity(first)
    assert is_identity(second)
    assert first != second


@given(st.text(), st.text())
def test_any_two_serial_numbers_are_two_identities(one: str, other: str) -> None:
    assert is_identity(part(one))
    assert (part(one) == part(other)) == (one == other)


@given(st.dictionaries(st.sampled_from(PROPERTIES), st.text(st.characters(codec="utf-8"))))
def test_any_properties_of_udev_give_a_device(said: dict[str, str]) -> None:
    text = "".join(f"E:{name}={value}\n" for name, value in said.items())
    known = udev_properties(text)
    assert known.keys() >= said.keys() - {name for name in said if "\n" in said[name]}
    assert is_identity(identity_of(known))
    assert "\n" not in as_words(said.get("ID_FS_LABEL_ENC", ""))


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_decoded_as_udev_encodes_it(text: str) -> None:
    encoded = "".join(
        each
        if each.isalnum() or each in "#+-.:=@_"
        else "".join(f"\\x{byte:02x}" for byte in each.encode())
        for each in text
    )
    assert decoded(encoded) == text


@given(st.text())
def test_no_text_breaks_the_decoder(text: str) -> None:
    assert isinstance(decoded(text), str)


def test_what_udev_encodes_is_decoded_before_it_is_made_harmless(tree: Tree) -> None:
    tree.add(
        "sda",
        ID_VENDOR_ENC=r"General\x20",
        ID_VENDOR="General_",
        ID_MODEL_ENC=r"UDisk\x20\x20\x205_00\x20\x20",
        ID_MODEL="UDisk",
    )
    tree.add(
        "sda1",
        parent="sda",
        ID_PART_ENTRY_NAME=r"Basic\x20data\x20partition",
        ID_FS_TYPE="vfat",
        ID_FS_LABEL="MY_PHOTOS",
        ID_FS_LABEL_ENC=r"MY\x20PHOTOS\x1b[2J\x0aE:ID_SERIAL=x",
    )
    disk, partition = scan(tree)
    assert disk.description == "General UDisk 5_00"
    assert partition.description.startswith("Basic data partition; vfat MY PHOTOS")
    assert partition.description.isprintable()
    assert partition.identity == ""
