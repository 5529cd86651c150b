def accept_now(listener: int) -> int:
    """A connection to a listening socket that does not block, and does not block itself. OSError;
    BlockingIOError if there is none."""

def hang_up(connection: int, last: bytes = b"", /) -> bool:
    """Ends a connection of Unix sockets, after this message if there is one. True: it is closed,
    too; False: something is left in it, which to close may wait."""
