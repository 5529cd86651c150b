from __future__ import annotations

import contextlib
import copy
import math
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol import codec
from pedos_protocol.codec import CONTAINERS_MAX, DEPTH_MAX, FRAME_MAX, HEADER_SIZE, ITEMS_MAX
from pedos_protocol.connection import Connection
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError
from pedos_protocol.events import Answer, ErrorAnswer, Event, Hello, Notice, Request

from . import strategies


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@given(st.lists(strategies.values, max_size=4).filter(lambda v: strategies.depth_of(v) <= 8))
def test_what_is_encoded_is_decoded_the_same(message: list[Any]) -> None:
    frame = codec.encode(message)
    assert frame[HEADER_SIZE:] == msgpack.packb(message)
    assert frame[:HEADER_SIZE] == (len(frame) - HEADER_SIZE).to_bytes(HEADER_SIZE, "little")
    assert codec.decode(frame[HEADER_SIZE:]) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_remote_error(payload: bytes) -> None:
    try:
        message = codec.decode(payload)
    except RemoteProtocolError:
        return
    assert codec.decode(codec.encode(message)[HEADER_SIZE:]) == message


@given(
    st.lists(strategies.values, max_size=4).filter(lambda v: strategies.depth_of(v) <= 8),
    st.integers(0, 10_000),
    st.integers(0, 255),
)
def test_a_message_with_one_byte_changed_is_a_message_or_a_remote_error(
    message: list[Any], where: int, what: int
) -> None:
    payload = bytearray(codec.encode(message)[HEADER_SIZE:])
    payload[where % len(payload)] = what
    try:
        changed = codec.decode(payload)
    except RemoteProtocolError:
        return
    codec.encode(changed)


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        ("", "no byte at all"),
        ("c0", "nil instead of an array"),
        ("80", "a map instead of an array"),
        ("a0", "text instead of an array"),
        ("9000", "a byte after the message"),
        ("91", "an array that ends early"),
        ("92 01", "an array that ends in the middle"),
        ("c1", "the byte that MessagePack never uses"),
        ("91 c1", "that byte within an array"),
        ("91 82 a1 61 01 a1 61 02", "a key twice"),
        ("91 81 81 a1 61 82 a1 61 01 a1 61 02 c0", "a map as a key"),
        ("91 81 01 02", "a number as a key"),
        ("91 81 c0 02", "nil as a key"),
        ("91 81 c4 01 61 02", "bytes as a key"),
        ("91 81 90 02", "an array as a key"),
        ("91 d4 01 00", "an extension of one byte"),
        ("91 c7 00 05", "an extension without a byte"),
        ("91 d6 ff 00 00 00 00", "a timestamp of 4 bytes"),
        ("91 d7 ff 00 00 00 00 00 00 00 00", "a timestamp of 8 bytes"),
        ("91 c7 0c ff" + "00" * 12, "a timestamp of 12 bytes"),
        ("91 a1 ff", "text that is not UTF-8"),
        ("91 a3 ed a0 80", "text that holds half of a surrogate pair"),
        ("91 a2 c0 80", "text that holds an overlong NUL"),
        ("91 cb 7f f0 00 00 00 00 00 00", "infinity"),
        ("91 cb 7f f8 00 00 00 00 00 00", "not a number"),
        ("91 ca ff 80 00 00", "minus infinity, in short"),
        ("91 dd ff ff ff ff", "an array of 2^32-1 entries"),
        ("91 df ff ff ff ff", "a map of 2^32-1 entries"),
        ("91 db ff ff ff ff", "text of 4 GiB"),
        ("91 c6 ff ff ff ff", "bytes of 4 GiB"),
        ("91" * DEPTH_MAX + "90", "one list too deep"),
        ("91" * 1023 + "90", "deeper than the library's own stack"),
        ("91" * 60_000 + "90", "deeper than any stack"),
        ("81 a0" * 20_000 + "c0", "maps deeper than any stack"),
        ("dc 04 01" + "c0" * (ITEMS_MAX + 1), "one entry too many"),
    ],
)
def test_what_is_refused(payload: str, what: str) -> None:
    with pytest.raises(RemoteProtocolError):
        codec.decode(bytes.fromhex(payload))


def test_the_deepest_and_the_longest_that_are_accepted() -> None:
    for message in (nested(DEPTH_MAX), [None] * ITEMS_MAX, [b"x" * (FRAME_MAX - 4)]):
        assert codec.decode(codec.encode(message)[HEADER_SIZE:]) == message


def many_containers(count: int, kind: type[list[Any]] | type[dict[str, Any]]) -> list[Any]:
    """A message of so many lists and maps, itself included."""
    full, rest = divmod(count - 1, ITEMS_MAX)
    sizes = [ITEMS_MAX] * full + [rest] * (rest > 0)
    return [[kind() for _ in range(size - 1)] for size in sizes]


