"""Devices that share data are one family, under any names, and lent once, by whichever agent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes.base import Carried
from pedos_agent.device_classes.block import device_mapper, discovery_block, folder_data
from pedos_agent.device_classes.block.areas import Area, Disks, overlap, sharing
from pedos_agent.device_classes.block.device_mapper import Target, parsed
from pedos_agent.device_classes.block.loop_status import LoopStatus, as_stat_has_it, status_of
from pedos_agent.device_classes.block.reserve import reserve
from pedos_agent.settings import Settings
from pedos_agent.system.roots import Roots
from pedos_host.threads import NoThreadError
from pedos_protocol.errors import CallError
from pedos_protocol.fields import SHARES_MAX
from pedos_protocol.messages import Device

from .conftest import ATTACHMENT, FakeDom0, make_settings, needs_fuse
from .loops import looped
from .xen_tree import Tree

Start = Callable[[Settings], Awaitable[FakeDom0]]
ANOTHER = "b" * 16
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root swaps")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def loop(tree: Tree, name: str, file: Path | str, offset: int = 0, limit: int = 0) -> None:
    tree.add(name)
    tree.field(name, "loop/backing_file", str(file))
    tree.field(name, "loop/offset", str(offset))
    tree.field(name, "loop/sizelimit", str(limit))


def shares(tree: Tree) -> dict[str, tuple[str, ...]]:
    found = discovery_block.scan(Carried(), tree.roots, lambda _path: False)
    return {item.device.device: item.device.shares for item in found}


def busy(tree: Tree) -> dict[str, str | None]:
    found = discovery_block.scan(Carried(), tree.roots, lambda _path: False)
    return {item.device.device: item.device.busy for item in found}


# In one VM


def test_two_loop_devices_of_one_file_are_one_family(tree: Tree, image: Path) -> None:
    loop(tree, "loop0", image)
    link = image.with_name("another name")
    link.hardlink_to(image)
    loop(tree, "loop1", link)
    symlink = image.with_name("a symbolic link")
    symlink.symlink_to(image)
    loop(tree, "loop2", symlink)
    image.with_name("other.img").write_bytes(b"x")
    loop(tree, "loop3", image.with_name("other.img"))
    assert shares(tree) == {
        "loop0": ("loop1", "loop2"),
        "loop1": ("loop0", "loop2"),
        "loop2": ("loop0", "loop1"),
        "loop3": (),
    }


@pytest.mark.parametrize(
    ("offset", "limit", "is_shared"),
    [(0, 0, True), (4096, 0, False), (4095, 0, True), (8192, 4096, False), (0, 1, True)],
)
def test_only_what_overlaps_is_shared(
    tree: Tree, image: Path, offset: int, limit: int, is_shared: bool
) -> None:
    loop(tree, "loop0", image, 0, 4096)
    loop(tree, "loop1", image, offset, limit)
    assert shares(tree)["loop0"] == (("loop1",) if is_shared else ())


def test_a_loop_device_whose_file_was_removed_shares_with_another_of_it(tree: Tree) -> None:
    loop(tree, "loop0", "/srv/gone.img (deleted)")
    loop(tree, "loop1", "/srv/gone.img (deleted)")
    assert shares(tree) == {"loop0": ("loop1",), "loop1": ("loop0",)}


def test_the_kernels_word_on_a_loop_device_counts_before_its_path(tree: Tree, image: Path) -> None:
    loop(tree, "loop0", "/elsewhere/disk.img (deleted)")
    status = image.stat()
    said = LoopStatus(status.st_dev, status.st_ino, 0)
    disks = Disks(tree.roots, loop_status=lambda _path: said)
    assert disks.areas("loop0") == (Area(f"file:{status.st_dev}:{status.st_ino}"),)


def test_what_shares_its_data_with_what_is_mounted_is_in_use(tree: Tree, image: Path) -> None:
    loop(tree, "loop0", image)
    loop(tree, "loop1", image)
    number = (tree.roots.sys / "class/block/loop0/dev").read_text().strip()
    tree.mount(number, "/mnt")
    assert busy(tree) == {
        "loop0": "mounted at /mnt",
        "loop1": "its data is that of loop0, which is mounted at /mnt",
    }


def test_what_shares_its_data_with_what_is_held_is_in_use(tree: Tree, image: Path) -> None:
    loop(tree, "loop0", image)
    loop(tree, "loop1", image)
    found = discovery_block.scan(Carried(), tree.roots, lambda path: path.endswith("loop0"))
    assert "its data is that of loop0" in (found[1].device.busy or "")


def test_a_loop_device_of_a_partition_shares_with_it_and_its_disk(tree: Tree) -> None:
    tree.add("sda")
    for number in (1, 2):
        tree.add(f"sda{number}", parent="sda")
        tree.field(f"sda{number}", "start", str(number * 2048))
    loop(tree, "loop0", "/dev/sda1")
    assert shares(tree) == {
        "loop0": ("sda", "sda1"),
        "sda": ("loop0",),
        "sda1": ("loop0",),
        "sda2": (),
    }
    assert busy(tree)["sda1"] == "used by loop0"
    assert busy(tree)["loop0"] is None


def test_more_sharers_than_can_be_told_is_no_device_to_lend(tree: Tree, image: Path) -> None:
    for number in range(SHARES_MAX + 2):
        loop(tree, f"loop{number}", image)
    assert all(len(each) == SHARES_MAX for each in shares(tree).values())
    assert set(busy(tree).values()) == {f"its data is that of {SHARES_MAX + 1} other devices"}


def mapped(tree: Tree, tables: dict[str, list[Target] | None]) -> dict[str, set[str]]:
    """What shares data, of dm-0, dm-1... with these tables over the disk sda."""
    sda = tree.add("sda", sectors=1 << 20)
    numbers = {}
    for name in tables:
        numbers[tree.add(name)] = name
        (tree.roots.sys / f"class/block/{name}/slaves").mkdir()
        tree.field(name, "slaves/sda", "")
    placed = {
        name: None if table is None else [
            Target(**{**each.__getstate__(), "device": each.device and sda}) for each in table
        ]
        for name, table in tables.items()
    }  # fmt: skip
    disks = Disks(tree.roots, table=lambda number, _roots: placed[numbers[number]])
    return sharing({name: disks.areas(name) for name in ("sda", *tables)})


def linear(start: int, length: int) -> Target:
    return Target(start, length, "sda")


def test_two_mappings_of_one_area_are_one_family_and_two_volumes_of_a_disk_are_not(
    tree: Tree,
) -> None:
    found = mapped(
        tree,
        {
            "dm-0": [linear(0, 100), linear(500, 100)],
            "dm-1": [linear(599, 10)],
            "dm-2": [linear(100, 400)],
            "dm-3": [Target(600, 50, "sda", in_order=False)],
        },
    )
    assert found["dm-0"] == {"sda", "dm-1"}
    assert found["dm-1"] == {"sda", "dm-0", "dm-3"}
    assert found["dm-2"] == {"sda"}
    assert found["sda"] == {"dm-0", "dm-1", "dm-2", "dm-3"}


def test_thin_volumes_share_when_they_are_the_same_one(tree: Tree) -> None:
    found = mapped(
        tree,
        {
            "dm-0": [Target(opaque="thin:253:9:1")],
            "dm-1": [Target(opaque="thin:253:9:2")],
            "dm-2": [Target(opaque="thin:253:9:1")],
        },
    )
    assert found == {"dm-0": {"dm-2"}, "dm-2": {"dm-0"}}


@pytest.mark.parametrize("table", [None, [Target()]])
def test_a_mapping_that_is_not_understood_may_be_anywhere_on_its_disks(
    tree: Tree, table: list[Target] | None
) -> None:
    found = mapped(tree, {"dm-0": [linear(0, 100)], "dm-1": table})
    assert found["dm-0"] == {"sda", "dm-1"}


GROUP, OTHER_GROUP = "g" * 32, "h" * 32


def volumes(tree: Tree, uuids: dict[str, str], slaves: dict[str, tuple[str, ...]]) -> None:
    """Mappings as sysfs has them, for an agent that may not ask for their tables."""
    for name, uuid in uuids.items():
        tree.add(name)
        tree.field(name, "dm/uuid", uuid)
    for name, below in slaves.items():
        for each in below:
            tree.field(name, f"slaves/{each}", "")
            tree.field(each, f"holders/{name}", "")


def lvm(volume: str, part: str = "", group: str = GROUP) -> str:
    return f"LVM-{group}{volume * 32}{part}"


@pytest.mark.parametrize("encrypted", [False, True])
def test_without_a_table_a_mounted_volume_of_lvm_leaves_the_others_of_its_group_to_lend(
    tree: Tree, encrypted: bool
) -> None:
    tree.add("sda")
    tree.add("sda1", parent="sda")
    tree.field("sda1", "start", "64")
    below = "dm-0" if encrypted else "sda1"
    uuids = {"dm-0": "CRYPT-LUKS2-x"} if encrypted else {}
    slaves = {"dm-0": ("sda1",)} if encrypted else {}
    volumes(
        tree,
        {**uuids, "dm-1": lvm("r"), "dm-2": lvm("s")},
        {**slaves, "dm-1": (below,), "dm-2": (below,)},
    )
    tree.mount(number_of(tree, "dm-1"), "/")
    reasons = busy(tree)
    assert reasons["dm-1"] == "mounted at /"
    assert reasons["dm-2"] is None
    assert reasons[below] == "part of dm-1, dm-2"
    assert set(shares(tree)["dm-2"]) == {"sda", "sda1", below}


def test_without_a_table_a_mapping_made_by_hand_may_be_of_any_volume(tree: Tree) -> None:
    tree.add("sda")
    volumes(
        tree,
        {"dm-1": lvm("r"), "dm-2": "", "dm-3": lvm("s", group=OTHER_GROUP), "dm-4": "LVM-short"},
        dict.fromkeys(("dm-1", "dm-2", "dm-3", "dm-4"), ("sda",)),
    )
    tree.mount(number_of(tree, "dm-1"), "/")
    assert all(busy(tree).values())
    assert shares(tree)["dm-2"] == ("dm-1", "dm-3", "dm-4", "sda")


def test_without_a_table_a_snapshot_shares_with_its_origin_and_thin_volumes_with_their_pool(
    tree: Tree,
) -> None:
    tree.add("sda")
    volumes(
        tree,
        {
            "dm-0": lvm("o", "-real"), "dm-1": lvm("o"), "dm-2": lvm("c", "-cow"), "dm-3": lvm("c"),
            "dm-4": lvm("d", "-tdata"), "dm-5": lvm("p", "-tpool"),
            "dm-6": lvm("t"), "dm-7": lvm("u"),
        },
        {
            "dm-0": ("sda",), "dm-1": ("dm-0",), "dm-2": ("sda",), "dm-3": ("dm-0", "dm-2"),
            "dm-4": ("sda",), "dm-5": ("dm-4",), "dm-6": ("dm-5",), "dm-7": ("dm-5",),
        },
    )  # fmt: skip
    found = shares(tree)
    assert set(found["dm-1"]) == {"sda", "dm-0", "dm-3"}
    assert set(found["dm-3"]) == {"sda", "dm-0", "dm-1", "dm-2"}
    assert set(found["dm-6"]) == {"sda", "dm-4", "dm-5"}
    assert set(found["dm-7"]) == {"sda", "dm-4", "dm-5"}


def number_of(tree: Tree, name: str) -> str:
    return (tree.roots.sys / f"class/block/{name}/dev").read_text().strip()


def test_a_loop_device_of_a_mapping_is_followed_to_the_disk(tree: Tree) -> None:
    sda = tree.add("sda")
    dm = tree.add("dm-0")
    loop(tree, "loop0", "/dev/dm-0", offset=512)
    disks = Disks(tree.roots, table=lambda _number, _roots: [Target(10, 100, sda)])
    assert dm != sda
    assert disks.areas("loop0") == (Area(f"disk:{sda}", 11 * 512, 110 * 512),)


def answer(*targets: tuple[str, int, str], flags: int = 0) -> bytes:
    """As the kernel's DM_TABLE_STATUS has it (linux/dm-ioctl.h)."""
    data = b""
    for kind, length, words in targets:
        text = words.encode() + b"\0"
        text += bytes(-len(text) % 8)
        following = len(data) + 40 + len(text)
        data += struct.pack("QQiI16s", 0, length, 0, following, kind.encode()) + text
    head = struct.pack("3I3IiIIIQ", 4, 0, 0, 4096, 312, len(targets), 0, flags, 0, 0, 0)
    return head.ljust(312, b"\0") + data


