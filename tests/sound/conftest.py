"""One running house for all tests that one process runs: starting it takes longer than a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.sound import house as houses
from tests.sound.house import House
from tests.sound.servers import KINDS


class KeptHouse:
    """The house, and a fresh one after that was lost."""

    def __init__(self) -> None:
        self._until_dropped = contextlib.ExitStack()
        self._house: House | None = None

    def get(self) -> House:
        if self._house is None:
            self._house = self._until_dropped.enter_context(houses.house())
        return self._house

    def drop(self) -> None:
        self._house = None
        self._until_dropped.close()


@pytest.fixture(scope="session")
def kept_house() -> Iterator[KeptHouse]:
    if (why := houses.why_not(*KINDS)) is not None:
        pytest.skip(why)
    kept = KeptHouse()
    yield kept
    kept.drop()


@pytest.fixture
def house(kept_house: KeptHouse) -> Iterator[House]:
    """The house, in which nothing is lent, before and after."""
    local = kept_house.get()
    yield local
    try:
        lost = local.lost()
        assert lost is None, lost
        local.take_all_back()
        local.wait_for_sound()
    except BaseException:
        kept_house.drop()
        raise
