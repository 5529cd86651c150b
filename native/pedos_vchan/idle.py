"""Watches channels that nobody uses at the moment, with one task for all of them.

A channel that waits for its next use costs two system calls when it begins and ends to wait, and no
task: one epoll descriptor holds all that wait.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Literal

import trio

from ._native import lib
from .conversation import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from .channel import Channel

    News = Literal["data", "closed"]


class IdleChannels:
    """The channels that wait."""

    def __init__(self, news: Callable[[Channel, News], None]) -> None:
        """`news` is called, once for each channel, when it has bytes to read ("data") or has ended
        in any way ("closed"): it is not watched any more then, and may be closed. OSError."""
        self._news = news
        self._epoll = select.epoll()
        self._waiting: dict[int, Channel] = {}

    def __contains__(self, channel: Channel) -> bool:
        """Whether it is watched."""
        return not channel.closed and self._waiting.get(channel.fileno()) is channel

    def add(self, channel: Channel) -> None:
        """Watch it; `news` may be called at once. OSError, also when `run` has ended."""
        if self._epoll.closed:
            raise OSError(errno.EBADF, "idle channels are not watched any more")
        if (news := self._look(channel)) is not None:
            self._news(channel, news)
            return
        descriptor = channel.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._waiting[descriptor] = channel

    def remove(self, channel: Channel) -> None:
        """Watch it no longer; does nothing if it is not watched."""
        if channel in self:
            descriptor = channel.fileno()
            del self._waiting[descriptor]
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Watch until cancelled; then no channel is watched any more."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, _ in self._epoll.poll(0):
                    self._woken(descriptor)
        finally:
            self._waiting.clear()
            self._epoll.close()

    def _woken(self, descriptor: int) -> None:
        channel = self._waiting.get(descriptor)
        if channel is None:  # another one's news have taken it away
            return
        lib.pv_channel_collect(channel.native())
        if (news := self._look(channel)) is not None:
            self.remove(channel)
            self._news(channel, news)

    @staticmethod
    def _look(channel: Channel) -> News | None:
        """None: nothing has come, and what comes is noticed."""
        count = lib.pv_channel_peek(channel.native(), 1, scratch.span)
        if count == lib.PV_WOULD_BLOCK:
            return None
        return "data" if count > 0 else "closed"