def test_the_kernels_table_is_read() -> None:
    text = answer(
        ("linear", 100, "8:1 2048"),
        ("crypt", 50, "aes-xts-plain64 :64:logon:x 0 8:2 4096 1 allow_discards"),
        ("striped", 200, "2 128 8:3 0 8:4 16"),
        ("thin", 9, "253:3 7"),
        ("snapshot", 9, "253:4 253:5 P 8"),
        ("zero", 5, ""),
        ("raid", 5, "raid1 3 0 region_size 1024 2 253:1 253:2 253:3 253:4"),
    )
    assert parsed(text) == [
        Target(2048, 100, "8:1"),
        Target(4096, 50, "8:2"),
        Target(0, 100, "8:3", in_order=False),
        Target(16, 100, "8:4", in_order=False),
        Target(opaque="thin:253:3:7"),
        Target(opaque="snapshot:253:5"),
        Target(has_data=False),
        Target(),
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        answer(("linear", 1, "8:1")),
        answer(("linear", 1, "sda 0")),
        answer(("linear", 1, "8:1 x")),
        answer(("striped", 1, "0 8 8:1 0")),
        answer(("linear", 1, "8:1 0"), flags=1 << 8),
        answer(("linear", 1, "8:1 0"))[:330],
    ],
    ids=range(7),
)
def test_a_table_that_cannot_be_read_is_not_known(text: bytes) -> None:
    assert parsed(text) is None


