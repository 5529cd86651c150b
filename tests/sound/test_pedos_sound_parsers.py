"""pedos-sound's C and the agent's Python say the same to the same bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_protocol import names
from pedos_protocol import sound_frames as frames
from pedos_protocol import sound_link as link
from pedos_protocol.errors import RemoteProtocolError

from tests.hostile import build

from .strategies import messages, whole_frames

SESSION, AGENT, SOURCE, TARGET, LINE, WORD = range(6)
SENDERS = {SESSION: link.SESSION, AGENT: link.AGENT, SOURCE: frames.SOURCE, TARGET: frames.TARGET}
MALFORMED = -1


class Parsers:
    """The C, under the sanitizers."""

    def __init__(self, program: Path) -> None:
        self._child = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, what: int, raw: bytes) -> tuple[int, bytes]:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(bytes([what]) + len(raw).to_bytes(2, "little") + raw)
        self._child.stdin.flush()
        taken = int.from_bytes(self._child.stdout.read(4), "little", signed=True)
        return taken, self._child.stdout.read(max(0, taken))

    def end(self) -> int:
        self._child.communicate()
        return self._child.returncode


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parsers]:
    asked = Parsers(build.sound_answers(tmp_path_factory.mktemp("answers")))
    yield asked
    assert asked.end() == 0


def python_of_message(raw: bytes, sender: str) -> tuple[int, bytes]:
    try:
        again = link.build(link.parse(raw, sender))
    except RemoteProtocolError:
        return MALFORMED, b""
    return len(again), again


def python_of_frame(raw: bytes, sender: str) -> tuple[int, bytes]:
    """Of the first frame alone."""
    for count in range(len(raw) + 1):
        try:
            taken = frames.take(bytearray(raw[:count]), sender)
        except RemoteProtocolError:
            return MALFORMED, b""
        if taken:
            again = frames.build(taken[0])
            return len(again), again
    return 0, b""


@given(messages, st.sampled_from([SESSION, AGENT]))
def test_both_read_what_python_builds(parsers: Parsers, message: link.Message, sender: int) -> None:
    raw = link.build(message)
    expected = python_of_message(raw, SENDERS[sender])
    assert parsers.ask(sender, raw) == expected
    assert expected[1] in (raw, b"")


@given(st.data(), messages, st.sampled_from([SESSION, AGENT]))
@settings(max_examples=300)
def test_both_say_the_same_to_a_message_with_other_bytes_in_it(
    parsers: Parsers, data: st.DataObject, message: link.Message, sender: int
) -> None:
    raw = bytearray(link.build(message))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    assert parsers.ask(sender, changed) == python_of_message(changed, SENDERS[sender])


@given(st.binary(max_size=40), st.sampled_from([SESSION, AGENT]))
def test_both_say_the_same_to_any_bytes(parsers: Parsers, raw: bytes, sender: int) -> None:
    assert parsers.ask(sender, raw) == python_of_message(raw, SENDERS[sender])


@given(st.data(), whole_frames, st.sampled_from([SOURCE, TARGET]))
@settings(max_examples=300)
def test_both_say_the_same_to_a_frame_with_other_bytes_in_it(
    parsers: Parsers, data: st.DataObject, frame: frames.Frame, sender: int
) -> None:
    raw = bytearray(frames.build(frame))
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, min(11, len(raw) - 1)))
        raw[place] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    assert parsers.ask(sender, cut) == python_of_frame(cut, SENDERS[sender])


@given(st.binary(max_size=600).filter(lambda raw: 0 not in raw))
def test_what_devices_say_of_themselves_becomes_harmless(parsers: Parsers, raw: bytes) -> None:
    _, line = parsers.ask(LINE, raw)
    text = line.decode()
    assert len(line) <= names.DESCRIPTION_MAX
    assert link.build(link.Server(text))
    assert parsers.ask(LINE, line)[1] == line
    assert names.is_device_id(parsers.ask(WORD, raw)[1].decode())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"Built-in Audio", b"Built-in Audio"),
        ("Micrófono".encode(), "Micrófono".encode()),
        (b"a\x1b[2Jb", b"a_[2Jb"),
        (b"a\xff\xc0\x80b", b"a___b"),
        (b"\xc2\x85", b"_"),
        ("ä".encode() * 65, "ä".encode() * 64),
        (b"x" + "ä".encode() * 64, b"x" + "ä".encode() * 63),
    ],
)
def test_a_description_keeps_what_a_person_can_read(
    parsers: Parsers, said: bytes, shown: bytes
) -> None:
    assert parsers.ask(LINE, said)[1] == shown


def test_names_that_are_changed_or_cut_stay_different(parsers: Parsers) -> None:
    said = [b"usb.x y", b"usb.x_y", b"usb.x+y", b"a" * 64, b"a" * 65, b"a" * 66, b"-a", b".a", b""]
    ids = [parsers.ask(WORD, each)[1].decode() for each in said]
    assert len(set(ids)) == len(said)
    assert all(map(names.is_device_id, ids))
    assert ids[1] == "usb.x_y" and ids[3] == "a" * 64
