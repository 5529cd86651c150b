from __future__ import annotations

import pytest
import trio
from pedos_vchan.parking import Parking
from trio.testing import wait_all_tasks_blocked


async def test_those_that_wait_are_woken_in_the_order_in_which_they_came() -> None:
    parking, woken = Parking(), list[int]()

    async def wait(number: int) -> None:
        await parking.park()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert parking
        assert parking.unpark() == 1
        await wait_all_tasks_blocked()
        assert woken == [0]
        assert parking.unpark(2) == 2
        await wait_all_tasks_blocked()
        assert sorted(woken) == [0, 1, 2]
        parking.unpark_all()
    assert woken[3] == 3
    assert not parking
    assert parking.unpark() == 0


async def test_one_who_parks_before_the_last_one_has_gone_is_woken_too() -> None:
    parking, again = Parking(), trio.Event()

    async def twice() -> None:
        await parking.park()
        await parking.park()
        again.set()

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(twice)
        await wait_all_tasks_blocked()
        parking.unpark_all()
        await wait_all_tasks_blocked()
        assert parking.unpark(5) == 2


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_an_empty_one_keeps_nothing(is_cancelled: bool) -> None:
    parking = Parking()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parking.park)
            await wait_all_tasks_blocked()
            if is_cancelled:
                scope.cancel()
            else:
                parking.unpark_all()
    assert parking.lot is None