@given(st.binary(max_size=600))
def test_any_answer_of_the_kernel_gives_a_table_or_none(text: bytes) -> None:
    parsed(text)
    parsed(answer(("linear", 1, "8:1 0"))[:312] + text)


def test_without_a_device_mapper_there_is_no_table(tmp_path: Path) -> None:
    assert device_mapper.table("253:0", Roots(dev=tmp_path)) is None


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=2),
        st.lists(st.builds(Area, st.sampled_from("xy"), st.integers(0, 9), st.integers(1, 12))).map(
            lambda areas: tuple(area for area in areas if area.start < area.end)
        ),
    )
)
def test_sharing_is_what_comparing_each_with_each_gives(
    devices: dict[str, tuple[Area, ...]],
) -> None:
    plain = {
        name: {other for other in devices if other != name and overlap(areas, devices[other])}
        for name, areas in devices.items()
    }
    assert sharing(devices) == {name: others for name, others in plain.items() if others}


def test_a_device_number_of_the_kernel_is_that_of_stat() -> None:
    for major, minor in ((8, 1), (253, 300), (259, 70000), (0, 45)):
        kernel = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
        assert as_stat_has_it(kernel) == os.makedev(major, minor)


# The kernel's own loop devices


def test_a_loop_device_is_known_by_its_file(image: Path) -> None:
    with looped(image) as path:
        status = image.stat()
        assert status_of(path) == LoopStatus(status.st_dev, status.st_ino, 0)
    assert status_of(path) is None
    assert status_of(str(image)) is None


