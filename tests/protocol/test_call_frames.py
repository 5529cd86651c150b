"""The frames of calls, as the protocol has them. (tests/native/test_call_tables.py compares C.)"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol import call_frames as frames
from pedos_protocol.call_frames import CALLER, FORMS, SERVICE, Frame, Progress
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError

SIDES = (CALLER, SERVICE)
CALL = bytes(range(16))


def test_every_frame_of_the_forms_is_sent_in_some_state_by_who_may_send_it() -> None:
    for kind, form in FORMS.items():
        senders = {
            sender
            for sender, states in frames.TRANSITIONS.items()
            if any(kind in transitions for transitions in states.values())
        }
        assert senders == form.senders


def test_a_frame_that_is_none_is_not_built() -> None:
    for kind, rest in ((99, b""), (frames.STDOUT, b"x"), (frames.STDIN, b""), (frames.END, b"x")):
        with pytest.raises(LocalProtocolError):
            frames.build(Frame(kind, rest), CALLER)


@given(st.lists(st.sampled_from([b"", b"x", b"y" * 300]), max_size=5), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_the_bytes_come(
    rests: list[bytes], size: int
) -> None:
    sent = [Frame(frames.STDIN, rest) if rest else Frame(frames.STDIN_EOF) for rest in rests] + [
        frames.number(frames.SIGNAL, 15)
    ]
    stream = b"".join(frames.build(frame, CALLER) for frame in sent)
    waiting, got = bytearray(), []
    for at in range(0, len(stream), size):
        waiting += stream[at : at + size]
        got += frames.take(waiting, CALLER)
    assert got == sent
    assert not waiting


@given(st.binary(max_size=64), st.sampled_from(sorted(SIDES)))
def test_any_bytes_are_frames_or_one_error(content: bytes, sender: str) -> None:
    try:
        got = frames.take(bytearray(content), sender)
    except RemoteProtocolError:
        return
    assert all(sender in FORMS[frame.type].senders for frame in got)


def test_reserved_bits_are_refused() -> None:
    for place in (1, 2, 3):
        header = bytearray(frames.build(Frame(frames.ABORT), CALLER))
        header[place] = 1
        with pytest.raises(RemoteProtocolError, match="reserved"):
            frames.take(bytearray(header), CALLER)


def test_a_refused_step_changes_nothing() -> None:
    progress = Progress(CALL)
    progress.step(CALLER, Frame(frames.CALL, CALL))
    before: Any = (dict(progress.states), dict(progress.streams), dict(progress.credit))
    for frame in (Frame(frames.END), frames.number(frames.STDOUT_CREDIT, 1)):
        with pytest.raises(RemoteProtocolError):
            progress.step(CALLER, frame)
    assert (progress.states, progress.streams, progress.credit) == before


def test_the_diagrams_have_every_state() -> None:
    drawn = frames.diagram()
    assert drawn.count("stateDiagram-v2") == 3
    for state in (frames.START, frames.CLOSING, frames.UNWANTED, frames.OVER):
        assert state in drawn
