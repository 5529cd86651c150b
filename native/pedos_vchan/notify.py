"""Tells the service manager that this program is ready: sd_notify(3), the one word we need."""

from __future__ import annotations

import os
import socket

from .unix import short_path


def ready() -> bool:
    """Sends READY=1 to the socket that NOTIFY_SOCKET names; False if it names none.

    The variable is taken out of the environment, so that children do not speak in our name.
    OSError if the socket is gone: whoever started us will wait in vain, and should hear of it.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        if address.startswith("@"):  # Linux's abstract names
            sock.sendto(b"READY=1", "\0" + address[1:])
        else:
            with short_path(address) as short:
                sock.sendto(b"READY=1", short)
    return True
