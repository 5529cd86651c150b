"""The far side of Xen's own vchan-socket-proxy, which knows nothing of us.

bench-proxied server PEER XENSTORE_PATH          gives back what comes through the proxy
bench-proxied client PEER XENSTORE_PATH BYTES    sends so much, and checks what comes back
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PAUSE = 0.1  # seconds between two tries
PATIENCE = 60  # seconds


def echo(listening: socket.socket) -> int:
    connection, _ = listening.accept()
    count = 0
    while data := connection.recv(65536):
        connection.sendall(data)
        count += len(data)
    return count


def connected(path: Path) -> socket.socket:
    """The proxy takes a moment to make its socket."""
    end = time.monotonic() + PATIENCE
    while True:
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(str(path))
            return made
        except OSError:
            made.close()
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE)


def exchange(connection: socket.socket, size: int) -> int:
    data = random.Random(size).randbytes(size)
    threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
    got = b""
    while len(got) < size and (part := connection.recv(65536)):
        got += part
    assert got == data, f"{len(got)} of {size} bytes, or wrong ones"
    return len(got)


def main() -> None:
    role, peer, path, *size = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "socket"
        listening = socket.socket(socket.AF_UNIX)
        if role == "server":
            listening.bind(str(place))
            listening.listen()
        proxy = subprocess.Popen(
            ["vchan-socket-proxy", "-m", role, peer, path, str(place)], stdin=subprocess.DEVNULL
        )
        try:
            if role == "server":
                count = echo(listening)
            else:
                with connected(place) as connection:
                    count = exchange(connection, int(size[0]))
        finally:
            proxy.kill()
            proxy.wait()
    print(json.dumps({"proxied": count}))
