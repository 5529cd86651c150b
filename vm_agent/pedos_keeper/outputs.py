"""What a program prints, as the keeper asks one: bounded in time and length."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Mapping, Sequence
from typing import Final

from pedos_keeper import spawning
from pedos_keeper.children import Children

# Bytes: a whole environment is a few KiB; a single variable may have 128 KiB.
OUTPUT_MAX: Final = 1 << 20
_CHUNK: Final = 65536


def output_of(
    children: Children,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    seconds: float,
    by: int = 1,
    path: str | None = None,
) -> bytes:
    """What the program writes into its descriptor `by`; all else that it says goes to the log.

    `by` is 1 to 3. `path` is the file, where that is not the first of `arguments`. OSError if it
    cannot be started, takes longer than `seconds`, or writes too much; then it has ended.
    """
    ours, theirs = os.pipe()
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            descriptors = [null, 2, 2]
            descriptors[by:] = [theirs, *descriptors[by + 1 :]]
            variables = spawning.lines_of(environment)
            child = children.start(path or arguments[0], arguments, variables, descriptors)
        finally:
            os.close(null)
            os.close(theirs)
        with child:
            try:
                return _read_all(ours, child.file, seconds)
            except BaseException:
                child.kill()
                raise
    finally:
        os.close(ours)


def _read_all(file: int, ended: int, seconds: float) -> bytes:
    """All until the end, or until the writer has `ended`: what it leaves running may have the file
    open, too."""
    os.set_blocking(file, False)
    poll = select.poll()
    poll.register(file, select.POLLIN)
    poll.register(ended, select.POLLIN)
    until = time.monotonic() + seconds
    raw = b""
    is_over = False
    while not is_over:
        left = until - time.monotonic()
        ready = dict(poll.poll(left * 1000)) if left > 0 else {}
        if not ready:
            raise TimeoutError(errno.ETIMEDOUT, f"it takes longer than {seconds:.0f} s")
        is_over = ended in ready
        with contextlib.suppress(BlockingIOError):
            while more := os.read(file, _CHUNK):
                raw += more
                if len(raw) > OUTPUT_MAX:
                    raise OSError(errno.EFBIG, f"it says more than {OUTPUT_MAX} bytes")
            is_over = True
    return raw
