"""What the kernels of USB/IP do that an attachment does not expect."""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
from collections.abc import Callable

import outcome
import pytest
from pedos_agent.device_classes import kernel
from pedos_agent.device_classes.usb import host_driver, vhci
from pedos_agent.device_classes.usb.importer import BorrowedUsb
from pedos_agent.device_classes.usb.vhci import Vhci
from pedos_protocol.errors import CallError

from tests.patience import PATIENCE

from .test_usb_attach import Pair, is_socket, pair
from .usb_kernel import Stick

__all__ = ["pair"]  # a fixture


class LateKernel:
    """Does what `pair` does, but not before `go_on` what is written to files of the name `late`."""

    def __init__(self, pair: Pair, late: str) -> None:
        self.go_on = threading.Event()
        self.was_socket: bool | None = None
        self._pair, self._late = pair, late
        self._threads: list[threading.Thread] = []
        self._local = threading.local()

    def write(self, path: str, text: str) -> None:
        """An agent's write_attribute."""
        if not path.endswith(f"/{self._late}") or text == "-1":
            self._pair.write(path, text)
            return
        self._local.told.put(outcome.Error(TimeoutError("it does not answer")))
        self.go_on.wait(PATIENCE)
        if self._late in ("attach", "usbip_sockfd"):
            number = text.split()[1] if self._late == "attach" else text
            self.was_socket = is_socket(number)
        else:
            self._pair.write(path, text)

    def in_time(
        self,
        _what: str,
        ask: Callable[[], object],
        *,
        late: Callable[[object], object],
        **_more: object,
    ) -> object:
        """As pedos_host.in_time, but the time-out comes as soon as `ask` hangs."""
        told: queue.SimpleQueue[outcome.Outcome[object]] = queue.SimpleQueue()

        def run() -> None:
            self._local.told = told
            answer = outcome.capture(ask)
            if self.go_on.is_set() and isinstance(answer, outcome.Value):
                late(answer.value)
            told.put(answer)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
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
    assert "take back 1-3: " in caplog.text
    stuck.clear()
    await pair.source.attachments.clean_leftovers()
