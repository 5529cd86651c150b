"""The machine with tiny programs: domains over machine.sock, faults, and going down."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.drivers import local, subscribers
from pedos_dom0.drivers.base import DomainInfo, DriverError, HypervisorLost
from pedos_dom0.drivers.local import LocalDriver
from pedos_dom0.local import machine as machine_module
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.machine import Machine
from pedos_host.mounts import MOUNTINFO
from pedos_host.unix import connect_unix
from pedos_protocol.errors import CallError
from pedos_vchan.peer import Peer, open_peer

from .conftest import CRASHING, OBEDIENT, PATIENCE, FakePrograms, gone

VMS = [("sys-usb", True), ("work", False)]


@asynccontextmanager
async def machine_up(layout: Layout, programs: FakePrograms) -> AsyncIterator[Machine]:
    machine = Machine(layout, VMS, programs)
    listener = await machine.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.run, listener)
        try:
            with trio.fail_after(PATIENCE):
                yield machine
        finally:
            with trio.CancelScope(shield=True):
                await machine.stop()


class Client:
    """A client of machine.sock that keeps the news it hears."""

    def __init__(self) -> None:
        self.peer: Peer
        send, self.news = trio.open_memory_channel[dict[str, Any]](100)
        self._send = send

    async def heard(self, _peer: Peer, params: dict[str, Any]) -> None:
        self._send.send_nowait(params)

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        return await self.peer.call(method, params, timeout=PATIENCE)


@asynccontextmanager
async def client_of(layout: Layout) -> AsyncIterator[Client]:
    client = Client()
    stream = await connect_unix(layout.machine_socket)
    handlers = {"domain.changed": client.heard}
    async with open_peer(stream, program="test", handlers=handlers) as peer:
        client.peer = peer
        yield client


async def test_a_domain_starts_and_ends_and_every_client_hears_of_it(
    layout: Layout, programs: FakePrograms
) -> None:
    async with machine_up(layout, programs), client_of(layout) as one, client_of(layout) as two:
        assert await one.call("domain.list") == {
            "domains": [
                {"name": "sys-usb", "domid": None, "state": "Halted", "autostart": True},
                {"name": "work", "domid": None, "state": "Halted", "autostart": False},
            ]
        }
        domid = (await one.call("domain.start", name="work"))["domid"]
        assert (await one.call("domain.start", name="work"))["domid"] == domid
        await one.call("domain.shutdown", name="work", force=False)
        await one.call("domain.shutdown", name="work", force=False)
        for client in (one, two):
            states = [await client.news.receive() for _ in range(3)]
            assert states == [
                {"name": "work", "domid": domid, "state": "Running"},
                {"name": "work", "domid": domid, "state": "Transient"},
                {"name": "work", "domid": None, "state": "Halted"},
            ]


async def test_a_start_is_done_when_the_vms_own_programs_can_ask(
    layout: Layout, programs: FakePrograms, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    programs.bodies["work"] = f"open({str(served)!r}, 'x').close()\n{OBEDIENT}"
    async with machine_up(layout, programs) as machine:
        await machine.start(machine.domains["work"])
        assert served.exists()


async def test_a_start_whose_agent_refuses_to_start_fails_with_the_reason(
    layout: Layout, programs: FakePrograms
) -> None:
    programs.bodies["work"] = "sys.exit(3)"
    async with machine_up(layout, programs) as machine:
        domain = machine.domains["work"]
        with pytest.raises(CallError, match="work does not start: it exited with status 3"):
            await machine.start(domain)
        assert domain.domid is None


async def test_a_start_does_not_wait_for_an_agent_for_ever(
    layout: Layout, programs: FakePrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "SERVED_TIMEOUT", 0.01)
    programs.bodies["work"] = "while True: signal.pause()"
    async with machine_up(layout, programs) as machine:
        assert await machine.start(machine.domains["work"]) is not None


async def test_a_domain_number_is_never_used_again(layout: Layout, programs: FakePrograms) -> None:
    numbers = []
    for _ in range(2):  # two lives of the machine
        async with machine_up(layout, programs), client_of(layout) as client:
            for _ in range(2):
                numbers.append((await client.call("domain.start", name="work"))["domid"])
                await client.call("domain.shutdown", name="work", force=True)
    assert len(set(numbers)) == 4


@pytest.mark.parametrize(("text", "number"), [("12\n", 12), ("12   \n", 12), ("32752\n", 1)])
async def test_the_next_domain_number_is_that_of_the_file(
    layout: Layout, programs: FakePrograms, text: str, number: int
) -> None:
    """32752 is the first that no domain may have: they begin anew."""
    layout.next_domid.write_text(text)
    async with machine_up(layout, programs) as machine:
        assert await machine.start(machine.domains["work"]) == number
    assert layout.next_domid.read_text() == f"{number + 1:<5}\n"


async def test_a_domain_number_that_cannot_be_kept_is_not_used(
    layout: Layout, programs: FakePrograms
) -> None:
    async with machine_up(layout, programs) as machine:
        layout.next_domid.mkdir()
        with pytest.raises(CallError, match=r"cannot make .*/next-domid: Is a directory"):
            await machine.start(machine.domains["work"])
        assert machine.domains["work"].state == "Halted"
        layout.next_domid.rmdir()
        assert await machine.start(machine.domains["work"]) == 1


async def test_a_machine_goes_on_when_it_cannot_look_for_what_a_dead_agent_has_mounted(
    layout: Layout,
    programs: FakePrograms,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(_dev: Path) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), MOUNTINFO)

    async with machine_up(layout, programs) as machine:
        await machine.start(machine.domains["work"])
        supervisor = machine.domains["work"].supervisor
        assert supervisor is not None
        supervisor.ready = trio.Event()
        with monkeypatch.context() as patch:
            patch.setattr(machine_module, "clear_dev", fails)
            supervisor.kill()
            await supervisor.ready.wait()
        assert f"{MOUNTINFO}: Too many open files" in caplog.messages


async def test_an_agent_that_is_killed_starts_again_as_the_same_domain(
    layout: Layout, programs: FakePrograms
) -> None:
    async with machine_up(layout, programs) as machine:
        domain = machine.domains["work"]
        domid = await machine.start(domain)
        supervisor = domain.supervisor
        assert supervisor is not None
        await supervisor.ready.wait()
        supervisor.ready = trio.Event()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        await supervisor.ready.wait()
        assert (domain.domid, domain.state) == (domid, "Running")
        assert supervisor.program.argv[-1] == str(domid)


async def test_an_agent_that_keeps_dying_halts_its_vm_and_nothing_else(
    layout: Layout, programs: FakePrograms
) -> None:
    programs.bodies["work"] = CRASHING
    async with machine_up(layout, programs) as machine, client_of(layout) as client:
        other = (await client.call("domain.start", name="sys-usb"))["domid"]
        await client.call("domain.start", name="work")
        heard = []
        while heard[-2:] != [("work", "Running"), ("work", "Halted")]:
            news = await client.news.receive()
            heard.append((news["name"], news["state"]))
        assert machine.domains["sys-usb"].domid == other
        programs.bodies["work"] = "ready()\nsignal.pause()"
        await client.call("domain.start", name="work")  # repaired, it starts again


async def test_dom0s_service_starts_again_and_the_agents_do_not_notice(
    layout: Layout, programs: FakePrograms
) -> None:
    async with machine_up(layout, programs) as machine:
        domain = machine.domains["work"]
        await machine.start(domain)
        assert domain.supervisor is not None
        agent = domain.supervisor.pid
        for supervisor in (machine.dom0, machine.dom0_agent):
            await supervisor.ready.wait()
            supervisor.ready = trio.Event()
            supervisor.kill()
            await supervisor.ready.wait()
        assert domain.supervisor.pid == agent
        assert domain.supervisor.starts == 1


async def test_a_machine_that_breaks_can_still_be_stopped(
    layout: Layout, programs: FakePrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_dev: Path) -> list[str]:
        raise RuntimeError("a mistake of ours")

    machine = Machine(layout, VMS, programs)
    listener = await machine.listen()
    with trio.fail_after(PATIENCE), pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(machine.run, listener)
            work = machine.domains["work"]
            await machine.start(work)
            assert work.supervisor is not None
            monkeypatch.setattr(machine_module, "clear_dev", broken)
            try:
                work.supervisor.kill()
                await trio.sleep_forever()  # until the nursery is cancelled
            finally:
                with trio.CancelScope(shield=True):
                    await machine.stop()
    assert "a mistake of ours" in "".join(traceback.format_exception(caught.value))
    assert work.state == "Halted"


async def test_stop_ends_every_program(layout: Layout, programs: FakePrograms) -> None:
    async with machine_up(layout, programs) as machine:
        for domain in machine.domains.values():
            await machine.start(domain)
        supervisors = [domain.supervisor for domain in machine.domains.values()]
        pids = [s.pid for s in (*supervisors, machine.dom0, machine.dom0_agent) if s is not None]
    assert len(pids) == 4
    for pid in pids:
        assert pid is not None
        await gone(pid)
    assert not layout.machine_socket.exists()


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("domain.start", {"name": "nobody"}, "not_found"),
        ("domain.start", {"name": 3}, "usage"),
        ("domain.start", {}, "usage"),
        ("domain.list", {"all": True}, "usage"),
        ("domain.shutdown", {"name": "work", "force": "yes"}, "usage"),
        ("domain.destroy", {"name": "work"}, "unknown_method"),
    ],
)
async def test_what_the_machine_cannot_do_is_an_error_answer(
    layout: Layout, programs: FakePrograms, method: str, params: dict[str, Any], code: str
) -> None:
    async with machine_up(layout, programs), client_of(layout) as client:
        with pytest.raises(CallError) as caught:
            await client.call(method, **params)
        assert caught.value.code == code


@asynccontextmanager
async def lone_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose one error is raised as it is."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def driver_of(layout: Layout) -> LocalDriver:
    return LocalDriver(
        machine=layout.machine_socket, vchan=layout.vchan, dom0_agent=layout.dom0_agent_socket
    )


async def test_the_driver_shows_domains_as_the_machine_has_them(
    layout: Layout, programs: FakePrograms, nursery: trio.Nursery
) -> None:
    async with machine_up(layout, programs) as machine:
        await machine.start(machine.domains["sys-usb"])
        driver = driver_of(layout)
        # Ends before the machine does: a machine that goes down first is the next test.
        async with trio.open_nursery() as inner:
            await inner.start(driver.run)
            assert list(driver.domains()) == ["sys-usb", "work"]
            assert driver.domains()["sys-usb"].state == "Running"
            events = driver.events()
            domid = await driver.start("work")
            assert await events.receive() == DomainInfo("work", domid, "Running")
            assert driver.domains()["work"].domid == domid
            await driver.shutdown("work", force=True)
            with pytest.raises(DriverError) as caught:
                await driver.start("nobody")
            assert caught.value.code == "not_found"
            with pytest.raises(FileNotFoundError):
                await driver.connect_control("work", domid)
            with pytest.raises(FileNotFoundError):
                await driver.connect_control("dom0", 0)
            inner.cancel_scope.cancel()


async def test_a_machine_that_goes_away_ends_the_driver(
    layout: Layout, programs: FakePrograms
) -> None:
    driver = driver_of(layout)
    lost: list[HypervisorLost] = []

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await driver.run(task_status=task_status)
        except HypervisorLost as error:
            lost.append(error)

    async with trio.open_nursery() as nursery:
        async with machine_up(layout, programs):
            await nursery.start(run)
            events = driver.events()
        with pytest.raises(trio.EndOfChannel):
            await events.receive()
    assert lost


async def test_a_driver_whose_events_nobody_takes_says_so_and_ends(
    layout: Layout, programs: FakePrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (local, subscribers):
        monkeypatch.setattr(module, "EVENTS_MAX", 1)
    driver = driver_of(layout)
    async with machine_up(layout, programs) as machine:
        with pytest.raises(HypervisorLost, match="1 domain events behind"):
            async with lone_nursery() as nursery:
                await nursery.start(driver.run)
                events = driver.events()
                await machine.start(machine.domains["work"])
                await machine.shutdown(machine.domains["work"], force=True)
        assert [domain.state async for domain in events] == ["Running"]


async def test_a_driver_without_a_machine_says_so(layout: Layout) -> None:
    with pytest.raises(HypervisorLost, match=r"no machine at .*machine\.sock"):
        await driver_of(layout).run()


def kill_when_it_is_up(program: Path, root: Path) -> list[int]:
    """Starts the victim and kills it; the pids of what it had started."""
    argv = [sys.executable, str(program), str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        pids = [int(word) for word in machine.stdout.readline().split()]
        machine.kill()
        return pids


async def test_a_machine_that_is_killed_leaves_no_program_behind(
    layout: Layout, tmp_path: Path
) -> None:
    program = tmp_path / "victim.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, trio
            from pathlib import Path
            from tests_local_conftest import FakePrograms, STUBBORN
            from pedos_dom0.local.layout import Layout
            from pedos_dom0.local.machine import Machine

            async def main():
                layout = Layout.of(sys.argv[1])
                programs = FakePrograms(
                    layout.root / "log", dict.fromkeys(["dom0", "dom0-agent", "work"], STUBBORN)
                )
                machine = Machine(layout, [("work", True)], programs)
                listener = await machine.listen()
                async with trio.open_nursery() as nursery:
                    await nursery.start(machine.run, listener)
                    await machine.start(machine.domains["work"])
                    agent = machine.domains["work"].supervisor
                    pids = []
                    for supervisor in (machine.dom0, machine.dom0_agent, agent):
                        await supervisor.ready.wait()
                        pids.append(supervisor.pid)
                    print(*pids, flush=True)

            trio.run(main)
            """
        )
    )
    helper = Path(__file__).with_name("conftest.py")
    (tmp_path / "tests_local_conftest.py").symlink_to(helper)
    pids = await trio.to_thread.run_sync(kill_when_it_is_up, program, layout.root)
    assert len(pids) == 3
    for pid in pids:
        await gone(pid)
