"""Lending and borrowing where Xen carries the disk: what the two agents do and refuse."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from pedos_agent.__main__ import _settings
from pedos_agent.attachments.table import Attachments
from pedos_agent.device_classes.block import xen_block
from pedos_agent.device_classes.block.discovery_block import scan
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.settings import xen_settings
from pedos_agent.system import closing
from pedos_agent.system.revision import Revision
from pedos_protocol.errors import CallError
from pedos_protocol.messages import ExportStart, ImportStart

from tests.patience import PATIENCE

from .conftest import ATTACHMENT
from .xen_tree import Tree

SECONDS = PATIENCE


class Agent:
    """The part of an agent that lends and borrows, on a tree of its own."""

    def __init__(self, root: Path) -> None:
        self.tree = Tree(root)
        settings = xen_settings("work", 5, root / "sock", None)
        self.attachments = Attachments(attrs.evolve(settings, dev=self.tree.roots.dev), Revision())
        self.attachments.host.roots = self.tree.roots
        self.inventory = Inventory(Revision(), self.attachments.check_sources)
        self.attachments.inventory = self.inventory
        self.ended: list[tuple[str, str, str]] = []
        self.attachments.ended = self._note
        self._noted = trio.Event()

    async def _note(self, *ended: str) -> None:
        self.ended.append((ended[0], ended[1], ended[2]))
        self._noted.set()

    async def one_ended(self) -> list[tuple[str, str, str]]:
        """All attachments that ended by themselves, as soon as one has and all is quiet."""
        await self._noted.wait()
        await trio.testing.wait_all_tasks_blocked()
        return self.ended

    def look(self) -> None:
        """Discovery looks again, as after an event of the kernel."""
        found = scan(self.attachments.carried("block"), self.tree.roots, lambda _path: False)
        self.inventory.replace("block", found)
        self.attachments.host.rescan.bump()

    async def lend(self, device: str) -> None:
        await self.attachments.start_export(ExportStart(ATTACHMENT, "block", device, 16, 7, False))

    async def borrow(self, frontend: str | None) -> str:
        return await self.attachments.start_import(
            ImportStart(ATTACHMENT, "block", "sda", 16, 2, False, "sys-usb", frontend)
        )

    def open_files(self) -> list[str]:
        """The files below the tree that this process has open."""
        closing.wait_until_closed()
        found = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return [path for path in found if path.startswith(f"{self.tree.roots.dev}/")]


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(tmp_path)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.attachments.run)
            yield made
            await made.attachments.close()


async def test_a_lent_disk_is_held_until_it_is_given_back(agent: Agent) -> None:
    agent.tree.add("sda")
    agent.look()
    await agent.lend("sda")
    assert [state.device for state in agent.attachments.exports()] == ["sda"]
    assert set(agent.open_files()) == {str(agent.tree.roots.dev / "sda")}
    await agent.attachments.stop_export(ATTACHMENT)
    assert agent.attachments.exports() == []
    assert agent.open_files() == []


async def test_a_busy_disk_is_not_lent(agent: Agent) -> None:
    agent.tree.mount(agent.tree.add("sda"), "/mnt")
    agent.look()
    with pytest.raises(CallError, match="sda is in use here: mounted at /mnt"):
        await agent.lend("sda")


@pytest.mark.parametrize("again", [False, True])
async def test_only_what_is_lent_already_is_lent_while_it_cannot_be_looked_at(
    agent: Agent, again: bool
) -> None:
    agent.tree.serve(7, agent.tree.add("sda"))  # by this agent, before it was started anew
    agent.look()
    agent.inventory.failed("block", "Too many open files")
    params = ExportStart(ATTACHMENT, "block", "sda", 16, 7, False, again=again)
    refusal = pytest.raises(CallError, match="cannot be looked at now: Too many open files")
    with contextlib.nullcontext() if again else refusal:
        await agent.attachments.start_export(params)
    assert len(agent.attachments.exports()) == again


async def test_what_somebody_has_just_lent_by_hand_is_not_lent(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "BACKEND_GONE_SECONDS", 0.1)
    number = agent.tree.add("sda")
    agent.look()
    agent.tree.serve(9, number)
    with pytest.raises(CallError, match="in use here: lent to domain 9 by the toolstack") as caught:
        await agent.lend("sda")
    assert caught.value.code == "busy"
    assert agent.open_files() == []


async def test_a_backend_that_is_just_being_taken_down_is_waited_for(agent: Agent) -> None:
    agent.tree.serve(9, agent.tree.add("sda"))
    agent.look()
    found = agent.inventory.get("block", "sda")
    assert found is not None
    lifetime = Lifetime()
    params = ExportStart(ATTACHMENT, "block", "sda", 16, 7, False)
    rescan = agent.attachments.host.rescan
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            xen_block.export_block, lifetime, params, found, agent.tree.roots, rescan
        )
        await trio.testing.wait_all_tasks_blocked()
        agent.tree.serve_no_more(9)
        agent.look()
        await lifetime.started()
        lifetime.end("enough")


async def test_a_lent_disk_that_is_unplugged_ends(agent: Agent) -> None:
    agent.tree.add("sda")
    agent.look()
    await agent.lend("sda")
    (agent.tree.roots.dev / "sda").unlink()
    agent.look()
    assert await agent.one_ended() == [(ATTACHMENT, "export", "the device was unplugged")]


async def test_a_medium_that_is_changed_under_the_same_name_ends_what_was_lent(
    agent: Agent,
) -> None:
    """The kernel counts disks; name, number, size and identity may be those of the one before."""
    agent.tree.add("sda", ID_SERIAL="reader")
    agent.tree.field("sda", "diskseq", "7")
    agent.look()
    await agent.lend("sda")
    agent.tree.field("sda", "diskseq", "8")
    agent.look()
    ended = await agent.one_ended()
    assert ended == [(ATTACHMENT, "export", "the device was replaced by another one")]


@pytest.mark.parametrize("field", ["diskseq", "start"])
async def test_a_disk_that_is_changed_after_the_last_look_is_not_lent(
    agent: Agent, field: str
) -> None:
    agent.tree.add("sda")
    agent.tree.add("sda1", parent="sda")
    agent.tree.field("sda", "diskseq", "7")
    agent.tree.field("sda1", "start", "2048")
    agent.look()
    agent.tree.field("sda" if field == "diskseq" else "sda1", field, "9")
    with pytest.raises(CallError, match="unplugged or replaced just now"):
        await agent.lend("sda1")
    assert agent.open_files() == []


async def test_a_borrowed_disk_is_waited_for(agent: Agent) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.borrow, "xvdi")
        await trio.testing.wait_all_tasks_blocked()
        agent.tree.add("xvdi")
        agent.look()
    (state,) = agent.attachments.imports()
    assert state.frontend == "xvdi"
    await agent.attachments.stop_import(ATTACHMENT)
    assert agent.attachments.imports() == []
    assert (agent.tree.roots.dev / "xvdi").exists()  # only the toolstack takes it away


async def test_a_disk_that_never_comes_is_an_error(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "APPEAR_SECONDS", 0.05)
    with pytest.raises(CallError, match="xvdi did not appear"):
        await agent.borrow("xvdi")
    assert agent.attachments.imports() == []


async def test_a_borrowed_disk_that_goes_is_told_of(agent: Agent) -> None:
    agent.tree.add("xvdi")
    await agent.borrow("xvdi")
    (agent.tree.roots.dev / "xvdi").unlink()
    agent.look()
    await trio.testing.wait_all_tasks_blocked()
    assert agent.ended == [(ATTACHMENT, "import", "xvdi has gone")]


async def test_a_borrowed_disk_in_use_is_not_let_go(agent: Agent) -> None:
    agent.tree.add("xvdi")
    agent.tree.mount(agent.tree.add("xvdi1", parent="xvdi"), "/media/stick")
    await agent.borrow("xvdi")
    with pytest.raises(
        CallError, match="xvdi is in use: xvdi1 is mounted at /media/stick"
    ) as caught:
        await agent.attachments.stop_import(ATTACHMENT)
    assert caught.value.code == "busy"
    assert len(agent.attachments.imports()) == 1
    (agent.tree.roots.proc / "self/mountinfo").write_text("")
    await agent.attachments.stop_import(ATTACHMENT)


@pytest.fixture
def at_each_look(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], object]], list[int]]:
    """Has something done instead of each pause between two looks; its number is given, from 1.

    Returns the numbers of the pauses there were.
    """

    def instead_of_pauses(do: Callable[[int], object]) -> list[int]:
        pauses: list[int] = []

        async def pause(_seconds: float) -> None:
            pauses.append(len(pauses) + 1)
            do(len(pauses))

        monkeypatch.setattr(xen_block.trio, "sleep", pause)
        return pauses

    return instead_of_pauses


AtEachLook = Callable[[Callable[[int], object]], list[int]]


async def test_a_borrowed_disk_is_there_when_udev_has_looked_at_it(
    agent: Agent, at_each_look: AtEachLook
) -> None:
    record = agent.tree.roots.udev / f"b{agent.tree.add('xvdi')}"
    queue = agent.tree.roots.udev.parent / "queue"
    record.unlink()
    queue.touch()
    udev_does = {3: record.touch, 6: queue.unlink}
    pauses = at_each_look(lambda number: udev_does.get(number, lambda: None)())
    await agent.borrow("xvdi")
    assert pauses[-1] == 6


async def test_a_disk_that_udev_never_looks_at_is_there_all_the_same(
    agent: Agent, at_each_look: AtEachLook
) -> None:
    (agent.tree.roots.udev / f"b{agent.tree.add('xvdi')}").unlink()
    pauses = at_each_look(lambda _number: None)
    assert await agent.borrow("xvdi") == "xvdi"
    assert len(pauses) == xen_block.UDEV_LOOKS


async def test_udev_is_not_waited_for_longer_than_for_the_disk(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "APPEAR_SECONDS", 0.05)
    (agent.tree.roots.udev / f"b{agent.tree.add('xvdi')}").unlink()
    with trio.fail_after(xen_block.UDEV_LOOKS * xen_block.UDEV_LOOK_SECONDS / 2):
        assert await agent.borrow("xvdi") == "xvdi"


async def test_a_disk_that_goes_while_udev_looks_at_it_is_an_error(
    agent: Agent, at_each_look: AtEachLook
) -> None:
    (agent.tree.roots.udev / f"b{agent.tree.add('xvdi')}").unlink()
    at_each_look(lambda _number: (agent.tree.roots.dev / "xvdi").unlink())
    with pytest.raises(CallError, match="xvdi came and has gone again"):
        await agent.borrow("xvdi")
    assert agent.attachments.imports() == []


async def test_where_no_udev_runs_nobody_waits_for_it(agent: Agent) -> None:
    (agent.tree.roots.udev / f"b{agent.tree.add('xvdi')}").unlink()
    agent.tree.roots.udev.rmdir()
    assert await agent.borrow("xvdi") == "xvdi"


IDLE = "  10 0 80 4 0 0 0 0        0 4 4"


@contextlib.contextmanager
def looked_at_by_udev(agent: Agent) -> Iterator[None]:
    """udev has the disk locked, as it does while it reads from it."""
    with (agent.tree.roots.dev / "xvdi").open("rb") as disk:
        fcntl.flock(disk, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def about_to_be_looked_at_by_udev(agent: Agent) -> Iterator[None]:
    queue = agent.tree.roots.udev.parent / "queue"
    queue.touch()
    yield
    queue.unlink()


@contextlib.contextmanager
def with_a_read_on_its_way(agent: Agent) -> Iterator[None]:
    agent.tree.field("xvdi", "stat", IDLE.replace("        0", "        1"))
    yield
    agent.tree.field("xvdi", "stat", IDLE)


USED = [looked_at_by_udev, about_to_be_looked_at_by_udev, with_a_read_on_its_way]
Used = Callable[[Agent], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize("used", USED)
async def test_who_is_about_to_finish_with_a_borrowed_disk_is_waited_for(
    agent: Agent, at_each_look: AtEachLook, used: Used
) -> None:
    agent.tree.add("xvdi")
    agent.tree.field("xvdi", "stat", IDLE)
    await agent.borrow("xvdi")
    with contextlib.ExitStack() as use:
        use.enter_context(used(agent))
        pauses = at_each_look(lambda number: use.close() if number == 5 else None)
        await agent.attachments.stop_import(ATTACHMENT)
    assert pauses[-1] == 6  # two looks that see the same
    assert agent.open_files() == []


@pytest.mark.parametrize("used", [looked_at_by_udev, with_a_read_on_its_way, None])
async def test_a_borrowed_disk_that_is_read_or_written_is_not_let_go(
    agent: Agent, at_each_look: AtEachLook, used: Used | None
) -> None:
    agent.tree.add("xvdi")
    await agent.borrow("xvdi")

    def read(number: int) -> None:
        if used is None:  # it is, but at no look there is one on its way
            agent.tree.field("xvdi", "stat", IDLE.replace("10", str(number)))

    pauses = at_each_look(read)
    with (
        used(agent) if used else contextlib.nullcontext(),
        pytest.raises(CallError, match="reads, writes or has locked it") as caught,
    ):
        await agent.attachments.stop_import(ATTACHMENT)
    assert caught.value.code == "busy"
    assert len(pauses) == xen_block.QUIET_LOOKS - 1
    assert len(agent.attachments.imports()) == 1
    assert agent.open_files() == []


async def test_that_udev_is_busy_with_others_is_no_reason_to_keep_a_disk(
    agent: Agent, at_each_look: AtEachLook
) -> None:
    agent.tree.add("xvdi")
    await agent.borrow("xvdi")
    at_each_look(lambda _number: None)
    with about_to_be_looked_at_by_udev(agent):
        await agent.attachments.stop_import(ATTACHMENT)
    assert agent.attachments.imports() == []


async def test_what_udev_hears_of_during_a_look_is_waited_for(
    agent: Agent, at_each_look: AtEachLook, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.tree.add("xvdi")
    agent.tree.field("xvdi", "stat", IDLE)
    await agent.borrow("xvdi")
    queue = agent.tree.roots.udev.parent / "queue"
    look, looks = xen_block._counts_when_idle, iter([queue.touch])

    def told_meanwhile(*arguments: Any) -> str | None:
        counts = look(*arguments)
        next(looks, lambda: None)()
        return counts

    monkeypatch.setattr(xen_block, "_counts_when_idle", told_meanwhile)
    pauses = at_each_look(lambda number: queue.unlink() if number == 3 else None)
    await agent.attachments.stop_import(ATTACHMENT)
    assert pauses[-1] == 4


async def test_a_disk_that_has_gone_is_let_go_however_busy_udev_is(
    agent: Agent, at_each_look: AtEachLook
) -> None:
    agent.tree.add("xvdi")
    await agent.borrow("xvdi")
    (agent.tree.roots.dev / "xvdi").unlink()
    pauses = at_each_look(lambda _number: None)
    with about_to_be_looked_at_by_udev(agent):
        await agent.attachments.stop_import(ATTACHMENT)
    assert not pauses


async def test_dom0_says_as_what_it_is_attached(agent: Agent) -> None:
    agent.tree.add("xvdi")
    with pytest.raises(CallError, match="did not say as what"):
        await agent.borrow(None)
    await agent.borrow("xvdi")


async def test_classes_that_xen_does_not_carry_are_refused(agent: Agent) -> None:
    with pytest.raises(CallError, match="mic devices cannot be lent on Xen"):
        await agent.attachments.start_export(ExportStart(ATTACHMENT, "mic", "mic", 16, 7, False))


# Arguments


def test_dom0s_agent_on_xen_needs_no_more_than_its_sockets() -> None:
    words = [
        "--driver",
        "xen",
        "--vm",
        "dom0",
        "--domid",
        "0",
        "--control-socket",
        "/run/c",
        "--socket",
        "/run/s",
    ]
    settings, _ = _settings(words)
    assert (settings.xen, settings.vm, settings.domid) == (True, "dom0", 0)
    assert (str(settings.dev), str(settings.control_socket)) == ("/dev", "/run/c")
    assert settings.give_back
    settings, _ = _settings([*words, "--give-back", "no"])
    assert not settings.give_back


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--driver local --socket s", "--driver local needs --vm and --domid and --vchan"),
        ("--driver xen --socket s --dev d", "--dev: only for --driver local"),
        ("--driver xen --socket s --domid 0", "--domid 0 goes with --control-socket"),
        ("--driver xen --socket s --vm -x", "expected one argument"),
        ("--driver xen --socket s --vm 9", "is not a VM name"),
    ],
)
def test_options_that_do_not_go_together(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _settings(words.split())
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
