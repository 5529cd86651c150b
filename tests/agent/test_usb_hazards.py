"""What the kernels of USB/IP do that an attachment does not expect."""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio
from pedos_agent.device_classes import kernel
from pedos_agent.device_classes.usb import exporter, host_driver, importer, turns, usb_device, vhci
from pedos_agent.device_classes.usb.importer import BorrowedUsb
from pedos_agent.device_classes.usb.vhci import Vhci
from pedos_agent.system.roots import Roots
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_host.in_time import HANGING_MAX, in_time
from pedos_protocol.errors import CallError

from tests.patience import PATIENCE

from .conftest import ATTACHMENT
from .test_usb_attach import Pair, is_socket, pair
from .usb_kernel import Stick, real_path

__all__ = ["pair"]  # a fixture


class LateKernel:
    """Does what `pair` does, but not before `go_on` what is written to files of the name `late`; of
    `usbip_sockfd` that is the end of a connection if it `ends`."""

    def __init__(self, pair: Pair, late: str = "", *, ends: bool = False) -> None:
        self.go_on = threading.Event()
        self._ends = ends
        self._hanging: set[str] = set()
        self.was_socket: bool | None = None
        self._pair, self._late = pair, late
        self._threads: list[threading.Thread] = []
        self._local = threading.local()

    def write(self, path: str, text: str) -> None:
        """An agent's write_attribute."""
        is_late = real_path(path).endswith(f"/{self._late}") and (text == "-1") == self._ends
        if not is_late or self.go_on.is_set():
            self._pair.write(path, text)
            return
        self.hang()
        if self._late in ("attach", "usbip_sockfd") and not self._ends:
            number = text.split()[1] if self._late == "attach" else text
            self.was_socket = is_socket(number)
        else:
            self._pair.write(path, text)

    def hang(self) -> None:
        """The step that this thread is in times out, and goes on later."""
        self._hanging.add(self._local.what)
        self._local.is_late = True
        self._local.told.put(outcome.Error(TimeoutError("it does not answer")))
        self.go_on.wait(PATIENCE)

    def in_time(
        self,
        what: str,
        ask: Callable[[], object],
        *,
        late: Callable[[object], object],
        **_more: object,
    ) -> object:
        """As pedos_host.in_time, but the time-out comes as soon as `ask` hangs."""
        if what in self._hanging:
            raise TimeoutError("it does not answer")
        told: queue.SimpleQueue[outcome.Outcome[object]] = queue.SimpleQueue()

        def run() -> None:
            self._local.told, self._local.what, self._local.is_late = told, what, False
            answer = outcome.capture(ask)
            if self._local.is_late:
                if isinstance(answer, outcome.Value):
                    late(answer.value)
                self._hanging.discard(what)
            told.put(answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)  # others may join all of them at any time
        return told.get(timeout=PATIENCE).unwrap()

    def end(self) -> None:
        self.go_on.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("late", ["usbip_sockfd", "attach"])
async def test_it_has_the_socket_that_it_was_given(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    made = LateKernel(pair, late)
    monkeypatch.setattr(kernel, "in_time", made.in_time)
    for module in (host_driver, vhci):
        monkeypatch.setattr(module, "write_attribute", made.write)
    with pytest.raises(CallError):
        await pair.attach()
    with contextlib.suppress(CallError):
        await pair.detach()
    await pair.idle()
    made.end()
    assert made.was_socket


async def test_a_device_that_it_takes_too_late_goes_back_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = LateKernel(pair, "bind")
    monkeypatch.setattr(kernel, "in_time", made.in_time)
    monkeypatch.setattr(host_driver, "write_attribute", made.write)
    with pytest.raises(CallError, match="the kernel does not answer"):
        await pair.lend()
    made.end()
    assert pair.is_back()


async def test_a_device_goes_back_though_the_end_of_its_connection_hangs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.attach()
    made = LateKernel(pair, "usbip_sockfd", ends=True)
    monkeypatch.setattr(kernel, "in_time", made.in_time)
    monkeypatch.setattr(host_driver, "write_attribute", made.write)
    await pair.detach()
    assert pair.is_back()
    made.end()
    assert pair.is_back()


async def test_a_device_whose_return_hangs_is_not_lent_again_before_that_is_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await pair.attach()
    made = LateKernel(pair, "unbind")
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "in_time", made.in_time)
        patch.setattr(host_driver, "write_attribute", made.write)
        patch.setattr(turns, "TURN_SECONDS", 0)
        await pair.detach()
        said = (
            "it is not known whether 1-2 is back, which is tried again: take back 1-2: the kernel"
        )
        assert said in caplog.text
        assert pair.left() == ["1-2 at usbip-host"]
        with pytest.raises(CallError, match="1-2 is still being lent or given back"):
            await pair.lend()
        made.end()
        assert pair.is_back()
    await pair.lend()
    assert pair.stick.driver == host_driver.HOST
    await pair.source.attachments.stop_export(ATTACHMENT)
    assert pair.is_back()


