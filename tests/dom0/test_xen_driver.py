"""The driver for Xen, against a xenstore that is a folder and a program xl that works on it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.drivers.base import DomainInfo, DriverError, HypervisorLost
from pedos_dom0.drivers.xen import driver as xen
from pedos_dom0.drivers.xen.driver import XenDriver
from pedos_dom0.service import Config, run
from pedos_dom0.tables.leases import Lease
from pedos_host.unix import connect_unix
from pedos_protocol.errors import CallError
from pedos_vchan.peer import open_peer

from tests.dom0.fakes import ALLOW_DOM0
from tests.dom0.xen_host import Host
from tests.patience import PATIENCE

SECONDS = PATIENCE


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@contextlib.asynccontextmanager
async def running(host: Host, *leases: Lease) -> AsyncIterator[XenDriver]:
    """The leases stand in the journal."""
    driver = host.driver()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(driver.run)
            driver.carriers["block"].adopt(leases)
            yield driver
            nursery.cancel_scope.cancel()


async def until(driver: XenDriver, name: str, wanted: DomainInfo | None) -> None:
    """Waits for that picture of a VM."""
    with driver.events() as events:
        while driver.domains().get(name) != wanted:
            await events.receive()


async def test_it_knows_what_runs_and_what_is_configured(host: Host) -> None:
    host.configure("work", "vault")
    host.create(3, "work")
    host.create(4, "sys-usb")
    async with running(host) as driver:
        assert list(driver.domains().values()) == [
            DomainInfo("sys-usb", 4, "Running"),
            DomainInfo("vault", None, "Halted"),
            DomainInfo("work", 3, "Running"),
        ]


async def test_plain_xl_is_noticed(host: Host) -> None:
    host.configure("work")
    async with running(host) as driver:
        host.create(3, "work")
        await until(driver, "work", DomainInfo("work", 3, "Running"))
        host.destroy(3)
        await until(driver, "work", DomainInfo("work", None, "Halted"))


async def test_a_vm_without_configuration_is_gone_when_it_ends(host: Host) -> None:
    async with running(host) as driver:
        host.create(3, "stray")
        await until(driver, "stray", DomainInfo("stray", 3, "Running"))
        with driver.events() as events:
            host.destroy(3)
            assert await events.receive() == DomainInfo("stray", None, "Halted")
        assert driver.domains() == {}


async def test_a_new_life_of_a_vm_is_another_domain(host: Host) -> None:
    host.create(3, "work")
    async with running(host) as driver:
        host.create(4, "work")  # as in a reboot, the two overlap
        await until(driver, "work", DomainInfo("work", 4, "Running"))
        host.destroy(3)
        host.configure("later")
        await until(driver, "later", DomainInfo("later", None, "Halted"))
        assert driver.domains()["work"].domid == 4


async def test_a_domain_that_has_crashed_and_lies_about_is_halted(host: Host) -> None:
    host.configure("work")
    host.create(3, "work")
    async with running(host) as driver:
        host.flag(3, "----c-")
        host.fire("@releaseDomain")
        await until(driver, "work", DomainInfo("work", None, "Halted"))


async def test_the_hypervisor_is_asked_what_has_ended_until_it_answers(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(xen, "LIST_RETRY_SECONDS", 0.0)
    host.configure("work")
    host.create(3, "work")
    host.flag(3, "----c-")
    host.plan(list={"exit": 1})
    async with running(host) as driver:
        assert driver.domains()["work"] == DomainInfo("work", 3, "Running")
        await host.until_called("list", 4)  # once, at the watches' first events, and again
        host.plan()
        await until(driver, "work", DomainInfo("work", None, "Halted"))
        asked = host.calls("list")
        host.configure("later")
        await until(driver, "later", DomainInfo("later", None, "Halted"))
        assert host.calls("list") == asked
    assert sum("no list of domains" in message for message in caplog.messages) == 1


async def test_what_xenstore_says_does_not_wait_for_the_hypervisor(host: Host) -> None:
    async with running(host) as driver:
        host.plan(list={"hangs": True})
        host.fire("@releaseDomain")
        with trio.fail_after(xen.QUICK_SECONDS / 2):
            host.create(3, "work")
            await until(driver, "work", DomainInfo("work", 3, "Running"))
            host.destroy(3)
            await until(driver, "work", None)


async def test_one_that_comes_back_while_the_hypervisor_is_asked_runs(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.configure("work")
    host.create(3, "work")
    async with running(host) as driver:
        await host.until_called("list", 2)
        asked, answer, flags = trio.Event(), trio.Event(), ["r-----", "---s--"]

        async def run(*_arguments: str, **_: object) -> str:
            asked.set()
            await answer.wait()
            return f"work 3 256 1 {flags.pop()} 1.0"

        monkeypatch.setattr(driver._xl, "run", run)
        host.fire("@releaseDomain")
        await asked.wait()
        host.fire("@introduceDomain")  # a soft reset
        await driver._waiting.park()
        with driver.events() as events:
            answer.set()
            assert await events.receive() == DomainInfo("work", None, "Halted")
            assert await events.receive() == DomainInfo("work", 3, "Running")


async def test_a_domain_that_cannot_be_a_vm_of_ours_is_left_out(host: Host) -> None:
    host.create(3, "no name, really")
    host.create(4, "dom0")
    async with running(host) as driver:
        assert driver.domains() == {}


async def test_only_names_are_watched(host: Host) -> None:
    # Whatever else is below a domain, the domain can write, and keep dom0 busy with.
    host.create(3, "work")
    async with running(host) as driver:
        (store,) = host.stores
        always = {"@introduceDomain", "@releaseDomain"}
        assert store.watched == always | {"/local/domain/3/name"}
        host.destroy(3)
        with driver.events() as events:
            await events.receive()
        assert store.watched == always


async def test_a_start_leaves_the_vm_paused_until_it_is_let_go(host: Host) -> None:
    host.configure("work")
    async with running(host) as driver:
        assert await driver.start("work") == 1
        assert driver.domains()["work"] == DomainInfo("work", 1, "Running")
        assert host.calls() == [["create", "-p", str(host.root / "etc/work.cfg")]]
        await driver.resume("work", 1)
        assert host.calls()[1:] == [["unpause", "1"]]
        assert await driver.start("work") == 1


@pytest.mark.parametrize(
    ("unpause", "ended_by"),
    [({"does": True, "killed": True}, "shutdown"), ({"exit": 1}, "destroy")],
    ids=["killed", "failed"],
)
async def test_a_vm_that_may_run_is_asked_to_shut_down_and_one_that_does_not_cannot_be(
    host: Host, unpause: dict[str, Any], ended_by: str
) -> None:
    host.configure("work")
    host.plan(unpause=unpause)
    async with running(host) as driver:
        await driver.start("work")
        with pytest.raises(DriverError, match="work could not be unpaused"):
            await driver.resume("work", 1)
        await driver.shutdown("work", force=False)
        assert host.calls()[2:] == [[ended_by, "1"]]


async def test_so_is_one_whose_unpause_was_cancelled(host: Host) -> None:
    host.configure("work")
    host.plan(unpause={"does": True, "hangs": True})
    async with running(host) as driver:
        await driver.start("work")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.resume, "work", 1)
            await host.until_called("unpause", 1)
            nursery.cancel_scope.cancel()
        await driver.shutdown("work", force=False)
        assert host.calls()[2:] == [["shutdown", "1"]]


async def test_a_vm_that_starts_is_on_its_way(host: Host) -> None:
    host.configure("work")
    async with running(host) as driver:
        with driver.events() as events:
            await driver.start("work")
            assert await events.receive() == DomainInfo("work", None, "Transient")
            assert await events.receive() == DomainInfo("work", 1, "Running")


async def test_xl_that_refuses_a_start_is_quoted(host: Host) -> None:
    host.configure("work")
    host.plan(create={"exit": 1, "says": "libxl: error: a.c:1:b: Domain 1:not enough memory\n"})
    async with running(host) as driver:
        with pytest.raises(DriverError, match="it says: Domain 1:not enough memory"):
            await driver.start("work")
        assert driver.domains()["work"] == DomainInfo("work", None, "Halted")
        assert not host.calls("destroy")


async def test_what_a_hanging_start_has_made_is_destroyed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen, "CREATE_SECONDS", 1.0)
    host.configure("work")
    host.plan(create={"does": True, "hangs": True})
    async with running(host) as driver:
        with pytest.raises(DriverError, match="did not end within 1 s") as caught:
            await driver.start("work")
        assert caught.value.code == "failed"  # it is known that it does not run
        assert host.calls("destroy") == [["destroy", "1"]]
        assert driver.domains()["work"] == DomainInfo("work", None, "Halted")


async def test_a_hanging_start_that_cannot_be_destroyed_is_not_said_to_have_failed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen, "CREATE_SECONDS", 1.0)
    host.configure("work")
    host.plan(create={"does": True, "hangs": True}, destroy={"exit": 1})
    async with running(host) as driver:
        with pytest.raises(DriverError, match="did not end within 1 s") as caught:
            await driver.start("work")
        assert caught.value.code == "timeout"
        assert driver.domains()["work"] == DomainInfo("work", 1, "Running")
        host.plan()
        await driver.shutdown("work", force=False)
        assert host.calls()[1:] == [["destroy", "1"]] * 2, "it is paused, and hears nothing"


async def test_a_start_that_the_end_of_the_service_breaks_off_is_the_next_ones_to_stop(
    host: Host, tmp_path: Path
) -> None:
    host.configure("work")
    host.plan(create={"does": True, "hangs": True})
    (tmp_path / "30-test.policy").write_text(ALLOW_DOM0)

    @contextlib.asynccontextmanager
    async def service() -> AsyncIterator[XenDriver]:
        driver = host.driver()
        config = Config(
            socket=tmp_path / "dom0.sock",
            state=tmp_path / "state",
            policy=[tmp_path],
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(run, config, driver)
            yield driver
            nursery.cancel_scope.cancel()

    async def start() -> None:
        stream = await connect_unix(tmp_path / "dom0.sock")
        async with open_peer(stream, program="test", handlers={}) as peer:
            with contextlib.suppress(CallError):  # the service ends
                await peer.call("vm.start", {"vm": "work"}, timeout=SECONDS)

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery, service() as driver:
            nursery.start_soon(start)
            await until(driver, "work", DomainInfo("work", 1, "Running"))
        assert host.calls("destroy") == []
        async with service() as driver:
            await until(driver, "work", DomainInfo("work", None, "Halted"))
        assert host.calls("destroy") == [["destroy", "1"]]


async def test_a_vm_that_cannot_be_started_says_why(host: Host) -> None:
    (host.root / "etc" / "work.cfg").write_text("memory=1\nname = 'other'\n")
    async with running(host) as driver:
        with pytest.raises(DriverError, match="calls its VM 'other', so it is not that of work"):
            await driver.start("work")
        with pytest.raises(DriverError, match=r"there is no .*/etc/vault.cfg"):
            await driver.start("vault")
        assert host.calls() == []


async def test_a_shutdown_waits_for_the_end(host: Host) -> None:
    host.create(3, "work")
    async with running(host) as driver:
        await driver.shutdown("work", force=False)
        assert host.calls() == [["shutdown", "3"]]
        assert driver.domains() == {}


async def test_one_that_does_not_shut_down_is_told_of(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen, "SHUTDOWN_SECONDS", 0.3)
    host.create(3, "work")
    host.plan(shutdown={"does": False})
    async with running(host) as driver:
        with pytest.raises(DriverError, match=r"still runs 0\.3 s after") as caught:
            await driver.shutdown("work", force=False)
        assert caught.value.hint == "qvm-shutdown --force work"
        await driver.shutdown("work", force=True)
        assert host.calls()[1:] == [["destroy", "3"]]


async def test_remains_that_nobody_clears_away_are_destroyed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen, "CLEAR_SECONDS", 0.3)
    host.create(3, "work")
    host.plan(shutdown={"does": False})
    async with running(host) as driver:
        host.flag(3, "---s--")
        host.fire("@releaseDomain")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.shutdown, "work", False)
            await until(driver, "work", None)
        assert host.calls("destroy") == [["destroy", "3"]]


async def test_one_that_was_never_let_go_is_destroyed(host: Host) -> None:
    host.configure("work")
    async with running(host) as driver:
        await driver.start("work")
        await driver.shutdown("work", force=False)
        assert host.calls()[1:] == [["destroy", "1"]]


async def test_without_xenstore_it_says_so(host: Host) -> None:
    def refuse() -> None:
        raise OSError(2, "no xenstore here")

    driver = host.driver()
    driver._open_store = refuse  # type: ignore[assignment]
    with pytest.raises(HypervisorLost, match="no xenstore here"):
        await driver.run()
