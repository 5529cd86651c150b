"""Frames: a length and one MessagePack array, read strictly.

    u32 little-endian: bytes of payload (1 to FRAME_MAX)
    payload:           one MessagePack array, nothing after it

Both directions check the same: a value that `encode` accepts, `decode` accepts, and the other
way round. MessagePack libraries take a good deal more than that by default; what they take and
this module refuses (repeated keys, keys that are not text, extension types, infinities, depth,
trailing bytes) is what two readers could read differently, or what costs the reader more than
it cost the sender.
"""

from __future__ import annotations

from struct import Struct

import msgpack  # type: ignore[import-not-found,import-untyped,unused-ignore]

from .errors import LocalProtocolError, RemoteProtocolError

TYPE_CHECKING = False  # as typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

#: Bytes of the length in front of a payload.
HEADER_SIZE = 4

#: Bytes of payload. A page of 128 devices fits; with frames alone a hundred hostile VMs can make
#: dom0 hold no more than some 7 MiB.
FRAME_MAX = 65536

#: Lists and maps within each other, the outermost array included. The deepest message
#: (answer, result, devices, device, attachments, attachment, options) has 7.
DEPTH_MAX = 8

#: Entries of one list or one map. The library makes room for what a header announces before it
#: has seen an entry, so without this cap 64 KiB of nested headers would cost 512 MiB for a moment.
ITEMS_MAX = 1024

#: Lists and maps in one frame, the outermost array included. They are what costs a reader most:
#: 60,000 empty ones in one frame held it up for 26 ms. The frame with the most of them that is
#: honest (a page of devices that are assigned to hundreds of VMs each) has some 5,600.
CONTAINERS_MAX = 6144

INT_MIN = -(2**63)  # what MessagePack can hold
INT_MAX = 2**64 - 1

_INFINITY = float("inf")
_size_at = Struct("<I").unpack_from

#: Types of values that need no look: msgpack refuses an integer of more than 64 bits by itself.
_PLAIN = frozenset((str, int, bytes, bool, type(None)))

# A payload's bytes are told apart by what may begin with them; text and numbers may hold all of
# these as well. Most frames hold so few of the first two kinds that their values need no look.
_CONTAINER = {*range(0x80, 0xA0), *range(0xDC, 0xE0)}  # a list or a map
_DOUBTFUL = {0xC4, 0xC5, 0xC6, 0xCA, 0xCB}  # bytes, which cannot be a key; a float
_HARMLESS = bytes({*range(256)} - _CONTAINER - _DOUBTFUL)
_MARKS = bytes(ord("c") if byte in _CONTAINER else 0xFF for byte in range(256))

# One for all: it is as cheap to use as it is dear to make. An error leaves it empty again.
_pack = msgpack.Packer(use_bin_type=True).pack

# What msgpack raises on hostile bytes: FormatError, StackError, ExtraData and UnicodeDecodeError
# are ValueErrors; OutOfData and BufferFull are UnpackExceptions; TypeError is a key that cannot
# be one; its pure Python code, which is used where the C code was not built, recurses.
_UNPACK_ERRORS = (
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
    msgpack.UnpackException,
)


def _marks(payload: bytes | bytearray) -> bytes | bytearray:
    """One `c` for each byte that may begin a list or a map, one 0xFF for each doubtful one."""
    return payload.translate(_MARKS, _HARMLESS)


def _containers(value: Any) -> int:
    """How many lists and maps `value` is made of."""
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return 0
    return 1 + sum(map(_containers, value))


def _wrong_with(value: Any, depth: int) -> str | None:
    """What is wrong with a list or map that `depth` others enclose; None if nothing is.

    One loop, not a function for each value: every frame that is said goes through it.
    """
    if depth == DEPTH_MAX:
        return f"it is more than {DEPTH_MAX} lists and maps deep"
    if len(value) > ITEMS_MAX:
        return f"a list or map has more than {ITEMS_MAX} entries"
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                return "a key of a map is not text"
        value = value.values()
    for item in value:
        kind = type(item)
        if kind in _PLAIN:
            continue
        wrong = (
            _wrong_with(item, depth + 1)
            if kind is dict or kind is list
            else _wrong_with_one(item, kind)
        )
        if wrong is not None:
            return wrong
    return None


def _wrong_with_one(value: Any, kind: type) -> str | None:
    if kind is float:
        return None if -_INFINITY < value < _INFINITY else "a number is not finite"
    return f"a value is a {kind.__name__}, which is not sent"


