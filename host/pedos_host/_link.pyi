"""Connections of whole messages for threads that each serve one; `native/host/link.c`."""

def accept(listener: int, /) -> tuple[int, int]:
    """The next connection to a listening socket, and the user of the process at its other end, as
    the kernel noted it then. OSError; blocks until there is one, but not other threads."""

def first(connection: int, limit: int, milliseconds: int, /) -> tuple[bytes, list[int]]:
    """A message, of which at most `limit` bytes count, with the descriptors that came with it: four
    at most, which no child inherits. BlockingIOError when none has come in that time; OSError."""

def close_all(descriptors: list[int], /) -> None:
    """Closes what has come with a message, which may wait, but not other threads."""

def connect(path: bytes, before: bytes, milliseconds: int, /) -> int:
    """A connection to the Unix socket (SOCK_STREAM) at a path that is no longer than an address, to
    which `before` has been sent: a blocking one without a time-out. OSError; TimeoutError when that
    takes longer; blocks, but not other threads."""

def attend(connection: int, process: int, limit: int, /) -> tuple[bool, bytes | None]:
    """Waits for a message, or until the process has ended of which that is the pidfd (-1: only for
    a message). Whether it has, and the message, if one has come: b"" at the end of the connection.
    OSError; blocks, but not other threads."""

def send(connection: int, message: bytes, passed: int = -1, /) -> None:
    """Sends a message, with a copy of a descriptor, without waiting. BlockingIOError if the other
    end has not read enough of what was sent before; other OSError."""