@pytest.mark.parametrize("kind", [list, dict])
def test_a_frame_has_so_many_lists_and_maps_and_no_more(kind: Any) -> None:
    message = many_containers(CONTAINERS_MAX, kind)
    assert codec.decode(codec.encode(message)[HEADER_SIZE:]) == message

    message = many_containers(CONTAINERS_MAX + 1, kind)
    with pytest.raises(LocalProtocolError, match="lists and maps"):
        codec.encode(message)
    with pytest.raises(RemoteProtocolError):
        codec.decode(msgpack.packb(message))


def test_bytes_that_only_look_like_lists_and_maps_are_accepted() -> None:
    message = [b"\x90" * (FRAME_MAX - 16), "x", {}]
    assert codec.decode(codec.encode(message)[HEADER_SIZE:]) == message


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (nested(DEPTH_MAX + 1), "deep"),
        ([None] * (ITEMS_MAX + 1), "entries"),
        ([{str(n): n for n in range(ITEMS_MAX + 1)}], "entries"),
        ([b"x" * (FRAME_MAX - 3)], "more than 65536 bytes"),
        ([b"x" * 40_000, "x" * 40_000, object()], "bytes"),  # the first thing wrong ends the walk
        ([2**64], "64 bits"),
        ([-(2**63) - 1], "64 bits"),
        ([math.inf], "finite"),
        ([math.nan], "finite"),
        ([(1, 2)], "tuple"),
        ([{1, 2}], "set"),
        ([bytearray(b"x")], "bytearray"),
        ([{1: 2}], "not text"),
        ([{b"a": 2}], "not text"),
        (["\ud800"], "Unicode"),
        ([object()], "object"),
        ((1, 2), "a message is a list"),
    ],
)
def test_what_cannot_be_sent(message: Any, why: str) -> None:
    with pytest.raises(LocalProtocolError, match=why):
        codec.encode(message)


def test_a_list_that_holds_itself_cannot_be_sent() -> None:
    message: list[Any] = []
    message.append(message)
    with pytest.raises(LocalProtocolError, match="deep"):
        codec.encode(message)


@given(st.lists(strategies.values, max_size=4), st.binary(max_size=40), st.integers(0, 255))
def test_a_frame_that_is_refused_leaves_nothing_to_the_next_one(
    message: list[Any], more: bytes, changed: int
) -> None:
    good = [0, 7, "vm.list", {"deadline_ms": 1}]
    payload = msgpack.packb(message)
    for untrusted in (payload + more, payload[:-1], bytes([changed]) + payload[1:], more):
        with contextlib.suppress(RemoteProtocolError):
            codec.decode(untrusted)
        assert codec.decode(msgpack.packb(good)) == good


#: Values that MessagePack can say, of those that are not spoken here too.
loose = st.recursive(
    strategies.values | st.floats() | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary()),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(strategies.texts | st.binary() | st.integers(0, 9), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(loose, max_size=4))
def test_no_shortcut_lets_through_what_a_look_at_every_value_would_refuse(
    message: list[Any],
) -> None:
    """Short frames are accepted by their bytes alone, where these cannot hold what is refused."""
    payload = msgpack.packb(message)
    if len(payload) > FRAME_MAX:
        return
    try:
        accepted = codec.decode(payload)
    except RemoteProtocolError:
        with pytest.raises(LocalProtocolError):
            codec.encode(message)
    else:
        assert accepted == message
        codec.encode(accepted)


@pytest.mark.parametrize("depth", range(1, DEPTH_MAX + 2))
def test_the_depth_counts_in_frames_with_few_and_with_many_lists(depth: int) -> None:
    for beside in ([], [[]] * DEPTH_MAX):
        payload = msgpack.packb([nested(depth - 1), *beside] if depth > 1 else beside)
        if depth <= DEPTH_MAX:
            codec.decode(payload)
        else:
            with pytest.raises(RemoteProtocolError, match="deep"):
                codec.decode(payload)


