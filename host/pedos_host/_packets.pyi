from collections.abc import Sequence

def accept_now(listener: int) -> tuple[int, int]:
    """A connection to a listening socket that does not block, which does not block itself, and the
    user of the process at its other end, as the kernel noted it. OSError; BlockingIOError if there
    is none."""

def receive(connection: int, limit: int, /) -> tuple[bytes, list[int]]:
    """A message, of which at most `limit` bytes count, and all descriptors that came with it, which
    no child inherits. BlockingIOError if none is there; OSError."""

def send(connection: int, message: bytes, descriptors: Sequence[int], /) -> None:
    """Sends a message with copies of descriptors, without waiting. BlockingIOError if the other end
    has not read enough of what was sent before; OSError."""

def hang_up(connection: int, last: bytes = b"", /) -> bool:
    """Ends a connection of Unix sockets, after this message if there is one. True: it is closed,
    too; False: something is left in it, which to close may wait."""
