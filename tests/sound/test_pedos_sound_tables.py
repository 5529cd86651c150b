"""The frames and messages of sound in Python: what one side builds the other parses, and nothing
else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol import sound_frames as frames
from pedos_protocol import sound_link as link
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError

from .strategies import messages, whole_frames

DEVICE = link.Device("mic", "default", "Built-in", True)


def sender_of(message: link.Message) -> str:
    return link.FORMS[link.TYPES[type(message)]][0]


@given(messages)
def test_a_message_is_parsed_as_it_was_built(message: link.Message) -> None:
    raw = link.build(message)
    assert link.parse(raw, sender_of(message)) == message
    other = link.AGENT if sender_of(message) == link.SESSION else link.SESSION
    with pytest.raises(RemoteProtocolError):
        link.parse(raw, other)


@given(messages, st.integers(1))
def test_a_message_that_is_cut_or_has_more_is_refused(message: link.Message, count: int) -> None:
    raw = link.build(message)
    for wrong in (raw[: -1 - count % len(raw)], raw + b"\0"):
        with pytest.raises(RemoteProtocolError):
            link.parse(wrong, sender_of(message))


@given(st.binary(max_size=64), st.sampled_from([link.AGENT, link.SESSION]))
def test_bytes_are_a_message_that_builds_the_same_or_are_refused(raw: bytes, sender: str) -> None:
    try:
        message = link.parse(raw, sender)
    except RemoteProtocolError:
        return
    assert link.build(message) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"\x02\x01\x00\n",  # a control character
        b"\x02\x02\x00\xc2\x85",  # another one
        b"\x02\x02\x00\xc0\x80",  # a long form of zero
        b"\x02\x03\x00\xed\xa0\x80",  # a half of a pair
        b"\x02\x01\x01" + b"a" * 257,
        b"\x06\x01\x00\x00\x00\x02",  # a flag
        b"\x03\x41\x00" + b"\x01\x00a\x00\x00\x00\x00\x00" * 65,
        b"\x03\x02\x00" + b"\x01\x00a\x00\x00\x00\x00\x00" * 2,
    ],
)
def test_what_is_no_message_of_a_session_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        link.parse(raw, link.SESSION)


@pytest.mark.parametrize(
    "message",
    [
        link.Server("a\nb"),
        link.Server("\ud800"),
        link.Server("ä" * 129),
        link.Hello(-1, ""),
        link.Hello(2**16, ""),
        link.Borrow(1, "1work", "mic", ""),
        link.Borrow(1, "work", ".mic", ""),
        link.Devices((DEVICE, DEVICE)),
        link.Devices(tuple(DEVICE._replace(id=f"d{n}") for n in range(65))),
        link.Devices((DEVICE._replace(identity="ä"),)),
    ],
)
def test_what_may_not_be_said_is_not_built(message: link.Message) -> None:
    with pytest.raises(LocalProtocolError):
        link.build(message)


def test_the_longest_list_of_devices_fits_a_datagram() -> None:
    longest = [
        link.Device(f"{n:02}".ljust(64, "x"), "i" * link.IDENTITY_MAX, "d" * 128, False)
        for n in range(link.DEVICES_MAX)
    ]
    raw = link.build(link.Devices(tuple(longest)))
    assert 20_000 < len(raw) <= link.DATAGRAM_MAX


@given(st.lists(whole_frames, max_size=4), st.integers(0))
def test_frames_are_taken_as_they_were_built_in_any_pieces(
    said: list[frames.Frame], cut: int
) -> None:
    for sender in (frames.SOURCE, frames.TARGET):
        sent = [frame for frame in said if frames.FORMS[frame.type].sender == sender]
        raw = b"".join(map(frames.build, sent))
        place = cut % (len(raw) + 1)
        buffer = bytearray(raw[:place])
        heard = frames.take(buffer, sender)
        buffer += raw[place:]
        heard += frames.take(buffer, sender)
        assert (heard, buffer) == (sent, b"")


def header(kind: int, length: int, counter: int = 0) -> bytes:
    return kind.to_bytes(2, "little") + length.to_bytes(2, "little") + counter.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("sender", "raw"),
    [
        (frames.SOURCE, header(0, 0)),
        (frames.SOURCE, header(5, 0)),
        (frames.SOURCE, header(frames.START, 0)),
        (frames.SOURCE, header(frames.AUDIO, 0)),
        (frames.SOURCE, header(frames.AUDIO, 3)),
        (frames.SOURCE, header(frames.AUDIO, frames.AUDIO_MAX + 2)),
        (frames.SOURCE, header(frames.SILENCE, 2)),
        (frames.SOURCE, header(frames.SILENCE, 4) + bytes(4)),
        (frames.SOURCE, header(frames.SILENCE, 4) + (48_001).to_bytes(4, "little")),
        (frames.TARGET, header(frames.AUDIO, 2) + b"ab"),
        (frames.TARGET, header(frames.START, 1) + b"a"),
        (frames.TARGET, header(frames.STOP, 0, counter=1)),
    ],
)
def test_what_is_no_frame_of_its_side_is_refused(sender: str, raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        frames.take(bytearray(raw), sender)


def test_a_frame_counts_its_samples() -> None:
    assert frames.silence(7, 480).samples == 480
    assert frames.Frame(frames.AUDIO, 0, b"abcd").samples == 2
    assert frames.Frame(frames.START).samples == 0
    for wrong in (frames.silence(0, 0), frames.Frame(frames.AUDIO), frames.Frame(9)):
        with pytest.raises(LocalProtocolError):
            frames.build(wrong)
