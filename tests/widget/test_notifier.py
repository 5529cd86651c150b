"""Notifications, from the controller's news to daemons: one that the test plays, and a real one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_widget.bus import Bus
from pedos_widget.model.view import DeviceRef, Happened, Result
from pedos_widget.notifications.daemon import NOTIFICATIONS, unlinked
from pedos_widget.notifications.notifier import Notifier

from tests.patience import PATIENCE
from tests.widget.private_bus import PrivateBus, Program, private_bus, program, running, until

REF = DeviceRef("block", "sys-usb", "sda", "0781:5581:4C53")
HOSTILE = "<b>bold</b> <img src='x.png'> & co"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[PrivateBus]:
    with private_bus(tmp_path) as bus:
        yield bus


class FakeController:
    """Its callbacks, to be called by a test."""

    def on_happened(self, callback: Callable[[Happened], None]) -> None:
        self.happened = callback

    def on_result(self, callback: Callable[[Result], None]) -> None:
        self.result = callback

    def fails(self, reason: str = "it is in use", device: str = "sda") -> None:
        ref = DeviceRef("block", "sys-usb", device, "")
        self.result(Result(ref, "work", "attach", "failed", reason, f"sys-usb:{device}"))


class FakeDaemon:
    """Keeps what it was told; `capabilities` and `answer` may be anything."""

    def __init__(self, *capabilities: object) -> None:
        self.capabilities: object = list(capabilities)
        self.signature = "as"
        self.notified: list[tuple[Any, ...]] = []
        self.closed: list[int] = []
        self.last = 40

    def methods(self) -> dict[str, Any]:
        return {
            "GetCapabilities": lambda: (self.signature, (self.capabilities,)),
            "Notify": self._notify,
            "CloseNotification": self._close,
        }

    def _notify(self, *values: object) -> tuple[str, tuple[int]]:
        self.notified.append(values)
        replaces = values[1]
        assert isinstance(replaces, int)
        if not replaces:
            self.last += 1
        return "u", (replaces or self.last,)

    def _close(self, number: int) -> tuple[None, tuple[()]]:
        self.closed.append(number)
        return None, ()

    @property
    def told(self) -> list[tuple[int, str, str]]:
        """What the notifications replace, their titles and bodies."""
        return [(values[1], values[3], values[4]) for values in self.notified]


@contextlib.asynccontextmanager
async def notifier(session: PrivateBus | None) -> AsyncIterator[FakeController]:
    bus, controller = Bus(session.address if session else None), FakeController()
    news = Notifier(bus, controller)
    async with running(bus), trio.open_nursery() as nursery:
        nursery.start_soon(news.run)
        yield controller
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def daemon(session: PrivateBus, fake: FakeDaemon) -> AsyncIterator[Program]:
    async with program(session, NOTIFICATIONS.name, fake.methods()) as played:
        yield played


async def test_a_daemon_that_reads_markup_gets_it_escaped_in_the_body_alone(
    session: PrivateBus,
) -> None:
    fake = FakeDaemon("body", "body-markup", "actions")
    async with daemon(session, fake), notifier(session) as controller:
        controller.fails(HOSTILE)
        await until(lambda: fake.notified)
        escaped = "sys-usb:sda\n&lt;b&gt;bold&lt;/b&gt; &lt;img src='x.png'&gt; &amp; co"
        assert fake.told == [(0, "Not attached to work", escaped)]
        name, _, icon, _, _, actions, hints, timeout = fake.notified[0]
        assert (name, icon, actions, timeout) == ("PedOS devices", "pedos-devices", [], -1)
        assert hints == {
            "category": ("s", "device.error"),
            "desktop-entry": ("s", "org.pedos.Widget"),
        }


@pytest.mark.parametrize("capabilities", [("body",), (), ("body-markup2",)])
async def test_a_daemon_that_does_not_gets_plain_text(
    session: PrivateBus, capabilities: tuple[str, ...]
) -> None:
    fake = FakeDaemon(*capabilities)
    async with daemon(session, fake), notifier(session) as controller:
        controller.fails(HOSTILE)
        await until(lambda: fake.notified)
        assert fake.told[0][2] == f"sys-usb:sda\n{HOSTILE}"


async def test_one_device_has_one_notification(session: PrivateBus) -> None:
    fake = FakeDaemon()
    async with daemon(session, fake), notifier(session) as controller:
        controller.fails("first")
        await until(lambda: len(fake.notified) == 1)
        controller.fails("second")
        await until(lambda: len(fake.notified) == 2)
        controller.fails("another", device="sdb")
        await until(lambda: len(fake.notified) == 3)
        assert [replaces for replaces, *_ in fake.told] == [0, 41, 0]
        controller.result(Result(REF, "work", "attach", "working", "", "sys-usb:sda"))


async def test_a_notification_that_the_user_closed_is_not_replaced(session: PrivateBus) -> None:
    fake = FakeDaemon()
    async with daemon(session, fake) as played, notifier(session) as controller:
        controller.fails("first")
        await until(lambda: len(fake.notified) == 1)
        while len(fake.told) < 2 or fake.told[-1][0] != 0:  # the signal may come before the answer
            for signature, body in (("ss", ("a", "b")), ("uu", (41, 2))):
                await played.signal(
                    *(NOTIFICATIONS.path, NOTIFICATIONS.interface),
                    *("NotificationClosed", signature, body),
                )
            before = len(fake.told)
            controller.fails("second")
            await until(lambda before=before: len(fake.told) > before)


async def test_a_device_that_is_gone_takes_its_notification_along(session: PrivateBus) -> None:
    fake = FakeDaemon()
    async with daemon(session, fake), notifier(session) as controller:
        controller.happened(Happened("appeared", REF, "sys-usb:sda", None, False))
        await until(lambda: fake.told == [(0, "New device", "sys-usb:sda")])
        controller.happened(Happened("gone", REF, "sys-usb:sda", None, False))
        await until(lambda: fake.closed == [41])


async def test_another_daemon_is_asked_anew_and_knows_no_ids(session: PrivateBus) -> None:
    first, second = FakeDaemon("body-markup"), FakeDaemon()
    async with notifier(session) as controller:
        async with daemon(session, first):
            controller.fails(HOSTILE)
            await until(lambda: first.notified)
        async with daemon(session, second):
            while not second.notified:  # the widget may not know yet that the first has gone
                controller.fails(HOSTILE)
                await trio.sleep(0.01)
            assert second.told[0] == (0, "Not attached to work", f"sys-usb:sda\n{HOSTILE}")


async def test_without_a_daemon_nothing_is_shown_and_that_is_logged_once(
    session: PrivateBus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fake = FakeDaemon()
    async with notifier(session) as controller:
        for number in range(3):
            controller.fails(device=f"sd{number}")
        await until(lambda: "no notifications are shown" in caplog.text)
        await trio.testing.wait_all_tasks_blocked()
        async with daemon(session, fake):
            while not fake.notified:
                controller.fails()
                await trio.sleep(0.01)
    assert caplog.text.count("no notifications are shown") == 1


async def test_without_a_bus_nothing_is_shown() -> None:
    async with notifier(None) as controller:
        controller.fails()
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("signature", "capabilities"), [("s", "body-markup"), ("u", 1), ("a{sv}", {}), ("ai", [1])]
)
async def test_a_daemon_that_answers_nonsense_does_no_harm(
    session: PrivateBus, signature: str, capabilities: object
) -> None:
    fake = FakeDaemon()
    fake.signature, fake.capabilities = signature, capabilities
    good = FakeDaemon()
    async with notifier(session) as controller:
        async with daemon(session, fake):
            controller.fails()
            await trio.testing.wait_all_tasks_blocked()
        async with daemon(session, good):
            while not good.notified:
                controller.fails()
                await trio.sleep(0.01)


@pytest.mark.parametrize(("signature", "number"), [("i", -1), ("t", 2**40), ("u", 0), ("s", "1")])
async def test_a_daemon_that_answers_no_id_does_no_harm(
    session: PrivateBus, signature: str, number: object
) -> None:
    fake = FakeDaemon()
    told: list[object] = []

    def notify(*values: object) -> tuple[str, tuple[object]]:
        told.append(values[1])
        return signature, (number,)

    methods = {**fake.methods(), "Notify": notify}
    async with program(session, NOTIFICATIONS.name, methods), notifier(session) as controller:
        for count in (1, 2, 3):
            controller.fails()
            await until(lambda count=count: len(told) == count)
    assert told == [0, 0, 0]


@pytest.fixture
def display(tmp_path: Path) -> Iterator[str]:
    """A virtual screen."""
    if not shutil.which("Xvfb"):
        pytest.skip("Xvfb is not installed")
    reader, writer = os.pipe()
    command = ("Xvfb", "-displayfd", str(writer), "-screen", "0", "800x600x24", "-nolisten", "tcp")
    with (tmp_path / "xvfb.log").open("wb") as log:
        server = subprocess.Popen(command, pass_fds=[writer], stdout=log, stderr=log)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as answer:
            yield f":{answer.readline().decode().strip()}"
    finally:
        server.kill()
        server.wait()


@contextlib.asynccontextmanager
async def dunst(session: PrivateBus, display: str, folder: Path) -> AsyncIterator[Bus]:
    """A real daemon, and a connection by which a test asks it what it shows."""
    if not shutil.which("dunst"):
        pytest.skip("dunst is not installed")
    (folder / "dunstrc").write_text("[global]\n    markup = full\n")
    environment = {
        **os.environ,
        "DISPLAY": display,
        "DBUS_SESSION_BUS_ADDRESS": session.address,
        "HOME": str(folder),
    }
    environment.pop("WAYLAND_DISPLAY", None)
    with (folder / "dunst.log").open("wb") as log:
        command = ("dunst", "-conf", str(folder / "dunstrc"))
        process = subprocess.Popen(  # noqa: ASYNC220 - starting it is quick
            command, env=environment, stdout=log, stderr=log
        )
    try:
        asking, owners = Bus(session.address), list[str]()
        asking.on_owner(NOTIFICATIONS.name, owners.append)
        async with running(asking):
            await until(lambda: owners or process.poll() is not None)
            assert process.poll() is None, (folder / "dunst.log").read_text()
            yield asking
    finally:
        process.kill()
        process.wait()


async def test_a_real_daemon_shows_the_text_as_it_is_and_in_one_place(
    session: PrivateBus, display: str, tmp_path: Path
) -> None:
    commands = NOTIFICATIONS._replace(interface="org.dunstproject.cmd0")
    async with dunst(session, display, tmp_path) as asking, notifier(session) as controller:

        async def history() -> list[dict[str, Any]]:
            """What was shown, as far as it was closed."""
            await asking.call(commands, "NotificationCloseAll")
            (shown,) = await asking.call(commands, "NotificationListHistory")
            return [{name: value for name, (_, value) in each.items()} for each in shown]

        async def displayed() -> int:
            properties = NOTIFICATIONS._replace(interface="org.freedesktop.DBus.Properties")
            ((_, count),) = await asking.call(
                properties, "Get", "ss", (commands.interface, "displayedLength")
            )
            return int(count)

        async def shows(count: int) -> None:
            with trio.fail_after(PATIENCE):
                while await displayed() < count:  # noqa: ASYNC110 - it tells nobody
                    await trio.sleep(0.01)

        controller.fails("first")
        controller.fails(HOSTILE, device="sdb")
        await shows(2)
        controller.fails(HOSTILE)
        controller.fails("third", device="sdc")
        await shows(3)
        shown = {each["body"].partition("\n")[0]: each for each in await history()}
        assert set(shown) == {"sys-usb:sda", "sys-usb:sdb", "sys-usb:sdc"}
        # As it came: it shows escapes as what they stand for, and everything else is no markup.
        hostile = "&lt;b&gt;bold&lt;/b&gt; &lt;img src='x.png'&gt; &amp; co"
        for name in ("sys-usb:sda", "sys-usb:sdb"):
            assert shown[name]["body"] == f"{name}\n{hostile}"
            assert shown[name]["summary"] == "Not attached to work"


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("http://evil.example", "http\u2060://evil.example"),
        ("HTTPS://x", "HTTPS\u2060://x"),
        ("www.evil.example", "www\u2060.evil.example"),
        ("mailto:a@b", "mailto\u2060:a@b"),
        ("evil.org/x", "evil.org\u2060/x"),
        ("sys-usb:sda www img.example 2:30", "sys-usb:sda www img.example 2:30"),
    ],
)
def test_no_name_of_a_device_is_an_address_to_a_daemon(name: str, sent: str) -> None:
    assert unlinked(name) == sent