def folder(settings: Settings, **names: Path | str) -> Path:
    for name, target in names.items():
        (settings.devices / "block" / name).symlink_to(target)
    return settings.devices


def devices(settings: Settings, carried: Carried = Carried()) -> dict[str, Device]:  # noqa: B008
    found = discovery_folder.scan(settings.devices, carried=lambda _class: carried)
    return {item.device.device: item.device for item in found}


def test_an_image_and_a_loop_device_of_it_are_one_family(settings: Settings, image: Path) -> None:
    with looped(image) as path:
        folder(settings, image=image, loop=path)
        found = devices(settings)
        assert found["image"].shares == ("loop",)
        assert found["loop"].shares == ("image",)
        assert found["image"].busy == f"used by {os.path.basename(path)}"
        assert found["loop"].busy is None


def test_an_image_of_which_a_loop_device_is_made_elsewhere_is_in_use(
    settings: Settings, image: Path
) -> None:
    folder(settings, image=image)
    assert devices(settings)["image"].busy is None
    with looped(image) as path:
        assert devices(settings)["image"].busy == f"used by {os.path.basename(path)}"


def test_two_loop_devices_in_a_folder_share_only_what_overlaps(
    settings: Settings, image: Path
) -> None:
    with looped(image, 0, 4096) as one, looped(image, 4096) as other, looped(image) as whole:
        folder(settings, one=one, other=other, whole=whole)
        found = devices(settings)
        assert found["one"].shares == found["other"].shares == ("whole",)
        assert found["whole"].shares == ("one", "other")
        holder = os.open(one, os.O_RDONLY | os.O_EXCL)  # as a mount does
        try:
            found = devices(settings)
            assert found["other"].busy is None
            assert "its data is that of one" in (found["whole"].busy or "")
            # The agent's own hold does not count as a use by this VM.
            ours = Carried({("one", 3)})
            assert devices(settings, ours)["one"].busy is None
        finally:
            os.close(holder)


def test_of_two_names_of_one_file_the_one_that_is_lent_stays(settings: Settings) -> None:
    block = settings.devices / "block"
    (block / "two.img").write_bytes(b"x")
    (block / "one.img").hardlink_to(block / "two.img")
    found = devices(settings, Carried({("two.img", 3)}))
    assert (found["one.img"].busy, found["two.img"].busy) == ("the same disk as two.img", None)
    assert found["one.img"].shares == ("two.img",)