def test_threads_read_without_disturbing_each_other() -> None:
    message = [0, 7, "vm.list", {"text": "x" * 1000, "maps": [{"a": 1}] * 500}]
    payload = codec.encode(message)[HEADER_SIZE:]
    start = threading.Barrier(4)
    same: list[bool] = []

    def read() -> None:
        start.wait()
        same.extend(codec.decode(payload) == message for _ in range(20))

    threads = [threading.Thread(target=read) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert same == [True] * 80


def test_too_large_a_frame_is_refused_by_its_length_alone() -> None:
    assert list(Connection().receive_data(FRAME_MAX.to_bytes(4, "little"))) == []
    for size in (FRAME_MAX + 1, 2**32 - 1):
        with pytest.raises(RemoteProtocolError, match="is announced"):
            next(Connection().receive_data(size.to_bytes(4, "little")))
    with pytest.raises(RemoteProtocolError, match="empty"):
        next(Connection().receive_data(bytes(4)))
    with pytest.raises(RemoteProtocolError, match="is the most"):
        codec.decode(bytes(FRAME_MAX + 1))


@pytest.mark.parametrize(
    ("payload", "kib"),
    [
        pytest.param("91 dd 00 00 04 00", 4, id="a list of 1024 entries without one"),
        pytest.param("91 df 00 00 04 00", 4, id="a map of 1024 entries without one"),
        pytest.param("91 dd ff ff ff ff", 4, id="a list of 2^32-1 entries"),
        pytest.param("91 df ff ff ff ff", 4, id="a map of 2^32-1 entries"),
        pytest.param("91 db ff ff ff ff", 4, id="a text of 4 GiB"),
        pytest.param("91 c6 ff ff ff ff", 4, id="bytes of 4 GiB"),
        pytest.param("dc 04 00" * 20_000, 80, id="lists of 1024 entries in each other"),
    ],
)
def test_a_header_costs_no_memory_for_what_it_only_announces(payload: str, kib: int) -> None:
    announces_much = bytes.fromhex(payload)
    refuse(codec.decode, announces_much)
    tracemalloc.start()
    try:
        refuse(codec.decode, announces_much)
        assert tracemalloc.get_traced_memory()[1] < kib * 1024
    finally:
        tracemalloc.stop()


def test_an_error_does_not_repeat_the_senders_bytes() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(b"\x91\xa4evil\xff")
    assert "evil" not in str(caught.value)


def left_in_memory(step: Callable[[], object]) -> int:
    """The bytes that a thousand of these steps leave."""
    step()  # what the first one leaves is kept for the next
    tracemalloc.start()
    try:
        for _ in range(1000):
            step()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


# A thousand of the smallest objects take 28 KB; other threads of pytest keep a few meanwhile.
LEFT_MAX = 16_384  # bytes


def refuse(step: Callable[[Any], object], value: Any) -> None:
    try:
        step(value)
    except (RemoteProtocolError, LocalProtocolError):
        return
    pytest.fail("it was accepted")


# Texts of a map's keys and values: long enough that Python keeps none of them.
KEY, OTHER = b"\xa3abc", b"\xa3abd"
TEXT = b"\xda\x03\xe8" + b"x" * 1000
ENTRY = KEY + TEXT


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xdc\x04\x00" * 1000, id="lists in each other"),
        pytest.param(b"\xdc\x00\x10" + TEXT * 15, id="a list that breaks off"),
        pytest.param(b"\x91" + TEXT + b"\x01", id="a list with a byte after it"),
        pytest.param(b"\x92" + TEXT + b"\xc1", id="a bad item"),
        pytest.param(b"\x91\x82" + ENTRY + b"\x01", id="a key that is no text"),
        pytest.param(b"\x91\x82" + ENTRY + b"\xa3\xff\xff\xff\xc0", id="a key that is not UTF-8"),
        pytest.param(b"\x91\x82" + ENTRY + OTHER + b"\xc1", id="a bad second value"),
        pytest.param(b"\x91\x82" + ENTRY + OTHER, id="a map that breaks off"),
        pytest.param(b"\x91\x82" + ENTRY * 2, id="a repeated key"),
        pytest.param(b"\x91\x81" + TEXT + b"\xc1", id="a bad value of a long key"),
    ],
)
def test_a_refused_payload_leaves_nothing_in_memory(payload: bytes) -> None:
    assert left_in_memory(lambda: refuse(codec.decode, payload)) < LEFT_MAX


HELLO = Hello((1, 1), "test")
CALL = Request(70_000, "vm.list", {"text": "x" * 1000}, 5000)


def talking() -> Connection:
    """An end with a request in flight each way."""
    end = Connection()
    for event in (HELLO, CALL):
        assert list(end.receive_data(end.send(event))) == [event]
    return end


def hear(frame: bytes) -> Event:
    return next(talking().receive_data(frame))