async def test_a_device_that_is_back_is_known_to_be_while_the_kernel_holds_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Linux locks a device while it resets it, and some of what sysfs says of it waits for that."""
    await pair.attach()

    def locked(_root: Path, _name: str) -> None:
        raise TimeoutError

    monkeypatch.setattr(host_driver, "usb_device", locked)
    await pair.detach()
    assert pair.is_back()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_dom0_is_answered_before_it_gives_up_whatever_hangs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, times = kernel.in_time, dict[str, float]()

    def in_time(what: str, ask: Callable[[], object], *, seconds: float, **more: Any) -> object:
        times[what] = seconds
        return real(what, ask, seconds=seconds, **more)

    monkeypatch.setattr(kernel, "in_time", in_time)
    await pair.attach()
    await pair.target.attachments.close()  # the source looks why that was
    await pair.idle()
    under_way = max(times["connect 1-2"], times["look at 1-2"])
    ends = [times[f"{what} 1-2"] for what in ("end the connection of", "look who has", "take back")]
    assert under_way + sum(ends) + exporter.IDLE_SECONDS < STOP_TIMEOUT


async def test_disks_that_are_held_too_late_are_not_held(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nothing could use them any more, nor take the device away without force."""
    await pair.attach()
    made, held = LateKernel(pair), list[str]()

    @contextlib.contextmanager
    def late(name: str, _roots: Roots) -> Iterator[list[int]]:
        made.hang()
        held.append(name)
        yield []
        held.remove(name)
        held.append("nothing")

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "in_time", made.in_time)
        patch.setattr(importer, "held_below", late)
        with pytest.raises(CallError, match="to the disks of sys-usb:1-2: the kernel does not"):
            await pair.target.attachments.stop_import(ATTACHMENT, may_refuse=True)
        made.end()
        assert held == ["nothing"]
    await pair.detach()
    assert pair.is_back()


async def test_a_device_goes_back_though_as_many_others_hang_as_may(pair: Pair) -> None:
    await pair.attach()
    over = threading.Event()
    try:
        for number in range(HANGING_MAX):
            with pytest.raises(TimeoutError):
                in_time(f"other {number}", partial(over.wait, PATIENCE), kind="attach", seconds=0)
        with pytest.raises(CallError, match="the kernel does not answer"):
            await kernel.step("lend one more", int)
        await pair.target.attachments.check_import(ATTACHMENT)
        await pair.detach(may_refuse=True)
        assert (pair.left(), pair.is_back()) == ([], True)
    finally:
        over.set()


async def test_a_device_goes_back_though_all_threads_that_others_share_are_busy(
    pair: Pair,
) -> None:
    await pair.lend()
    shared = trio.to_thread.current_default_thread_limiter()
    others = [object() for _ in range(int(shared.available_tokens))]
    for each in others:
        shared.acquire_on_behalf_of_nowait(each)
    try:
        # Fails as soon as anybody waits for a thread, and not only after PATIENCE.
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_if_one_waits, shared, scope)
                await pair.source.attachments.stop_export(ATTACHMENT)
                nursery.cancel_scope.cancel()
    finally:
        for each in others:
            shared.release_on_behalf_of(each)
    assert not scope.cancelled_caught
    assert pair.is_back()


