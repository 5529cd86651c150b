"""Where dom0's service listens on a Xen host, for programs that look for it."""

from __future__ import annotations

#: Root's own socket in dom0; in a VM, the agent's for everybody there.
DEFAULT_SOCKET = "/run/pedos/pedos.sock"

#: In dom0, the socket for members of `DESKTOP_GROUP`, who may ask for less (docs/desktop.md).
DESKTOP_SOCKET = "/run/pedos-desktop/pedos.sock"

#: The group of the users who may lend devices from dom0's desktop.
DESKTOP_GROUP = "pedos"

#: Where programs call services: the agent's socket in a VM, and in dom0 that of dom0's own agent.
CALL_SOCKETS = ("/run/pedos/calls.sock", "/run/pedos-agent/calls.sock")

_ENDING, _CALLS_ENDING = ".sock", ".calls"


def call_socket_beside(service: str) -> str:
    """The call socket of the system that has its service at this path."""
    return service.removesuffix(_ENDING) + _CALLS_ENDING
