"""Microphones: the user's session records what is lent, and offers what is borrowed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from pedos_agent.device_classes.base import Carrier, DeviceClass, Host
from pedos_agent.device_classes.mic import discovery
from pedos_agent.device_classes.mic.carrier import Microphones
from pedos_agent.device_classes.mic.link_server import LinkServer


class Mic(DeviceClass):
    """Microphones. An agent without a socket for sessions can only list them."""

    name = "mic"

    def __init__(self) -> None:
        """For any number of agents in one process."""
        self._links: WeakKeyDictionary[Host, LinkServer] = WeakKeyDictionary()

    def watch(self, host: Host) -> Callable[..., Awaitable[Any]] | None:
        """See DeviceClass."""
        link = self._link(host)
        if link is None and not discovery.is_machine(host):
            return None
        return partial(discovery.watch, host, link)

    def carrier(self, host: Host) -> Carrier | None:
        """See DeviceClass."""
        link = self._link(host)
        return None if link is None else Microphones(host, link)

    def _link(self, host: Host) -> LinkServer | None:
        """The one that discovery and attachments share."""
        path = host.settings.sound
        if path is None:
            return None
        link = self._links.get(host)
        if link is None:
            link = self._links[host] = LinkServer(path, host.settings)
        return link