async def cancel_if_one_waits(limiter: trio.CapacityLimiter, scope: trio.CancelScope) -> None:
    while not limiter.statistics().tasks_waiting:
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_as_many_devices_as_a_vm_lends_are_given_back_at_once() -> None:
    number = 3 * host_driver.NAMES_MAX
    all_began = threading.Barrier(number)
    async with trio.open_nursery() as nursery:
        for each in range(number):
            work = partial(all_began.wait, PATIENCE)
            step = partial(kernel.step, f"take back {each}", kind="give-back", seconds=PATIENCE)
            nursery.start_soon(step, work)


async def test_a_port_is_freed_though_a_look_at_its_device_hangs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = LateKernel(pair)
    monkeypatch.setattr(kernel, "in_time", made.in_time)
    monkeypatch.setattr(importer, "usb_device", lambda *_: made.hang())
    handover = await pair.lend()
    with pytest.raises(CallError, match="look at sys-usb:1-2: the kernel does not answer"):
        await pair.borrow(handover)
    assert [text for path, text in pair.target.kernel.writes if path.endswith("/detach")] == ["0"]
    assert pair.target.kernel.left() == []
    made.end()
    await pair.source.attachments.stop_export(ATTACHMENT)


async def test_a_port_that_another_device_has_by_now_is_left_to_it(pair: Pair) -> None:
    await pair.attach()
    target, ports = pair.target.kernel, Vhci(pair.target.kernel.sys)
    (borrowed,) = (each.borrowing for each in pair.target.attachments._imports.values())
    assert isinstance(borrowed, BorrowedUsb)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        other = ports.attach(theirs.fileno(), 0x30004, 3)
        target.answer(ours)
        target.wait(lambda: ports.ports()[other].state == vhci.USED)  # as its tables show it
        own, borrowed.port = borrowed.port, other  # as if the kernel had freed the own one
        await borrowed._detach()
        assert target.ports[other][0] == vhci.USED
        assert borrowed.port is None
        borrowed.port = own
        ports.detach(other)
    await pair.detach()


async def test_what_cannot_be_given_back_at_the_start_keeps_nothing_else(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sticks = [pair.source.kernel.plug(Stick(name)) for name in ("1-3", "1-4")]
    driver = host_driver.HostDriver(pair.source.kernel.sys)
    for stick in sticks:
        driver.take(stick.port, lambda _: True)
    stuck = [sticks[0].port, "unbind"]

    def write(path: str, text: str) -> None:
        if [text, path.rpartition("/")[2]] == stuck:
            raise OSError(errno.EIO, "Input/output error", path)
        pair.write(path, text)

    monkeypatch.setattr(host_driver, "write_attribute", write)
    await pair.source.attachments.clean_leftovers()
    assert [stick.driver for stick in sticks] == [host_driver.HOST, "usb"]
    assert "1-3 is not back yet, which is tried again: Input/output error" in caplog.text
    stuck.clear()
    pair.source.kernel.wait(lambda: sticks[0].driver == "usb")


@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.parametrize("field", ["bConfigurationValue", "devnum", "usbip_status"])
async def test_a_leftover_that_cannot_be_looked_at_keeps_nothing_else(
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    field: str,
    hangs: bool,
) -> None:
    """The first waits for the device's lock, as while the kernel resets it: so nobody reads it."""
    sticks = [pair.source.kernel.plug(Stick(name)) for name in ("1-3", "1-4")]
    driver = host_driver.HostDriver(pair.source.kernel.sys)
    for stick in sticks:
        driver.take(stick.port, lambda _: True)
    made, real = LateKernel(pair), usb_device.read_field

    def read(path: str) -> str:
        if path.endswith(f"/1-3/{field}"):
            if not hangs:
                raise OSError(errno.EIO, "Input/output error", path)
            made.hang()
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "in_time", made.in_time)
        for module in (usb_device, host_driver):
            patch.setattr(module, "read_field", read)
        await pair.source.attachments.clean_leftovers()
    assert sticks[1].driver == "usb"
    is_back = field == "bConfigurationValue"
    assert (sticks[0].driver == "usb") == is_back
    why = "does not answer" if hangs else "Input/output error"
    assert ("a predecessor lent may not be back" in caplog.text and why in caplog.text) != is_back
    made.end()
    driver.release("1-3")
