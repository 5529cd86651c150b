"""What an agent makes to have a service started, by one step of C each (csrc/service_start.h)."""

from __future__ import annotations

import os
from typing import Final

from ._native import ffi, lib

_STREAMS: Final = f"int[{lib.PV_SERVICE_FDS}]"
_ASKED: Final = f"int[{lib.PV_KEEPER_FDS_MAX + 1}]"


def service_streams(with_stderr: bool) -> list[int]:
    """Our ends of stdin, stdout and stderr, and then those of the service: of two socket pairs and
    a pipe, or -1 instead of that. OSError."""
    made = ffi.new(_STREAMS)
    if error := lib.pv_service_streams(made, with_stderr):
        raise OSError(-error, os.strerror(-error))
    return list(made)


def ask_keeper(path: bytes, packet: bytes, with_stderr: bool) -> list[int]:
    """Send the keeper that listens there this packet with streams as above: our ends of them, and
    the connection. It may only be about to start. OSError: nothing was sent."""
    made = ffi.new(_ASKED)
    if error := lib.pv_keeper_ask(path, packet, len(packet), with_stderr, made):
        raise OSError(-error, os.strerror(-error))
    return list(made)
