from typing import Any

#: Bytes of the length in front of a payload.
HEADER_SIZE: int
#: Bytes of payload.
FRAME_MAX: int
#: Lists and maps within each other, the outermost array included.
DEPTH_MAX: int
#: Entries of one list or one map.
ITEMS_MAX: int
#: Lists and maps in one frame, the outermost array included.
CONTAINERS_MAX: int

def encode(message: list[Any], /) -> bytes:
    """The whole frame, length included, that says `message`.

    LocalProtocolError if it cannot be said: too large, too deep, or of a type that is not sent
    (tuples too: what is written should be what is read).
    """

def decode(payload: bytes | bytearray | memoryview, /) -> list[Any]:
    """The message in `payload` (a frame without its length); RemoteProtocolError if there is none.

    Its values are of the types that `encode` takes, and otherwise still untrusted.
    """

def next_message(
    buffer: bytes | bytearray | memoryview, at: int, /
) -> tuple[list[Any], int] | None:
    """The message of the frame that begins `at` this place, as `decode` returns it, and where the
    frame ends; None if it is not whole.

    RemoteProtocolError also for a size that no frame may have, before any of it has come.
    """
