"""The alternatives to which remote calls are compared, each as `seconds(in_flight, calls)`."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

from . import two_processes
from .processes import output_of, python_of_peers

Contender = Callable[[int, int], float]


def _peer(module: str, in_flight: int, calls: int) -> float:
    program = [python_of_peers(), "-m", f"benchmarks.peers.{module}", str(in_flight), str(calls)]
    try:
        return float(output_of(program, timeout=PEER_TIMEOUT))
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the peer {module} failed with status {error.returncode}") from error


# A run of a peer takes a few seconds at most; a hanging one must not stop everything.
PEER_TIMEOUT = 120

STACK: Contender = two_processes.seconds_per_call
OVER_SOCKET: Contender = functools.partial(two_processes.seconds_per_call, over_socket=True)
GRPC: Contender = functools.partial(_peer, "grpc_aio")
DBUS: Contender = functools.partial(_peer, "dbus_daemon")
GRPC_CONNECT: Contender = functools.partial(_peer, "grpc_connect")
VARLINK: Contender = functools.partial(_peer, "varlink_unix")
PROTOCOLS: Contender = functools.partial(_peer, "asyncio_protocol")


def c_unix_socket(program: Path, core: int, other: int, trips: int) -> float:
    """Seconds per round trip of 64 bytes over a Unix socket, in C."""
    return int(output_of([program, str(core), str(other), str(trips)])) / 1e9
