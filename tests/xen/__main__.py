"""The bench by hand.  python -m tests.xen image | shell [GUEST...] | run SCRIPT [GUEST...]"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import sys
import termios
import time
import tty
from pathlib import Path

from . import image
from .bench import Bench, BenchError, show_times
from .programs import NotPossibleError

LEAVE = b"\x1d"  # Ctrl-]
SHELL_LIMIT = 12 * 3600.0  # seconds; a forgotten one ends some day


def talk(bench: Bench) -> None:
    """Joins this terminal to the bench's console until Ctrl-]."""
    console = socket.socket(socket.AF_UNIX)
    console.connect(str(bench.sockets.console))
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        console.sendall(b"\n")
        while True:
            readable, _, _ = select.select([0, console], [], [])
            if 0 in readable:
                typed = os.read(0, 1024)
                if not typed or LEAVE in typed:
                    return
                console.sendall(typed)
            if console in readable:
                shown = console.recv(4096)
                if not shown:
                    return
                os.write(1, shown)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def main(arguments: list[str]) -> int:
    """One of the three."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    what, *rest = arguments
    try:
        start = time.monotonic()
        built = image.build()
        print(f"bench: the image is ready after {time.monotonic() - start:.0f} s", flush=True)
        if what == "image":
            return 0
        script = rest.pop(0) if what == "run" else ""
        with Bench(built, limit=SHELL_LIMIT) as bench:
            bench.boot(*(rest or ["sys-usb", "work"]))
            print(f"bench: {show_times(bench)}", flush=True)
            if what == "run":
                result = bench.run("dom0", Path(script).read_text(), limit=900)
                print(result.out, end="")
                print(result.err, end="", file=sys.stderr)
                return result.status  # and the logs stay
            print("bench: dom0's shell; `on GUEST COMMAND` runs one there; Ctrl-] ends all")
            talk(bench)
        shutil.rmtree(bench.folder)
    except (NotPossibleError, BenchError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