LATE = {"text": "x" * 1000, "deadline_ms": 90_000_000}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param([0, 70_000, "vm.list", LATE], id="a deadline too late"),
        pytest.param([0, 70_000, "vm.list", {"text": "x" * 1000}], id="no deadline"),
        pytest.param([0, 70_000, "Not!", {**LATE, "deadline_ms": 5000}], id="a wrong method"),
        pytest.param([0, 2**40, "vm.list", {**LATE, "deadline_ms": 5000}], id="a wrong id"),
        pytest.param([1, 2**40, None, {"text": "x" * 1000}], id="an answer with a wrong id"),
        pytest.param([1, 70_000, None, "x" * 1000], id="an answer that is no map"),
        pytest.param([2, "Not!", {"text": "x" * 1000}], id="a notice with a wrong method"),
        pytest.param([2, "vm.gone", "x" * 1000], id="a notice that is no map"),
    ],
)
def test_a_refused_event_leaves_nothing_in_memory(message: list[Any]) -> None:
    frame = codec.encode(message)
    assert left_in_memory(lambda: refuse(hear, frame)) < LEFT_MAX


@pytest.mark.parametrize(
    ("event_type", "values"),
    [
        (Request, [70_000, "Not!", {"text": "x" * 1000}, 5000]),
        (Request, [70_000, "vm.list", {"text": "x" * 1000}, 0]),
        (Request, [70_000, "vm.list", {"deadline_ms": "x" * 1000}, 5000]),
        (Answer, [2**40, {"text": "x" * 1000}]),
        (Notice, ["hello", {"text": "x" * 1000}]),
    ],
)
def test_an_event_that_may_not_be_made_leaves_nothing_in_memory(
    event_type: type[Event], values: list[Any]
) -> None:
    def make(values: list[Any]) -> None:
        event_type(*copy.deepcopy(values))

    assert left_in_memory(lambda: refuse(make, values)) < LEFT_MAX


ANSWERS = [
    Answer(70_000, {"text": "x" * 1000}),
    ErrorAnswer(70_000, "failed", "y" * 1000, {"text": "x" * 1000}),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=["answer", "error"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_events_that_were_said_and_heard_leave_nothing_in_memory(
    answer: Event, pieces: int
) -> None:
    def hear_in_pieces(end: Connection, frame: bytes) -> list[Event]:
        size = len(frame) // pieces + 1
        return [
            event
            for start in range(0, len(frame), size)
            for event in end.receive_data(frame[start : start + size])
        ]

    def talk() -> None:
        here, there = Connection(), Connection()
        for event in (HELLO, CALL, Notice("vm.gone", {"text": "x" * 1000})):
            assert hear_in_pieces(there, here.send(event)) == [event]
        assert hear_in_pieces(here, there.send(HELLO) + there.send(answer)) == [HELLO, answer]
        assert here.ours_in_flight == there.theirs_in_flight == 0

    assert left_in_memory(talk) < LEFT_MAX


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(codec.encode([7]), id="no message"),
        pytest.param(codec.encode([1, 70_000, {"text": "x" * 1000}, None]), id="a wrong error"),
        pytest.param(codec.encode([1, 70_001, None, {"text": "x" * 1000}]), id="no request"),
        pytest.param(Connection().send(HELLO), id="a second hello"),
        pytest.param(Connection().send(HELLO)[:-1] + b"\xc1", id="a broken frame"),
    ],
)
def test_a_connection_that_failed_leaves_nothing_in_memory(frame: bytes) -> None:
    def fail() -> None:
        end = talking()
        assert list(end.receive_data(frame[:5])) == []
        events = end.receive_data(frame[5:])
        for again in (events, end.receive_data(frame)):
            refuse(next, again)
        assert list(events) == []

    assert left_in_memory(fail) < LEFT_MAX


def test_a_connection_that_is_dropped_in_the_middle_leaves_nothing_in_memory() -> None:
    def drop() -> None:
        end = talking()
        frame = codec.encode([2, "vm.gone", {"text": "x" * 1000}])
        next(end.receive_data(frame + frame[:-1]))

    assert left_in_memory(drop) < LEFT_MAX


@pytest.mark.parametrize("value", [object(), 2**70, math.inf, b"x" * FRAME_MAX, nested(DEPTH_MAX)])
def test_what_cannot_be_sent_leaves_nothing_in_memory(value: object) -> None:
    bad = {"text": "x" * 1000, "bad": value}
    end = talking()
    for event in (Request(70_001, "a", bad, 5000), Answer(70_000, bad), Notice("a", bad)):
        assert left_in_memory(lambda event=event: refuse(end.send, event)) < LEFT_MAX
    assert left_in_memory(lambda: refuse(codec.encode, ["x" * 1000, bad])) < LEFT_MAX


def test_a_connection_that_refused_an_event_leaves_nothing_in_memory() -> None:
    def refuse_each() -> None:
        end = Connection()
        hello, call = Hello((1, 1), "test"), Request(int("70000"), "vm.list", {}, 5000)
        end.send(hello)
        end.send(call)
        for event in (hello, call, Answer(int("70001"), {})):  # ids that are not constants
            refuse(end.send, event)

    assert left_in_memory(refuse_each) < LEFT_MAX
