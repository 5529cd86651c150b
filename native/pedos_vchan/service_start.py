"""What an agent makes to have a service started, by one step of C each (csrc/service_start.h)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from pedos_host.plain_unix import short_path

from ._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NUMBERS: Final = f"int[{lib.PV_SERVICE_FDS}]"


def service_streams(with_stderr: bool) -> list[int]:
    """Our ends of stdin, stdout and stderr, and then those of the service: of two socket pairs and
    a pipe, or -1 instead of that. OSError."""
    made = ffi.new(_NUMBERS)
    if error := lib.pv_service_streams(made, with_stderr):
        raise OSError(-error, os.strerror(-error))
    return list(made)


def ask_keeper(path: Path, packet: bytes, descriptors: Sequence[int]) -> socket.socket:
    """A connection to the keeper that listens there, which is sent this packet with the
    descriptors; it may only be about to start. OSError."""
    with short_path(path) as short:
        asked = lib.pv_keeper_ask(
            os.fsencode(short), packet, len(packet), descriptors, len(descriptors)
        )
    if asked < 0:
        raise OSError(-asked, os.strerror(-asked))
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, asked)
