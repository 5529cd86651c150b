"""The socket of dom0's desktop: who may connect, what they may ask for, and that it never keeps
root out."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_cli import client
from pedos_dom0.access import prompters
from pedos_dom0.access.callers import DESKTOP, LOCAL
from pedos_dom0.access.questions import (
    DESKTOP_PROMPTERS_MAX,
    OPEN_PER_ASKER,
    PROMPTERS_MAX,
    Prompts,
)
from pedos_dom0.audit.tail import Tail
from pedos_dom0.connections import client as clients
from pedos_dom0.connections import desktop_socket as module
from pedos_dom0.connections import desktop_turns as turns
from pedos_dom0.connections.desktop_socket import Desktop, desktop_socket
from pedos_dom0.connections.local_socket import LocalSocket, listening
from pedos_dom0.requests.api import TABLE
from pedos_dom0.requests.operations import OPERATIONS_MAX
from pedos_dom0.requests.recent import READERS_MAX
from pedos_dom0.requests.watch import DOM0_WATCHERS_MAX
from pedos_host import unix
from pedos_host.desktop_group import group_id
from pedos_host.throttle import LINES, Throttle
from pedos_host.unix import connect_unix, peer_credentials
from pedos_protocol.connection import VERSIONS, Connection
from pedos_protocol.errors import CallError
from pedos_protocol.events import Hello, Request
from pedos_protocol.messages import SCHEMA
from pedos_vchan.peer import Peer, open_peer
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, World, fails, filled_in, named, yes
from tests.patience import PATIENCE

# A group that nobody is in, and a user who is nobody.
GROUP, OTHER_GROUP, USER = 61101, 61102, 61103
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin")
AS_ROOT = pytest.mark.skipif(
    os.getuid() != 0 or SYSTEM_PYTHON is None, reason="only root can be somebody else"
)
# What members may ask for: anything new is root's alone until it is written here.
MAY = {
    *(f"device.{verb}" for verb in ("classes", "list", "info", "attach", "detach", "assign")),
    *(f"device.{verb}" for verb in ("unassign", "assignments", "explain", "targets", "mute")),
    *("watch.next", "vm.list", "service.status", "policy.explain", "audit.recent"),
    *("prompter.register", "call.list", "call.end"),
}


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "sda")
    world.vm("work")
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users reach, as /run."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        yield Path(made)


@contextlib.asynccontextmanager
async def running(world: World, serve: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Something that serves until the block ends."""
    ended, scope = trio.Event(), trio.CancelScope()

    async def run() -> None:
        with scope:
            await serve()
        ended.set()

    world.service_nursery.start_soon(run)
    try:
        yield
    finally:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await ended.wait()


@contextlib.asynccontextmanager
async def served(world: World, path: Path, group: int) -> AsyncIterator[Path]:
    async with desktop_socket(Desktop(path, str(group))) as desktop:
        assert desktop is not None
        async with running(world, partial(desktop.serve, world.api)):
            yield path


@pytest.fixture
async def desktop(world: World, folder: Path) -> AsyncIterator[Path]:
    """The socket, for this process's own group."""
    async with served(world, folder / "pedos-desktop" / "pedos.sock", os.getgid()) as path:
        yield path


@contextlib.asynccontextmanager
async def connected(path: Path, **handlers: Any) -> AsyncIterator[Peer]:
    stream = await connect_unix(path)
    named = {key.replace("_", "."): value for key, value in handlers.items()}
    async with open_peer(stream, program="test", handlers=named) as peer:
        yield peer


async def call(path: Path, method: str, **params: Any) -> dict[str, Any]:
    async with connected(path) as peer:
        return await peer.call(method, filled_in(method, params), timeout=60)


def ask(path: Path) -> None:
    """As a command, which is told why it is not served."""
    with client.connect(str(path)) as connected:
        connected.call("service.status", {}, 60)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when something outside trio has become so."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is no event
            await trio.sleep(0.01)


async def asks(path: Path) -> None:
    await trio.to_thread.run_sync(ask, path)


# Who may connect

CHILD = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
try:
    s.connect(sys.argv[1])
except PermissionError:
    sys.exit("no permission")
data = s.recv(65536)  # the service says hello first, and perhaps why it refuses
try:
    s.sendall(bytes.fromhex(sys.argv[2]))
except BrokenPipeError:
    pass
while b"uptime_s" not in data and b"alone here" not in data:
    more = s.recv(65536)
    if not more:
        break
    data += more
