"""Watches channels that nobody uses at the moment, with no task for any of them (`ready`)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from ._native import lib
from .conversation import scratch
from .ready import ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from .channel import Channel

    News = Literal["data", "closed"]


class IdleChannels:
    """The channels that wait."""

    def __init__(self, news: Callable[[Channel, News], None]) -> None:
        """`news` is called, once for each channel, when it has bytes to read ("data") or has ended
        in any way ("closed"): it is not watched any more then, and may be closed."""
        self._news = news
        self._waiting: dict[Channel, int] = {}  # with the descriptor that `ready` knows

    def add(self, channel: Channel) -> None:
        """Watch it; `news` may be called at once. `remove` comes before it is closed. OSError."""
        if (news := self._look(channel)) is not None:
            self._news(channel, news)
            return
        descriptor = channel.fileno()
        ready().add(descriptor, partial(self._woken, channel))
        self._waiting[channel] = descriptor

    def remove(self, channel: Channel) -> None:
        """Watch it no longer; does nothing if it is not watched."""
        descriptor = self._waiting.pop(channel, None)
        if descriptor is not None:
            ready().remove(descriptor)

    def _woken(self, channel: Channel) -> None:
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
