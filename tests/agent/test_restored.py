"""A restored VM is another domain, and its agent starts over there."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import pairwise

import pytest
import trio
from pedos_agent.connections.restored import end_when_restored
from pedos_host.backoff import BACKOFF_FIRST, BACKOFF_MAX
from pedos_vchan import xen
from trio.abc import Clock


class Xenstore:
    """What xenstore says of this domain's number, one after the other; an OSError is raised."""

    def __init__(self) -> None:
        self.answers: list[str | OSError | None] = []
        self.fires = trio.Semaphore(0)
        self.watched: list[str] = []

    def __enter__(self) -> Xenstore:
        return self

    def __exit__(self, *_: object) -> None:
        self.watched.clear()

    def watch(self, path: str) -> None:
        self.watched.append(path)
        self.fires.release()  # a watch fires when it is set

    async def changed(self) -> set[str]:
        await self.fires.acquire()
        return set(self.watched)

    def read(self, _path: str) -> str | None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Xenstore]:
    made = Xenstore()
    monkeypatch.setattr(xen, "Store", lambda: made)
    return made


async def test_the_agent_of_a_vm_that_is_restored_ends_and_says_why(store: Xenstore) -> None:
    store.answers = ["3", "7"]
    store.fires.release()  # again, after the first time
    with pytest.raises(OSError, match="restored, as domain 7, and was domain 3") as raised:
        await end_when_restored(3)
    assert raised.value.errno == errno.ESTALE


async def test_what_is_not_known_of_its_number_ends_no_agent(
    store: Xenstore, autojump_clock: Clock
) -> None:
    store.answers = [OSError(errno.EMFILE, "Too many open files"), None, "3"]
    with trio.move_on_after(60) as waited:
        await end_when_restored(3)
    assert waited.cancelled_caught
    assert store.answers == ["3"]


async def test_an_old_failure_makes_no_later_one_wait_longer(
    store: Xenstore, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    fails = OSError(errno.EMFILE, "Too many open files")

    async def changed() -> set[str]:
        asked.append(trio.current_time())
        if len(asked) == 10:
            await trio.sleep(10 * BACKOFF_MAX)
        raise fails

    monkeypatch.setattr(store, "changed", changed)
    with trio.move_on_after(20 * BACKOFF_MAX):
        await end_when_restored(3)
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps[8] == pytest.approx(BACKOFF_MAX)
    assert gaps[9] - 10 * BACKOFF_MAX == pytest.approx(BACKOFF_FIRST)
