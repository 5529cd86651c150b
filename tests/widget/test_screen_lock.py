"""Whether the screen is locked, by the word of programs that a test plays on a bus of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_widget.bus import Bus
from pedos_widget.questions.offering import offer
from pedos_widget.screen_lock import LOGIND, PROPERTIES, SAVERS, SESSION, ScreenLock

from tests.widget.private_bus import Answer, PrivateBus, private_bus, program, running, until

SAVER = SAVERS[0]
PATH = "/org/freedesktop/login1/session/_32"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[PrivateBus]:
    with private_bus(tmp_path) as bus:
        yield bus


@contextlib.asynccontextmanager
async def followed(bus: Bus, system_bus: Bus | None = None) -> AsyncIterator[ScreenLock]:
    lock = ScreenLock(bus, system_bus)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(running(bus))
        if system_bus is not None:
            await stack.enter_async_context(running(system_bus))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(lock.run)
        yield lock
        nursery.cancel_scope.cancel()


def active(value: object = True, signature: str = "b") -> dict[str, Answer]:
    return {"GetActive": lambda: (signature, (value,))}


async def test_where_nobody_says_so_the_screen_is_not_locked(session: PrivateBus) -> None:
    async with followed(Bus(session.address), Bus(None)) as lock:
        assert not lock.is_locked
    async with followed(Bus(None)) as lock:
        assert not lock.is_locked


@pytest.mark.parametrize("saver", SAVERS)
async def test_a_saver_that_is_active_from_the_beginning_is_found(
    session: PrivateBus, saver: str
) -> None:
    async with program(session, saver, active()), followed(Bus(session.address)) as lock:
        await until(lambda: lock.is_locked)


async def test_changes_are_told_once(session: PrivateBus) -> None:
    told: list[bool] = []
    values = [False]
    async with (
        program(session, SAVER, {"GetActive": lambda: ("b", (values[-1],))}) as saver,
        followed(Bus(session.address)) as lock,
    ):
        lock.on_change(told.append)
        for value in (True, True, False, False, True):
            values.append(value)
            await saver.signal("/ScreenSaver", SAVER, "ActiveChanged", "b", (value,))
        await until(lambda: len(told) >= 3)
        assert told == [True, False, True]
        assert lock.is_locked


async def test_a_saver_that_ends_locks_nothing_any_more(session: PrivateBus) -> None:
    async with followed(Bus(session.address)) as lock:
        async with program(session, SAVER, active()):
            await until(lambda: lock.is_locked)
        await until(lambda: not lock.is_locked)


@pytest.mark.parametrize("methods", [{}, active(value="yes", signature="s"), active(1, "u")])
async def test_a_saver_that_does_not_say_is_still_heard(
    session: PrivateBus, methods: dict[str, Answer]
) -> None:
    async with (
        program(session, SAVER, methods) as saver,
        followed(Bus(session.address)) as lock,
    ):
        await saver.signal("/", SAVER, "ActiveChanged", "s", ("yes",))
        await saver.signal("/", SAVER, "ActiveChanged", "b", (True,))
        await until(lambda: lock.is_locked)


async def test_logind_tells_of_this_session_alone(
    session: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_SESSION_ID", "2")
    asked: list[object] = []

    def get_session(number: str) -> tuple[str, tuple[Any, ...]]:
        asked.append(number)
        return "o", (PATH,)

    def get(interface: str, name: str) -> tuple[str, tuple[Any, ...]]:
        asked.append((interface, name))
        return "v", (("b", True),)

    told: list[bool] = []
    async with (
        program(session, LOGIND.name, {"GetSession": get_session, "Get": get}) as logind,
        followed(Bus(None), Bus(session.address)) as lock,
    ):
        await until(lambda: lock.is_locked)
        assert asked == ["2", (SESSION, "LockedHint")]
        lock.on_change(told.append)
        for path, hints in (
            (PATH, {"IdleHint": ("b", False)}),
            (PATH + "1", {"LockedHint": ("b", False)}),
            (PATH, {"LockedHint": ("s", "no")}),
            (PATH, {"LockedHint": ("b", True)}),
            (PATH, {"LockedHint": ("b", False)}),
        ):
            body = (SESSION, hints, [])
            await logind.signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)
        await until(lambda: told)
        assert told == [False]


@pytest.mark.parametrize("path", ["", "/", "garbage", "/a//b", "/a/b/", "/a b", "/a\n", 1])
async def test_an_answer_that_is_no_path_is_no_reason_to_lose_the_bus(
    session: PrivateBus, path: object
) -> None:
    asked = trio.Event()

    def get_session(number: str) -> tuple[str, tuple[object]]:
        asked.set()
        return "u" if path == 1 else "s", (path,)

    async with (
        program(session, LOGIND.name, {"GetSession": get_session}),
        followed(Bus(None), bus := Bus(session.address)) as lock,
    ):
        await asked.wait()
        await bus.call(LOGIND._replace(interface="a.b"), "GetSession", "s", ("",))
        assert bus.is_connected
        assert not lock.is_locked


class Offered:
    """Stands for the controller and for the desk: what was offered, and when questions went."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def ask_by(self, prompter: object) -> None:
        self.seen.append(prompter)

    def hide(self) -> None:
        self.seen.append("hidden")


class Lock:
    is_locked = False

    def on_change(self, callback: object) -> None:
        self.callback = callback


def test_questions_are_offered_only_while_the_screen_is_not_locked() -> None:
    both, lock = Offered(), Lock()
    offer(both, both, lock)  # type: ignore[arg-type]
    assert both.seen == [both]
    lock.callback(True)  # type: ignore[operator]
    lock.callback(False)  # type: ignore[operator]
    assert both.seen == [both, None, "hidden", both]


def test_a_screen_that_is_locked_at_the_start_offers_nothing() -> None:
    both, lock = Offered(), Lock()
    lock.is_locked = True
    offer(both, both, lock)  # type: ignore[arg-type]
    assert both.seen == [None, "hidden"]
