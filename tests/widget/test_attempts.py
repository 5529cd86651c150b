"""When a connection is tried again, and that nothing wakes up the program otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pedos_widget.attempts
import pytest
import trio
import trio.testing
from pedos_widget.attempts import PAUSES, UNSEEN_S, Attempts


@pytest.fixture
def attempts() -> Iterator[Attempts]:
    made = Attempts()
    yield made
    made.close()


async def tried(attempts: Attempts, path: Path | None, times: int) -> list[float]:
    """The pauses before that many attempts, all of which fail."""
    gaps = []
    for _ in range(times):
        before = trio.current_time()
        await attempts.next(None if path is None else str(path))
        gaps.append(trio.current_time() - before)
    return gaps


async def test_some_attempts_follow_soon_and_then_nothing_but_a_sign(
    attempts: Attempts, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "socket"
    assert await tried(attempts, path, len(PAUSES)) == pytest.approx(PAUSES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempts.next, str(path))
        await trio.testing.wait_all_tasks_blocked()
        # No clock wakes it up.
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        path.touch()
    # The socket is seen before anybody listens: a few attempts follow again.
    assert await tried(attempts, path, 2) == pytest.approx(PAUSES[:2])


async def test_a_sign_between_two_attempts_is_not_missed(
    attempts: Attempts, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    await tried(attempts, tmp_path / "socket", len(PAUSES))
    (tmp_path / "socket").touch()
    assert await tried(attempts, tmp_path / "socket", 1) == pytest.approx([0])


async def test_a_folder_that_is_made_is_a_sign(
    attempts: Attempts, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "run/pedos/socket"
    await tried(attempts, path, len(PAUSES))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempts.next, str(path))
        await trio.testing.wait_all_tasks_blocked()
        (tmp_path / "run").mkdir()


@pytest.mark.parametrize("times", [0, len(PAUSES)])
async def test_somebody_who_wants_it_is_not_kept_waiting(
    attempts: Attempts, tmp_path: Path, autojump_clock: trio.testing.MockClock, times: int
) -> None:
    await tried(attempts, tmp_path / "socket", times)
    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempts.next, str(tmp_path / "socket"))
        await trio.testing.wait_all_tasks_blocked()
        attempts.wanted()
    assert trio.current_time() == before


async def test_after_a_success_the_first_attempt_is_soon(
    attempts: Attempts, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    await tried(attempts, tmp_path / "socket", 4)
    attempts.succeeded()
    assert await tried(attempts, tmp_path / "socket", 1) == pytest.approx(PAUSES[:1])


@pytest.mark.parametrize("is_file", [True, False])
async def test_where_nothing_can_be_watched_the_clock_is_the_sign(
    attempts: Attempts,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    is_file: bool,
) -> None:
    def used_up(_folders: list[Path]) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pedos_widget.attempts, "FolderWatch", used_up)
    path = tmp_path / "socket" if is_file else None
    gaps = await tried(attempts, path, len(PAUSES) + 1)
    assert gaps == pytest.approx([*PAUSES, UNSEEN_S])
