"""One running house per module: starting it takes longer than a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sound import house as houses
from tests.sound.house import House
from tests.sound.servers import KINDS


@pytest.fixture(scope="module")
def kept_house() -> Iterator[House]:
    if (why := houses.why_not(*KINDS)) is not None:
        pytest.skip(why)
    with houses.house() as kept:
        yield kept


@pytest.fixture
def house(kept_house: House) -> Iterator[House]:
    """The module's house, in which nothing is lent, before and after."""
    yield kept_house
    lost = kept_house.lost()
    assert lost is None, lost
    kept_house.take_all_back()
    kept_house.wait_for_sound()