sys.exit("served" if b"uptime_s" in data else "refused" if b"alone here" in data else "hung up")
"""


async def as_somebody(path: Path, group: int, *more: int) -> str:
    """What becomes of another user's program that asks for the status."""
    connection = Connection()
    sent = connection.send(Hello(VERSIONS, "test"))
    sent += connection.send(Request(1, "service.status", {}, 60000))
    done = await trio.to_thread.run_sync(
        partial(
            subprocess.run,
            [str(SYSTEM_PYTHON), "-I", "-c", CHILD, str(path), sent.hex()],
            capture_output=True,
            cwd="/",
            user=USER,
            group=group,
            extra_groups=more,
        )
    )
    return done.stderr.decode().strip()


@AS_ROOT
async def test_a_member_is_served_by_its_primary_group_or_another_and_a_stranger_finds_no_way(
    world: World, folder: Path
) -> None:
    path = folder / "pedos-desktop" / "pedos.sock"
    async with served(world, path, GROUP):
        assert await as_somebody(path, GROUP) == "served"
        assert await as_somebody(path, OTHER_GROUP, GROUP) == "served"
        assert await as_somebody(path, OTHER_GROUP, 61104, GROUP, 61105) == "served"
        assert await as_somebody(path, OTHER_GROUP) == "no permission"
        assert await as_somebody(path, OTHER_GROUP, 61104) == "no permission"
        path.parent.chmod(0o755)
        assert await as_somebody(path, OTHER_GROUP) == "no permission"
        path.chmod(0o666)  # an administrator's mistake
        assert await as_somebody(path, OTHER_GROUP) == "refused"
        assert await as_somebody(path, OTHER_GROUP, GROUP) == "served"


@AS_ROOT
async def test_root_has_a_socket_of_its_own_and_is_no_member(world: World, folder: Path) -> None:
    path = folder / "pedos-desktop" / "pedos.sock"
    async with served(world, path, GROUP):
        with fails("denied", "members of its group alone"):
            await asks(path)


async def test_folder_and_socket_are_the_groups_and_nobody_elses(desktop: Path) -> None:
    for path, mode in ((desktop.parent, 0o750), (desktop, 0o660)):
        status = path.lstat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, os.getgid())
        assert status.st_uid == os.getuid()


