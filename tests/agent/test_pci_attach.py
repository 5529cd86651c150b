"""A PCI device in the VM that is given it: when it is there, and when it can be taken away."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio
from pedos_agent.attachments.table import Attachments
from pedos_agent.device_classes import kernel
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.settings import Settings, xen_settings
from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import ROOTS
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.pci_tree import PciTree
from tests.trio_versions import background

from .conftest import ATTACHMENT

HERE = "pci-0/pci0000:00"
NAME, ADDRESS = "00_00.0", "0000:00:00.0"


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    tree = PciTree(tmp_path)
    (tree.sys / "bus/xen/drivers/pcifront").mkdir(parents=True)
    return tree


def agent_of(tree: PciTree, *, xen: bool = True) -> Attachments:
    settings = xen_settings("work", 5, tree.sys / "sock", None)
    attachments = Attachments(attrs.evolve(settings, xen=xen), Revision())
    attachments.host.roots = attrs.evolve(ROOTS, sys=tree.sys, dev=tree.dev)
    attachments.inventory = Inventory(Revision(), attachments.check_sources)
    return attachments


async def with_agent(tree: PciTree, work: Callable[[Attachments], Awaitable[None]]) -> None:
    """Runs `work` with an agent, which then ends, also if `work` fails: its tasks end only then."""
    attachments = agent_of(tree)
    async with background() as nursery:
        await nursery.start(attachments.run)
        try:
            await work(attachments)
        finally:
            with trio.CancelScope(shield=True):
                await attachments.close()


async def test_work_that_fails_ends_the_agent_and_the_test(tree: PciTree) -> None:
    tree.add("00:00.0", below=HERE)

    async def work(agent: Attachments) -> None:
        await agent.start_import(given())
        raise AssertionError("this is what was to be tested")

    with trio.fail_after(20), pytest.raises(AssertionError, match="what was to be tested"):
        await with_agent(tree, work)


def given(frontend: str | None = NAME) -> ImportStart:
    return ImportStart(ATTACHMENT, "pci", "00_1c.0-00.0", 16, 0, False, "dom0", frontend)


async def test_it_is_ready_when_the_kernel_shows_it(tree: PciTree) -> None:
    tree.add("00:00.0", below=HERE)

    async def work(agent: Attachments) -> None:
        assert await agent.start_import(given()) == NAME
        (state,) = agent.imports()
        assert (state.frontend, state.device_class) == (NAME, "pci")
        await agent.stop_import(ATTACHMENT, NAME, "pci")
        assert agent.imports() == []

    await with_agent(tree, work)


async def test_one_that_the_kernel_never_shows_is_an_error(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.device_classes.pci.carrier.APPEAR_SECONDS", 0.1)

    async def work(agent: Attachments) -> None:
        with pytest.raises(CallError, match=r"shows no PCI device 00_00\.0"):
            await agent.start_import(given())

    await with_agent(tree, work)


async def test_without_its_frontend_the_kernel_says_so(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.sys / "bus/xen/drivers/pcifront").rmdir()

    async def silent(_command: list[str]) -> str:
        await trio.lowlevel.checkpoint()
        return "not found"

    monkeypatch.setattr(kernel, "_said_by", silent)

    async def work(agent: Attachments) -> None:
        with pytest.raises(CallError, match="no module xen-pcifront"):
            await agent.start_import(given())

    await with_agent(tree, work)


async def test_in_a_vm_whose_kernel_names_it_otherwise_nothing_is_waited_for(
    tree: PciTree,
) -> None:
    async def work(agent: Attachments) -> None:
        assert await agent.start_import(given(None)) is None
        await agent.stop_import(ATTACHMENT, None, "pci")

    await with_agent(tree, work)


async def test_a_driver_alone_does_not_keep_it_but_an_interface_that_is_up_does(
    tree: PciTree,
) -> None:
    tree.add("00:00.0", below=HERE, driver="e1000")

    async def work(agent: Attachments) -> None:
        await agent.start_import(given())
        await agent.check_import(ATTACHMENT, NAME, "pci")
        tree.interface(ADDRESS, "eth0", up=True)
        for ask in (agent.check_import, agent.stop_import):
            with pytest.raises(CallError, match=r"00_00\.0 is in use here: .*eth0 is up") as caught:
                await ask(ATTACHMENT, NAME, "pci")
            assert caught.value.code == "busy"
        (tree.folder(ADDRESS) / "net/eth0/flags").write_text("0x1002\n")
        await agent.stop_import(ATTACHMENT, NAME, "pci")

    await with_agent(tree, work)


async def test_what_an_earlier_agent_was_given_stays_while_a_driver_has_it(
    tree: PciTree,
) -> None:
    """dom0 asks because that agent has ended, and not because anybody wants the device back."""
    tree.add("00:00.0", below=HERE, driver="xhci_hcd")

    async def work(agent: Attachments) -> None:
        with pytest.raises(CallError, match=r"00_00\.0 is driven by xhci_hcd"):
            await agent.stop_import(ATTACHMENT, NAME, "pci")
        tree.bind(ADDRESS, None)
        await agent.stop_import(ATTACHMENT, NAME, "pci")

    await with_agent(tree, work)


async def test_one_that_has_gone_ends_by_itself(tree: PciTree, autojump_clock: Clock) -> None:
    tree.add("00:00.0", below=HERE)
    told = trio.Event()

    async def ended(attachment: str, side: str, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        assert (attachment, side, reason) == (ATTACHMENT, "import", "00_00.0 has gone")
        told.set()

    async def work(agent: Attachments) -> None:
        agent.ended = ended
        await agent.start_import(given())
        (tree.sys / "bus/pci/devices" / ADDRESS).unlink()
        await told.wait()

    await with_agent(tree, work)


async def test_one_that_cannot_be_looked_at_for_a_while_has_not_gone(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.device_classes.pci.carrier.LOOK_SECONDS", 0.01)
    tree.add("00:00.0", below=HERE)
    asked = 0

    def no_answer(_path: str) -> bool:
        nonlocal asked
        asked += 1
        raise OSError(errno.EIO, "Input/output error")

    async def work(agent: Attachments) -> None:
        await agent.start_import(given())
        with monkeypatch.context() as patched:
            patched.setattr("pedos_agent.device_classes.pci.carrier.is_there", no_answer)
            with trio.fail_after(20):
                while asked < 3:  # noqa: ASYNC110 - a thread counts
                    await trio.sleep(0.01)
        assert len(agent.imports()) == 1
        (tree.sys / "bus/pci/devices" / ADDRESS).unlink()
        with trio.fail_after(20):
            while agent.imports():  # noqa: ASYNC110 - there is no event
                await trio.sleep(0.01)

    await with_agent(tree, work)


async def test_a_name_that_no_device_has_is_refused(tree: PciTree) -> None:
    async def work(agent: Attachments) -> None:
        with pytest.raises(CallError, match="xvdi cannot be a PCI device"):
            await agent.start_import(given("xvdi"))
        await agent.stop_import(ATTACHMENT, "xvdi", "pci")

    await with_agent(tree, work)


async def test_dom0s_agent_looks_on(tree: PciTree) -> None:
    from pedos_agent.device_classes.described import listed

    async def work(agent: Attachments) -> None:
        assert agent.inventory is not None
        agent.inventory.replace("pci", [listed("pci", "00_14.0", "8086:a36d::p0c0330", "a device")])
        await agent.start_export(ExportStart(ATTACHMENT, "pci", "00_14.0", 16, 7, False))
        assert agent.lent() == {("pci", "00_14.0")}
        await agent.stop_export(ATTACHMENT)
        assert agent.lent() == set()

    await with_agent(tree, work)


async def test_local_mode_has_no_hardware_to_give(settings: Settings, tree: PciTree) -> None:
    agent = Attachments(settings, Revision())
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run)
        with pytest.raises(CallError, match="pci devices cannot be lent in local mode"):
            await agent.start_import(given())
        await agent.close()