# One agent lends it once, and so do two


async def refused(dom0: FakeDom0, attachment: str, device: str, **more: bool) -> CallError:
    with pytest.raises(CallError) as error:
        await dom0.lend(attachment, device, 3, **more)
    return error.value


@needs_fuse
async def test_two_loop_devices_of_one_file_are_not_lent_both(
    settings: Settings, start: Start, image: Path
) -> None:
    with looped(image) as one, looped(image) as other:
        folder(settings, one=one, other=other)
        dom0 = await start(settings)
        await dom0.lend(ATTACHMENT, "one", 3)
        error = await refused(dom0, ANOTHER, "other")
        assert (error.code, error.message) == ("busy", "other is already exported, as one")
        await dom0.call("export.stop", attachment=ATTACHMENT)
        await dom0.lend(ANOTHER, "other", 3)
        await dom0.call("export.stop", attachment=ANOTHER)


@needs_fuse
@pytest.mark.parametrize("link", [os.link, os.symlink])
async def test_one_file_in_two_vms_folders_is_lent_writable_by_one(
    settings: Settings, start: Start, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    other = make_settings(tmp_path, "dom0", 4)
    file = settings.devices / "block/x.img"
    file.write_bytes(bytes(4096))
    link(file, other.devices / "block/y.img")
    first, second = await start(settings), await start(other)
    await first.lend(ATTACHMENT, "x.img", 3)
    for read_only in (False, True):
        error = await refused(second, ANOTHER, "y.img", read_only=read_only)
        assert error.code == "busy"
        assert "y.img is lent by another VM" in error.message
    await first.call("export.stop", attachment=ATTACHMENT)
    await second.lend(ANOTHER, "y.img", 3, read_only=True)
    await first.lend(ATTACHMENT, "x.img", 3, read_only=True)
    await first.call("export.stop", attachment=ATTACHMENT)
    assert (await refused(first, ATTACHMENT, "x.img")).code == "busy"
    await second.call("export.stop", attachment=ANOTHER)
    await first.lend(ATTACHMENT, "x.img", 3)
    await first.call("export.stop", attachment=ATTACHMENT)


@needs_fuse
async def test_an_image_in_one_vm_and_a_loop_device_of_it_in_another_are_lent_once(
    settings: Settings, start: Start, tmp_path: Path, image: Path
) -> None:
    other = make_settings(tmp_path, "dom0", 4)
    folder(settings, image=image)
    first = await start(settings)
    await first.lend(ATTACHMENT, "image", 3)
    with looped(image) as path:
        folder(other, loop=path)
        second = await start(other)
        assert (await refused(second, ANOTHER, "loop")).code == "busy"
        await first.call("export.stop", attachment=ATTACHMENT)
        await second.lend(ANOTHER, "loop", 3)
        await second.call("export.stop", attachment=ANOTHER)


@needs_fuse
async def test_what_a_loop_device_was_made_of_after_the_last_look_is_not_lent(
    settings: Settings, start: Start, image: Path
) -> None:
    with looped(image) as one:
        other = image.with_name("other.img")
        other.write_bytes(bytes(1 << 20))
        folder(settings, disk=one, image=other)
        dom0 = await start(settings)
        for device, below in (("disk", Path(one)), ("image", other)):
            with looped(below) as loop:
                error = await refused(dom0, ATTACHMENT, device)
                assert error.code == "busy"
                assert f"{device} is in use here: used by {os.path.basename(loop)}" in error.message


def test_a_file_that_another_program_has_locked_is_not_lent(settings: Settings) -> None:
    path = settings.devices / "block/x.img"
    path.write_bytes(b"x")
    (found,) = discovery_folder.scan(settings.devices)
    with path.open("r+b") as file, contextlib.ExitStack() as held:
        # One byte, as QEMU does.
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(CallError, match="locked"):
            reserve(found, str(path), False, held)
        reserve(found, str(path), True, held)


def make_swap(path: Path) -> None:
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o600)
    subprocess.run(["mkswap", "-q", path], check=True)


@contextlib.contextmanager
def swapping_to(path: Path) -> Iterator[None]:
    ended = subprocess.run(["swapon", path], check=False, capture_output=True, text=True)
    if ended.returncode:
        pytest.skip(f"no swap here: {ended.stderr}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", path], check=True)


