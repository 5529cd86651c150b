"""Waiting for one of several things."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


async def first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Wait until one of them has ended. An OSError of one is raised as it is, not in a group."""
    errors: list[OSError] = []
    async with trio.open_nursery() as nursery:

        async def wait_for(wait: Callable[[], Awaitable[object]]) -> None:
            try:
                await wait()
            except OSError as error:
                errors.append(error)
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(wait_for, wait)
    if errors:
        raise errors[0]
