"""A real disk through real nbdkit and nbdfuse, and everything that may end it."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_agent.connections import control
from pedos_agent.device_classes import data_channel
from pedos_agent.device_classes.block import exporter
from pedos_agent.inventory.inventory import Inventory
from pedos_host.children import start_child
from pedos_protocol.errors import CallError
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.stream import VchanStream

from tests.trio_versions import LEFT_ALONE

from .conftest import ATTACHMENT, SECONDS, SIZE, Pair, needs_fuse, pid_of

pytestmark = needs_fuse


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


async def read(path: Path) -> bytes:
    """Reads a file in a thread, bounded: a broken mount may hang."""
    with trio.fail_after(SECONDS):
        return await trio.to_thread.run_sync(path.read_bytes, **LEFT_ALONE)


async def test_the_target_reads_the_sources_bytes(pair: Pair) -> None:
    file = await pair.attach()
    assert file.name == "xvdi"
    assert await read(file) == pair.disk.read_bytes()


async def test_a_dom0_that_is_slow_to_take_a_report_is_told_again_and_costs_no_attachment(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await pair.attach()
    monkeypatch.setattr(control, "REPORT_SECONDS", 0.01)
    source, revisions = pair.source, []
    enough, never = trio.Event(), trio.Event()

    async def take(_peer: Peer, params: dict[str, Any]) -> None:
        revisions.append(params["revision"])
        if len(revisions) == 3:
            enough.set()
        await never.wait()

    with trio.fail_after(SECONDS):
        source.peer._server.handlers = {**source.peer._server.handlers, "agent.report": take}
        pair.disk.with_name("another.img").write_bytes(bytes(SIZE))
        await enough.wait()
    assert source.peer.is_open
    assert await read(file) == pair.disk.read_bytes()


@pytest.mark.parametrize(("name", "granted"), [("", True), ("0", False), ("../fd/0", False)])
async def test_a_target_cannot_ask_for_another_file_of_the_source(
    tmp_path: Path, name: str, granted: bool
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(SIZE))
    with opened(tmp_path / "disk.img", os.O_PATH) as source:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                kit = start_child(
                    exporter._nbdkit(source, read_only=False),
                    pass_fds=[source],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                )
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours.dup()))
            async with stream:
                with trio.fail_after(SECONDS):
                    # NBD's fixed newstyle handshake, then NBD_OPT_GO for the export `name`.
                    assert (await stream.receive_some(18)).startswith(b"NBDMAGICIHAVEOPT")
                    data = struct.pack(">I", len(name)) + name.encode() + b"\0\0"
                    option = struct.pack(">I8sII", 3, b"IHAVEOPT", 7, len(data))
                    await stream.send_all(option + data)
                    reply = await stream.receive_some(1000)
            kind = struct.unpack_from(">QII", reply)[2]
            assert (kind < 1 << 31) == granted  # the highest bit says that it is an error
        kit.kill()
        await kit.wait()


async def test_what_the_target_wrote_is_in_the_sources_file_at_once(pair: Pair) -> None:
    file = await pair.attach()
    with opened(file, os.O_RDWR) as fd:
        await trio.to_thread.run_sync(os.pwrite, fd, b"from the target", 4096)
        assert pair.disk.read_bytes()[4096:4111] == b"from the target"


async def test_after_detach_nothing_is_left_and_the_same_attach_works_again(pair: Pair) -> None:
    await pair.attach()
    await pair.detach()
    assert os.listdir(pair.target.settings.dev) == []
    await pair.target.until(lambda report: not report.imports)
    await pair.source.until(lambda report: not report.exports)
    assert await read(await pair.attach()) == pair.disk.read_bytes()


async def test_a_read_only_disk_refuses_writes(pair: Pair) -> None:
    file = await pair.attach(read_only=True)
    assert os.stat(file).st_mode & 0o222 == 0
    assert len(await read(file)) == SIZE
    with pytest.raises(OSError), opened(file, os.O_RDWR) as fd:
        await trio.to_thread.run_sync(os.pwrite, fd, b"x", 0)


async def test_a_source_that_is_read_only_is_exported_so_whatever_was_asked(pair: Pair) -> None:
    pair.disk.chmod(0o444)
    await pair.source.until(lambda report: report.devices[0].read_only)
    before = pair.disk.read_bytes()
    file = await pair.attach()
    with pytest.raises(OSError), opened(file, os.O_RDWR) as fd:
        await trio.to_thread.run_sync(os.pwrite, fd, b"x", 0)
    assert pair.disk.read_bytes() == before


async def test_reports_say_what_is_attached(pair: Pair) -> None:
    await pair.attach()
    (export,) = (await pair.source.until(lambda report: report.exports)).exports
    assert (export.attachment, export.device, export.peer, export.port) == (
        ATTACHMENT,
        "stick.img",
        3,
        7,
    )
    (import_,) = (await pair.target.until(lambda report: report.imports)).imports
    assert (import_.backend, import_.device, import_.frontend) == ("sys-usb", "stick.img", "xvdi")


async def test_the_wished_frontend_is_given(pair: Pair) -> None:
    await pair.source.lend(ATTACHMENT, "stick.img", 3)
    answer = await pair.target.borrow(ATTACHMENT, "stick.img", 2, frontend="xvdj")
    assert answer == {"frontend": "xvdj"}
    assert os.listdir(pair.target.settings.dev) == ["xvdj"]


async def test_a_taken_frontend_is_busy_and_the_next_one_is_chosen_by_itself(pair: Pair) -> None:
    file = pair.target.settings.dev / "xvdi"
    file.write_text("the user's own")
    await pair.source.lend(ATTACHMENT, "stick.img", 3)
    with pytest.raises(CallError, match="xvdi is already used") as refused:
        await pair.target.borrow(ATTACHMENT, "stick.img", 2, frontend="xvdi")
    assert refused.value.code == "busy"
    assert await pair.target.borrow(ATTACHMENT, "stick.img", 2) == {"frontend": "xvdj"}
    await pair.detach()
    assert file.read_text() == "the user's own"
    file.unlink()


@pytest.mark.parametrize("program", ["nbdkit", "nbdfuse"])
async def test_kill_9_of_a_helper_ends_both_sides_and_the_next_attach_works(
    pair: Pair, program: str
) -> None:
    await pair.attach()
    os.kill(pid_of(program), signal.SIGKILL)
    victim, other = (
        (pair.source, pair.target) if program == "nbdkit" else (pair.target, pair.source)
    )
    notice = await victim.ended()
    assert notice.attachment == ATTACHMENT
    assert notice.reason == f"{program} was killed by SIGKILL"
    assert "peer closed the channel" in (await other.ended()).reason
    await pair.source.until(lambda report: not report.exports)
    await pair.target.until(lambda report: not report.imports)
    assert os.listdir(pair.target.settings.dev) == []
    assert await read(await pair.attach()) == pair.disk.read_bytes()


async def test_unplugging_ends_the_attachment(pair: Pair) -> None:
    await pair.attach()
    pair.disk.unlink()
    assert (await pair.source.ended()).reason == "the device was unplugged"
    assert (await pair.target.ended()).side == "import"
    report = await pair.source.until(lambda report: not report.exports)
    assert report.devices == ()


async def test_replacing_the_file_ends_the_attachment(pair: Pair, tmp_path: Path) -> None:
    await pair.attach()
    new = tmp_path / "new.img"
    new.write_bytes(b"\0" * SIZE)
    new.rename(pair.disk)
    assert (await pair.source.ended()).reason == "the device was replaced by another one"
    await pair.target.ended()
    assert await read(await pair.attach()) == b"\0" * SIZE


@needs_fuse
async def test_a_file_that_takes_the_disks_name_before_the_target_comes_is_not_served(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, other = tmp_path / "real.img", tmp_path / "other.img"
    disk.write_bytes(b"\1" * SIZE)
    other.write_bytes(b"\2" * SIZE)
    (pair.disk.parent / "linked.img").symlink_to(disk)
    await pair.source.until(lambda report: len(report.devices) == 2)

    async def exchange(step: str) -> None:
        if step == "export.listening":
            # Before discovery has noticed, which would end the export.
            monkeypatch.setattr(Inventory, "_take", lambda *_: None)
            other.replace(disk)

    monkeypatch.setattr(data_channel, "reach", exchange)
    await pair.source.lend(ATTACHMENT, "linked.img", 3)
    answer = await pair.target.borrow(ATTACHMENT, "linked.img", 2)
    assert await read(pair.target.settings.dev / answer["frontend"]) == b"\1" * SIZE


@needs_fuse
async def test_a_disk_that_is_in_use_is_detached_by_force(pair: Pair) -> None:
    file = await pair.attach()
    with opened(file, os.O_RDWR) as user:
        await trio.to_thread.run_sync(os.pwrite, user, b"acknowledged", 0)
        with trio.fail_after(SECONDS):
            await pair.detach()
        assert os.listdir(pair.target.settings.dev) == []
        with pytest.raises(OSError):
            await trio.to_thread.run_sync(os.pread, user, 10, SIZE // 2)
    assert pair.disk.read_bytes()[:12] == b"acknowledged"


@needs_fuse
async def test_a_disk_that_is_in_use_is_kept_by_a_target_that_may_refuse(pair: Pair) -> None:
    file = await pair.attach()
    with opened(file, os.O_RDWR) as user:
        await trio.to_thread.run_sync(os.pwrite, user, b"first", 0)
        name = Path("/proc/self/comm").read_text().strip()
        words = rf"xvdi is in use: {re.escape(name)} \(pid {os.getpid()}\) has it open"
        with pytest.raises(CallError, match=words) as refused:
            await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
        assert refused.value.code == "busy"
        with pytest.raises(CallError, match=words):
            await pair.target.call("import.check", attachment=ATTACHMENT)
        await trio.to_thread.run_sync(os.pwrite, user, b"again", 0)
    await pair.target.call("import.check", attachment=ATTACHMENT)
    assert file.exists(), "a question has ended it"
    await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
    await pair.target.until(lambda report: not report.imports)
    assert pair.target.report.imports == ()
    assert pair.disk.read_bytes()[:5] == b"again"


def instance(report: Any, device: str = "stick.img") -> str:
    (found,) = (each for each in report.devices if each.device == device)
    assert isinstance(found.instance, str)
    return found.instance


async def test_another_file_is_another_instance_and_is_not_lent_for_the_one_decided_about(
    pair: Pair,
) -> None:
    """The old inode is held, so the new file cannot get its number."""
    before, inode = instance(pair.source.report), pair.disk.stat().st_ino
    data = pair.disk.read_bytes()
    pair.disk.unlink()
    pair.disk.write_bytes(data)
    assert pair.disk.stat().st_ino != inode
    report = await pair.source.until(lambda report: before not in str(report))
    with pytest.raises(CallError, match="another device by now than was decided about") as refused:
        await pair.source.lend(ATTACHMENT, "stick.img", 3, instance=before)
    assert refused.value.code == "not_found"
    await pair.source.lend(ATTACHMENT, "stick.img", 3, instance=instance(report))
    (export,) = (await pair.source.until(lambda report: report.exports)).exports
    assert export.instance == instance(report)


async def test_the_same_file_is_the_same_instance_however_often_it_is_looked_at(
    pair: Pair,
) -> None:
    before = instance(pair.source.report)
    os.truncate(pair.disk, 2 * SIZE)
    pair.disk.with_name("other.img").write_bytes(b"another disk")
    report = await pair.source.until(lambda report: len(report.devices) == 2)
    assert instance(report) == before
    assert instance(report, "other.img") != before


async def test_a_file_that_takes_the_name_at_once_is_another_instance(pair: Pair) -> None:
    before = instance(pair.source.report)
    await pair.source.lend(ATTACHMENT, "stick.img", 3, instance=before)
    (pair.disk.parent / ".new").write_bytes(pair.disk.read_bytes())
    (pair.disk.parent / ".new").replace(pair.disk)
    assert (await pair.source.ended()).reason == "the device was replaced by another one"
    report = await pair.source.until(lambda report: not report.exports)
    assert instance(report) != before


async def reads_until_an_error(fd: int) -> None:
    with pytest.raises(OSError):
        await trio.to_thread.run_sync(os.pread, fd, 4096, SIZE // 2)


async def test_a_stuck_source_does_not_hold_up_detach(pair: Pair) -> None:
    file = await pair.attach()
    kit = pid_of("nbdkit")
    os.kill(kit, signal.SIGSTOP)
    try:
        with opened(file, os.O_RDONLY) as user:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reads_until_an_error, user)
                with trio.fail_after(SECONDS):
                    await pair.target.call("import.stop", attachment=ATTACHMENT)
    finally:
        os.kill(kit, signal.SIGCONT)
    assert os.listdir(pair.target.settings.dev) == []


async def test_data_flows_on_while_dom0_comes_and_goes(pair: Pair) -> None:
    file = await pair.attach()
    pair.source.peer.close()
    pair.target.peer.close()
    await pair.source.connect()
    await pair.target.connect()
    assert [export.attachment for export in pair.source.report.exports] == [ATTACHMENT]
    assert [import_.attachment for import_ in pair.target.report.imports] == [ATTACHMENT]
    assert await read(file) == pair.disk.read_bytes()


async def test_stopping_what_is_not_there_is_fine(pair: Pair) -> None:
    assert await pair.source.call("export.stop", attachment=ATTACHMENT) == {}
    assert await pair.target.call("import.stop", attachment=ATTACHMENT) == {}


async def test_an_export_that_nobody_connected_to_can_be_stopped(pair: Pair) -> None:
    await pair.source.lend(ATTACHMENT, "stick.img", 3)
    await pair.source.call("export.stop", attachment=ATTACHMENT)
    await pair.source.until(lambda report: not report.exports)
    assert list(pair.source.settings.vchan.glob("2-3-*")) == []


async def test_an_import_from_nobody_fails_and_leaves_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.device_classes.data_channel.CONNECT_SECONDS", 0.05)
    with pytest.raises(CallError, match="no channel to sys-usb"):
        await pair.target.borrow(ATTACHMENT, "stick.img", 2)
    await pair.target.until(lambda report: not report.imports)


async def test_an_export_without_a_client_ends_by_itself(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.device_classes.data_channel.CLIENT_SECONDS", 0.05)
    await pair.source.lend(ATTACHMENT, "stick.img", 3)
    assert "did not connect" in (await pair.source.ended()).reason


async def test_a_disk_is_exported_only_once(pair: Pair) -> None:
    await pair.source.lend(ATTACHMENT, "stick.img", 3)
    with pytest.raises(CallError, match="already exported") as refused:
        await pair.source.lend("ffffffffffffffff", "stick.img", 4, port=8)
    assert refused.value.code == "busy"


async def test_two_names_of_one_disk_are_one_disk(pair: Pair) -> None:
    os.link(pair.disk, pair.disk.with_name("a-second-name.img"))
    await pair.source.until(lambda report: len(report.devices) == 2)
    await pair.source.lend(ATTACHMENT, "a-second-name.img", 3)
    with pytest.raises(CallError) as refused:
        await pair.source.lend("ffffffffffffffff", "stick.img", 4, port=8)
    assert refused.value.code == "busy"


async def test_what_is_not_there_or_no_disk_cannot_be_exported(pair: Pair) -> None:
    with pytest.raises(CallError) as missing:
        await pair.source.lend(ATTACHMENT, "other.img", 3)
    assert missing.value.code == "not_found"
    with pytest.raises(CallError, match="cannot be lent in local mode"):
        await pair.source.lend(ATTACHMENT, "1-2", 3, device_class="usb")


async def test_a_disk_that_nbdkit_cannot_open_fails_with_its_words(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pedos_agent.device_classes.block.exporter._nbdkit",
        lambda *_: ["nbdkit", "-s", "-f", "no-such-plugin"],
    )
    with pytest.raises(CallError, match="no-such-plugin"):
        await pair.source.lend(ATTACHMENT, "stick.img", 3)
    await pair.source.until(lambda report: not report.exports)
    assert list(pair.source.settings.vchan.glob("2-3-*")) == []


async def test_a_target_that_sends_garbage_only_loses_its_channel(pair: Pair) -> None:
    await pair.source.lend(ATTACHMENT, "stick.img", 3)
    before = pair.disk.read_bytes()
    async with VchanStream(await shm.connect(pair.source.settings.vchan, 3, 2, 7)) as stream:
        await stream.send_all(b"\xff" * 4096)
        assert "nbdkit" in (await pair.source.ended()).reason
    assert pair.disk.read_bytes() == before
    assert await read(await pair.attach()) == before


async def test_a_source_that_sends_garbage_fails_the_import_with_nbdfuses_words(
    pair: Pair,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_as_source, pair, b"NBDMAGIC, says nobody" * 100)
        with pytest.raises(CallError, match="the disk cannot be shown: nbdfuse exited") as refused:
            await pair.target.borrow(ATTACHMENT, "stick.img", 2)
        nursery.cancel_scope.cancel()
    assert refused.value.code == "failed"
    assert os.listdir(pair.target.settings.dev) == []


async def test_a_source_that_says_nothing_fails_the_import_in_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.device_classes.block.importer.READY_SECONDS", 0.05)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_as_source, pair, b"")
        with pytest.raises(CallError, match="did not get ready in time"):
            await pair.target.borrow(ATTACHMENT, "stick.img", 2)
        nursery.cancel_scope.cancel()
    assert os.listdir(pair.target.settings.dev) == []


async def say_as_source(pair: Pair, text: bytes) -> None:
    """A source's end of the data channel that is no nbdkit."""
    with await shm.listen(pair.target.settings.vchan, 2, 3, 7) as listener:
        async with VchanStream(await listener.accept()) as stream:
            await stream.send_all(text)
            await trio.sleep_forever()


async def test_a_borrowed_disk_in_the_vms_own_devices_is_not_listed_and_can_be_given_back(
    pair: Pair,
) -> None:
    file = await pair.attach()
    devices = pair.target.settings.devices
    (devices / "block/borrowed").symlink_to(file)
    (devices / "usb/borrowed").symlink_to(file)
    (devices / "block/own.img").write_bytes(b"x")
    await pair.target.until(lambda report: len(report.devices) > 0)
    assert [device.device for device in pair.target.report.devices] == ["own.img"]
    await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