@needs_root
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_file_with_swap_space_is_in_use_whatever_it_is_called(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_seen: bool
) -> None:
    """Also when its path is that of another root, as in a container: then the kernel tells."""
    file = settings.devices / "block/x.img"
    make_swap(tmp_path / "swap")
    with swapping_to(tmp_path / "swap"):
        file.symlink_to(tmp_path / "swap")
        if not is_seen:
            monkeypatch.setattr(folder_data, "swap_files", lambda _table: ["/of/another/root"])
        (found,) = discovery_folder.scan(settings.devices)
        assert found.device.busy == ("used as swap space" if is_seen else None)
        for read_only in (False, True) if is_seen else (False,):
            with (
                contextlib.ExitStack() as held,
                pytest.raises(CallError, match=r"x\.img is in use here: used as swap space"),
            ):
                reserve(found, str(file), read_only, held)
    (found,) = discovery_folder.scan(settings.devices)
    assert found.device.busy is None
    with contextlib.ExitStack() as held:
        reserve(found, str(file), False, held)


def test_no_file_is_free_because_there_is_no_thread_to_ask_what_is_swapped_to(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.devices / "block/x.img").write_bytes(b"x")
    monkeypatch.setattr(folder_data, "swap_files", lambda _table: ["/swap"])
    monkeypatch.setattr(folder_data, "in_time", mock.Mock(side_effect=NoThreadError()))
    with pytest.raises(NoThreadError):
        discovery_folder.scan(settings.devices)


@pytest.mark.parametrize(
    ("code", "busy"),
    [
        *(
            (code, "perhaps used as swap space: /swap cannot be looked at")
            for code in (errno.EIO, errno.ETIMEDOUT, errno.ESTALE)
        ),
        # Not of this root, or of no concern to this user.
        *((code, None) for code in (errno.ENOENT, errno.EACCES)),
    ],
)
def test_a_swap_file_that_cannot_be_looked_at_may_be_any_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, code: int, busy: str | None
) -> None:
    file = settings.devices / "block/x.img"
    file.write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(folder_data, "swap_files", lambda _table: ["/swap"])
        failing = mock.Mock(side_effect=OSError(code, os.strerror(code)))
        patch.setattr(folder_data, "in_time", failing)
        (found,) = discovery_folder.scan(settings.devices)
        assert found.device.busy == busy
        for read_only in (False, True) if busy else ():
            with (
                contextlib.ExitStack() as held,
                pytest.raises(CallError, match=rf"x\.img is in use here: {busy}"),
            ):
                reserve(found, str(file), read_only, held)


@needs_root
async def test_that_swap_space_is_used_and_not_any_more_is_told_at_once(
    settings: Settings, start: Start, tmp_path: Path
) -> None:
    make_swap(tmp_path / "swap")
    (settings.devices / "block/x.img").symlink_to(tmp_path / "swap")
    dom0 = await start(settings)

    async def told(why: str | None) -> None:
        await dom0.until(lambda report: [each.busy for each in report.devices] == [why])

    await told(None)
    with swapping_to(tmp_path / "swap"):
        await told("used as swap space")
    await told(None)


def test_a_loop_device_whose_file_cannot_be_locked_is_not_lent(
    settings: Settings, image: Path
) -> None:
    with looped(image) as path:
        folder(settings, loop=path)
        image.unlink()
        (found,) = discovery_folder.scan(settings.devices)
        with contextlib.ExitStack() as held, pytest.raises(CallError, match="cannot be locked"):
            reserve(found, path, False, held)
        image.write_bytes(b"another")
        with contextlib.ExitStack() as held, pytest.raises(CallError, match="cannot be locked"):
            reserve(found, path, False, held)


# An empty drive is no disk


def test_an_empty_drive_is_not_offered(tree: Tree) -> None:
    tree.add("sr0", sectors=2097151, ID_CDROM="1", ID_SERIAL="Drive_1")
    tree.add("sr1", sectors=2097151, ID_CDROM="1", ID_CDROM_MEDIA="1", ID_SERIAL="Drive_2")
    tree.add("sda", ID_SERIAL="x")
    assert set(shares(tree)) == {"sda", "sr1"}


def test_a_file_of_no_bytes_is_no_disk_until_it_has_some(settings: Settings) -> None:
    path = settings.devices / "block/empty.img"
    path.touch()
    assert devices(settings) == {}
    path.write_bytes(b"x")
    assert set(devices(settings)) == {"empty.img"}
    path.write_bytes(b"")
    assert devices(settings) == {}
