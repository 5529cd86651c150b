"""The service, counting what it keeps: python -m benchmarks.live_bytes SOCKET ARGUMENTS...

It is pedos-dom0 with these arguments. At SIGUSR1 it sends a datagram to SOCKET: the bytes that are
alive in it, without those of the interpreter's start and of its caches.
"""

from __future__ import annotations

import gc
import runpy
import signal
import socket
import sys
import tracemalloc


def main() -> None:
    path = sys.argv.pop(1)
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def tell(*_: object) -> None:
        gc.collect()
        told.sendto(str(tracemalloc.get_traced_memory()[0]).encode(), path)

    signal.signal(signal.SIGUSR1, tell)
    tracemalloc.start()
    runpy.run_module("pedos_dom0", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