@pytest.mark.parametrize("error", [34, 92])  # ERANGE: too many groups; ENOPROTOOPT: an old kernel
async def test_a_peer_whose_groups_cannot_be_told_is_refused(
    desktop: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def cannot(_stream: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(module, "peer_credentials", cannot)
    with fails("denied", "members of its group alone"):
        await asks(desktop)


async def test_more_groups_than_are_read_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        peer = peer_credentials(stream)
        assert peer.uid == os.getuid()
        assert peer.groups == {os.getgid(), *os.getgroups()}
        if len(os.getgroups()) > 1:
            monkeypatch.setattr(unix, "GROUPS_SIZE", 4)
            with pytest.raises(OSError, match="range"):
                peer_credentials(stream)
        await stream.aclose()


async def test_strangers_fill_no_log(
    desktop: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "throttle", Throttle())
    stranger = unix.Peer(USER, frozenset({OTHER_GROUP}))
    monkeypatch.setattr(module, "peer_credentials", lambda _stream: stranger)
    for _ in range(3 * LINES):
        with fails("denied"):
            await asks(desktop)
    assert len(caplog.records) == LINES
    assert f"uid {USER} is not in the group" in caplog.text


async def test_programs_that_come_and_go_fill_no_log(
    world: World, desktop: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for module_with_one in (prompters, clients):
        monkeypatch.setattr(module_with_one, "throttle", Throttle())
    for _ in range(LINES):
        async with connected(desktop) as peer:
            await peer.call("prompter.register", {}, timeout=60)
        stream = await connect_unix(desktop)
        await stream.send_all(bytes(64))
        await stream.aclose()
    await until(lambda: len(world.api.prompters.prompts) == 0)
    for about in ("a prompter of dom0 (uid", "broke the protocol"):
        told = [message for message in caplog.messages if about in message]
        assert 0 < len(told) <= LINES


# How the socket is made


async def test_without_the_group_there_is_no_socket_and_the_log_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "pedos-desktop" / "pedos.sock"
    async with desktop_socket(Desktop(path, "no-such-group-here")) as desktop:
        assert desktop is None
    assert "there is no group 'no-such-group-here'" in caplog.text
    assert list(folder.iterdir()) == []
    async with desktop_socket(None) as desktop:
        assert desktop is None


async def test_the_own_group_of_a_user_of_that_name_makes_this_user_no_member(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    person = pwd.getpwuid(os.getuid())
    monkeypatch.setattr("grp.getgrnam", lambda name: grp.getgrgid(person.pw_gid))
    async with desktop_socket(Desktop(folder / "pedos-desktop/s", person.pw_name)) as desktop:
        assert desktop is None
    assert "is the own one of the user" in caplog.text
    assert list(folder.iterdir()) == []


def test_a_group_is_a_name_or_a_number() -> None:
    assert group_id("root") == group_id("0") == 0
    with pytest.raises(KeyError):
        group_id("²")


@pytest.mark.parametrize("there", ["a file", "a link", "another's folder"])
async def test_what_is_no_folder_of_the_service_is_not_used(
    folder: Path, caplog: pytest.LogCaptureFixture, there: str
) -> None:
    parent = folder / "pedos-desktop"
    if there == "a file":
        parent.write_text("")
    elif there == "a link":
        (folder / "elsewhere").mkdir()
        parent.symlink_to("elsewhere")
    elif os.getuid() == 0:
        parent.mkdir()
        os.chown(parent, USER, -1)
    else:
        pytest.skip("only root can make another's folder")
    async with desktop_socket(Desktop(parent / "pedos.sock", str(os.getgid()))) as desktop:
        assert desktop is None
    assert "dom0's desktop has no socket" in caplog.text
    assert str(parent) in caplog.text


@AS_ROOT
async def test_a_folder_with_another_group_and_mode_gets_the_right_ones(folder: Path) -> None:
    parent = folder / "pedos-desktop"
    parent.mkdir(mode=0o777)
    os.chown(parent, -1, OTHER_GROUP)
    async with desktop_socket(Desktop(parent / "pedos.sock", str(GROUP))) as desktop:
        assert desktop is not None
        status = parent.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o750, GROUP)


@AS_ROOT
async def test_a_socket_that_was_deleted_is_made_again_for_the_same_group(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "NAME_LOOK", 0.01)
    path = folder / "pedos-desktop" / "pedos.sock"
    async with served(world, path, GROUP):
        path.unlink()
        await until(path.exists)
        assert await as_somebody(path, OTHER_GROUP, GROUP) == "served"


# What members may ask for


def test_the_table_has_what_is_written_here_and_nothing_else() -> None:
    assert {method for method, entry in TABLE.items() if DESKTOP in entry.callers} == MAY


@pytest.mark.parametrize("method", sorted(set(SCHEMA) - MAY))
async def test_any_other_request_is_refused_as_unknown(desktop: Path, method: str) -> None:
    async with connected(desktop) as peer:
        with pytest.raises(CallError) as caught:
            await peer.call(method, {}, timeout=60)
    assert caught.value.code == "unknown_method"
    if method in TABLE and LOCAL in TABLE[method].callers:
        assert f"for root alone, and not for dom0 (uid {os.getuid()})" in caught.value.message
        assert caught.value.data["hint"] == "the same command with sudo"
    else:
        assert "of another version" in caught.value.message


@pytest.mark.parametrize("method", sorted(MAY))
async def test_what_members_may_ask_for_is_served(desktop: Path, method: str) -> None:
    async with connected(desktop) as peer:
        try:
            await peer.call(method, {}, timeout=60)
        except CallError as error:
            assert error.code == "usage"  # it is read, and lacks parameters


async def test_a_member_attaches_and_detaches_and_the_log_says_who(
    world: World, desktop: Path
) -> None:
    device = named("work", "sys-usb:sda")
    result = await call(desktop, "device.attach", **device)
    assert (result["outcome"], result["policy_ok"]) == ("attached", True)
    await call(desktop, "device.detach", **device)
    who = f"dom0 (uid {os.getuid()})"
    for event in ("decision", "attach", "detach"):
        line = world.audit(event)[-1]
        assert line["caller"] == who, event
    decision = world.audit("decision")[-1]
    assert decision["source"] == "dom0"


async def test_a_member_sees_all_and_the_rule_that_denies(world: World, desktop: Path) -> None:
    world.policy.set("device.attach.block * dom0 work deny")
    answer = await call(desktop, "device.list", device_class="block")
    assert [each["device"] for each in answer["devices"]] == ["sda"]
    with pytest.raises(CallError) as caught:
        await call(desktop, "device.attach", **named("work", "sys-usb:sda"))
    assert (caught.value.code, caught.value.data["rule"]) == ("denied", "30-test.policy:1")


async def test_a_member_takes_nothing_by_force(world: World, desktop: Path) -> None:
    await world.client.attach("work", "sys-usb:sda")

    async def in_use(_params: object) -> None:
        raise CallError("busy", "it is mounted")

    world.driver.agents["work"].on["import.stop"] = in_use
    device = named("work", "sys-usb:sda")
    with fails("usage", "only root in dom0 can take a device away by force"):
        await call(desktop, "device.detach", **device, force=True)
    with fails("busy"):
        result = await call(desktop, "device.detach", **device)
        error = result["results"][0]["error"]
        raise CallError(error["code"], error["message"])
    assert len(world.state.leases) == 1


async def test_a_member_names_no_class_that_a_newer_dom0_has_left(
    world: World, desktop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.client.call("device.attach", **named("work", "sys-usb:sda"))
    (lease,) = world.state.leases
    key = type(lease.key)("printer", "sys-usb", "lp0")
    monkeypatch.setattr(type(world.state), "unknown_classes", lambda _self: {"printer": key})
    with fails("usage", "printer"):
        await call(desktop, "device.list", device_class="printer")
    classes = await call(desktop, "device.classes")
    assert "printer" not in {each["name"] for each in classes["classes"]}
    classes = await world.client.call("device.classes")
    assert "printer" in {each["name"] for each in classes["classes"]}


# What members cannot take from root


async def test_root_is_served_while_all_places_of_the_desktop_are_taken(
    world: World,
    desktop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "throttle", Throttle())
    monkeypatch.setattr(module, "CLIENTS_MAX", 3)
    roots = tmp_path / "dom0.sock"
    async with (
        listening(str(roots)) as listener,
        running(world, partial(LocalSocket(world.api).serve, listener)),
        contextlib.AsyncExitStack() as clients,
    ):
        for _ in range(3):
            await clients.enter_async_context(connected(desktop))
        with fails("quota", "3 programs are connected", "ss -xp"):
            await asks(desktop)
        assert await call(roots, "service.status")
        await clients.aclose()
        while True:  # they have left: their places are free a moment later
            with contextlib.suppress(CallError):
                await asks(desktop)
                break
    assert "a client of the desktop is refused: 3 are connected" in caplog.text


async def test_a_member_who_asks_without_end_waits_and_takes_away_without_waiting(
    world: World, desktop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    monkeypatch.setattr(turns, "REQUEST_RATE", (1, 1e-6))
    listed = []

    async def lists(peer: Peer) -> None:
        params = filled_in("device.list", {"device_class": "block"})
        listed.append(await peer.call("device.list", params, timeout=60))

    async with (
        connected(desktop) as first,
        connected(desktop) as second,
        trio.open_nursery() as nursery,
    ):
        for _ in range(4):
            nursery.start_soon(lists, first)
        await until(lambda: len(listed) == 1)
        nursery.start_soon(lists, second)  # another connection is no other user
        await call(desktop, "device.detach", **named("work", "sys-usb:sda"))
        assert (await world.client.call("device.list", device_class="block"))["devices"]
        assert len(listed) == 1
        nursery.cancel_scope.cancel()
    assert not world.state.leases


async def test_a_client_that_breaks_the_protocol_or_leaves_in_mid_request_ends_alone(
    world: World, desktop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with await connect_unix(desktop) as stream:
        await stream.send_all(b"\xff" * 100)
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    said = f"a client of dom0 (uid {os.getuid()}) is disconnected"
    await until(lambda: said in caplog.text)
    connection = Connection()
    sent = connection.send(Hello(VERSIONS, "test"))
    params = filled_in("device.attach", named("work", "sys-usb:sda"))
    sent += connection.send(Request(1, "device.attach", params, 60000))
    async with await connect_unix(desktop) as stream:
        await stream.send_all(sent)
    await until(lambda: bool(world.audit("attach")))
    assert await call(desktop, "service.status")


async def test_the_desktops_operations_and_watches_are_not_counted_as_roots(
    world: World, desktop: Path, autojump_clock: Clock
) -> None:
    assert OPERATIONS_MAX["desktop"] < OPERATIONS_MAX["local"]
    async with contextlib.AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        peer = await stack.enter_async_context(connected(desktop))
        first = await peer.call("watch.next", filled_in("watch.next", {}), timeout=60)
        again = {key: first[key] for key in ("numbering", "number", "begun")}
        for _ in range(DOM0_WATCHERS_MAX):
            nursery.start_soon(
                partial(peer.call, "watch.next", filled_in("watch.next", again), timeout=60)
            )
        await trio.testing.wait_all_tasks_blocked()
        with fails("quota", "watch already"):
            await call(desktop, "watch.next", **again)
        assert (await world.client.call("watch.next"))["complete"]
        nursery.cancel_scope.cancel()


async def test_the_desktops_readers_of_the_audit_log_are_not_counted_as_roots(
    world: World, desktop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, reading = trio.Event(), []

    async def hangs(*_: object) -> Tail:
        reading.append(None)
        await go.wait()
        return Tail((), more=False)

    monkeypatch.setattr(world.state.audit, "recent", hangs)
    async with trio.open_nursery() as nursery:
        for _ in range(READERS_MAX):
            nursery.start_soon(partial(call, desktop, "audit.recent", count=1))
        await until(lambda: len(reading) == READERS_MAX)
        with fails("busy", "read the audit log already"):
            await call(desktop, "audit.recent", count=1)
        nursery.start_soon(partial(world.client.call, "audit.recent", count=1))
        await until(lambda: len(reading) == READERS_MAX + 1)
        go.set()


def test_the_desktops_prompters_leave_places_for_roots() -> None:
    prompts: Prompts[int] = Prompts()
    for number in range(DESKTOP_PROMPTERS_MAX):
        assert prompts.register(number, is_desktops=True)
    assert not prompts.register(100, is_desktops=True)
    assert prompts.register(0, is_desktops=True)  # once more
    for number in range(200, 200 + PROMPTERS_MAX - DESKTOP_PROMPTERS_MAX):
        assert prompts.register(number)
    assert not prompts.register(300)


def test_the_desktops_questions_leave_places_for_roots() -> None:
    prompts: Prompts[int] = Prompts()
    for _ in range(OPEN_PER_ASKER):
        prompts.open("dom0 (uid 1000)", "desktop")
    prompts.open("dom0", "local")
    assert prompts.standing() == OPEN_PER_ASKER + 1


# Questions


async def test_a_member_is_asked_and_the_log_says_who_asked_and_who_answered(
    world: World, desktop: Path
) -> None:
    rules = "device.attach.block * dom0 work ask\ndevice.attach.block * work work ask\n"
    world.policy.set(rules + ALLOW_DOM0)

    async def answer(_peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        return yes("work")

    who = f"dom0 (uid {os.getuid()})"
    async with connected(desktop, prompt_ask=answer) as prompter:
        await prompter.call("prompter.register", {}, timeout=60)
        await call(desktop, "device.attach", **named("work", "sys-usb:sda"))
        line = world.audit("answered")[-1]
        assert (line["caller"], line["by"], line["verdict"]) == (who, who, "allow")
        await call(desktop, "device.detach", **named("work", "sys-usb:sda"))
        agent = world.driver.agents["work"]
        await agent.ask("device.attach", **named("work", "sys-usb:sda"))
    line = world.audit("answered")[-1]
    assert (line["caller"], line["by"]) == ("work", who)


async def test_a_member_who_said_no_may_try_again_at_once(world: World, desktop: Path) -> None:
    world.policy.set("device.attach.block * dom0 work ask")
    answers = iter([{"verdict": "deny", "target": None}, yes("work")])

    async def answer(_params: object) -> dict[str, Any]:
        return next(answers)  # type: ignore[return-value]

    async with world.client.prompter(answer):
        with fails("denied", "said no"):
            await call(desktop, "device.attach", **named("work", "sys-usb:sda"))
        await call(desktop, "device.attach", **named("work", "sys-usb:sda"))
    line = world.audit("answered")[-1]
    assert (line["caller"], line["by"]) == (f"dom0 (uid {os.getuid()})", "dom0")


async def test_a_program_that_goes_wild_does_not_empty_the_audit_log(
    world: World, desktop: Path
) -> None:
    world.policy.set("device.attach.block * dom0 work deny")
    async with connected(desktop) as peer:
        params = filled_in("device.attach", named("work", "sys-usb:sda"))
        for _ in range(60):  # of which none waits for its turn
            with fails("denied"):
                await peer.call("device.attach", params, timeout=60)
    written = len(world.audit("attach")) + len(world.audit("decision"))
    assert written < 40
    with fails("denied"):  # root's own are written
        await world.client.attach("work", "sys-usb:sda")
    world.state.audit_throttle.flush_all()
    (summed,) = world.audit("summed_up")
    assert summed["vm"] == f"dom0 (uid {os.getuid()})"
    assert sum(summed["events"].values()) + written == 120
    assert world.audit("attach")[-1]["caller"] == "dom0"