def encode(message: list[Any]) -> bytes:
    """The whole frame, length included, that says `message`.

    LocalProtocolError if it cannot be said: too large, too deep, or of a type that is not sent
    (tuples too: what is written should be what is read).
    """
    if type(message) is not list:
        raise LocalProtocolError(f"a message is a list, not a {type(message).__name__}")
    wrong = _wrong_with(message, 0)
    if wrong is not None:
        raise LocalProtocolError(f"this message cannot be sent: {wrong}")
    try:
        payload: bytes = _pack(message)
    except UnicodeEncodeError:
        raise LocalProtocolError("this message cannot be sent: a text is not Unicode") from None
    except OverflowError:
        raise LocalProtocolError(
            "this message cannot be sent: an integer has more than 64 bits"
        ) from None
    except ValueError as error:  # a buffer over the library's own limit
        raise LocalProtocolError(f"this message cannot be sent: {error}") from None
    size = len(payload)
    if size > FRAME_MAX:
        raise LocalProtocolError(
            f"this message cannot be sent: it has {size} bytes, and {FRAME_MAX} is the most"
        )
    if (
        size > CONTAINERS_MAX
        and len(_marks(payload)) > CONTAINERS_MAX
        and _containers(message) > CONTAINERS_MAX
    ):
        raise LocalProtocolError(
            f"this message cannot be sent: it has more than {CONTAINERS_MAX} lists and maps"
        )
    return size.to_bytes(HEADER_SIZE, "little") + payload


def frame_size(buffer: bytes | bytearray, at: int = 0) -> int:
    """Bytes of the whole frame that the 4 bytes `at` this place announce, they included.

    RemoteProtocolError if no frame may have that size; so nothing is ever allocated for it.
    """
    size: int = _size_at(buffer, at)[0]
    if size > FRAME_MAX:
        raise RemoteProtocolError(
            f"a frame of {size} bytes is announced, and {FRAME_MAX} is the most"
        )
    if size == 0:
        raise RemoteProtocolError("an empty frame is announced")
    return HEADER_SIZE + size


def _map_without_repeats(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    # msgpack's C code passes a list, its pure Python code an iterator. A frame may hold thousands
    # of maps: a copy of each list is a fifth of what reading them costs.
    untrusted_pairs = pairs if type(pairs) is list else _with_strict_keys(pairs)
    untrusted_map = dict(untrusted_pairs)
    if len(untrusted_map) != len(untrusted_pairs):
        raise ValueError("a map has a key twice")
    return untrusted_map


def _with_strict_keys(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    # The pure Python code does not look at keys where there is a hook for maps.
    untrusted_pairs = list(pairs)
    if not all(type(untrusted_key) is str for untrusted_key, _ in untrusted_pairs):
        raise ValueError("a key of a map is not text")
    return untrusted_pairs


class _Counter:
    """Hooks that read lists and maps, and refuse the first one too many.

    Both count for themselves: one call more would be a quarter of what a hook costs.
    """

    def __init__(self) -> None:
        self._left = CONTAINERS_MAX

    def list(self, items: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError  # decode() tells no more than the kind
        return items

    def map(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        self._left -= 1
        if self._left < 0:
            raise ValueError  # decode() tells no more than the kind
        return _map_without_repeats(pairs)


def _refuse_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not spoken here")


def _unpacker(list_hook: Any, map_hook: Any) -> Any:
    return msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        list_hook=list_hook,
        object_pairs_hook=map_hook,
        ext_hook=_refuse_extension,
        read_size=FRAME_MAX,
        max_buffer_size=FRAME_MAX,
        max_array_len=ITEMS_MAX,
        max_map_len=ITEMS_MAX,
        max_ext_len=0,
    )


# Empty ones, at most one for each thread that has read at the same time as others: half of what a
# short frame costs is to make one. One that met an error is not used again.
_idle_unpackers: list[Any] = []


def decode(payload: bytes | bytearray) -> list[Any]:
    """The message in `payload` (a frame without its length); RemoteProtocolError if there is none.

    Its values are of the types that `encode` takes, and otherwise still untrusted.
    """
    if len(payload) > FRAME_MAX:
        raise RemoteProtocolError(
            f"a payload has {len(payload)} bytes, and {FRAME_MAX} is the most"
        )
    marks = _marks(payload)
    if len(marks) > CONTAINERS_MAX:
        counter = _Counter()
        unpacker = _unpacker(counter.list, counter.map)
    else:
        try:
            unpacker = _idle_unpackers.pop()
        except IndexError:
            unpacker = _unpacker(None, _map_without_repeats)
    try:
        # msgpack's C code never gives back what it has built of a payload that breaks off: up to
        # 8 MB for a few thousand bytes. The first pass builds nothing, and finds what is not whole.
        end = unpacker.tell() + len(payload)
        unpacker.feed(payload)
        unpacker.skip()
        if unpacker.tell() != end:
            raise msgpack.ExtraData(None, b"")
        unpacker.feed(payload)
        untrusted = unpacker.unpack()
    except _UNPACK_ERRORS as error:
        # The library's words may hold the sender's bytes: only the kind of error is passed on.
        raise RemoteProtocolError(
            f"a frame is not readable MessagePack ({type(error).__name__})"
        ) from None
    if len(marks) <= CONTAINERS_MAX:
        _idle_unpackers.append(unpacker)
    if type(untrusted) is not list:
        raise RemoteProtocolError(f"a frame holds a {type(untrusted).__name__}, not an array")
    # So few lists and maps cannot be too deep, and without doubtful bytes no value needs a look.
    if len(marks) > DEPTH_MAX or not marks.isascii():
        wrong = _wrong_with(untrusted, 0)
        if wrong is not None:
            raise RemoteProtocolError(f"a frame cannot be accepted: {wrong}")
    return untrusted
