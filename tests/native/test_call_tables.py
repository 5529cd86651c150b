"""C and Python read the frames of calls alike, and every table is what the other has."""

from __future__ import annotations

import itertools
import random

import pytest
from pedos_protocol import call_frames as frames
from pedos_protocol.call_frames import CALLER, FORMS, SERVICE, Frame, Progress
from pedos_protocol.errors import RemoteProtocolError
from pedos_vchan._native import ffi, lib

SIDES = {CALLER: lib.PV_CALL_CALLER, SERVICE: lib.PV_CALL_SERVICE}
STATES = [frames.START, frames.OPEN, frames.CLOSING, frames.ENDED]
STREAM_STATES = [frames.OPEN, frames.FINISHED, frames.UNWANTED, frames.OVER]
STREAM_EVENTS = [frames.DATA, frames.EOF, frames.CLOSED, frames.CREDIT]
STREAMS = [frames.STDIN, frames.STDOUT, frames.STDERR]
CALL = bytes(range(16))


class InC:
    """`Progress` in C."""

    def __init__(self, call: bytes) -> None:
        self.native = ffi.new("struct pv_call_progress *")
        lib.pv_call_begin(self.native, call)

    def step(self, sender: str, frame: Frame) -> str:
        rest = (
            ffi.NULL
            if frames.STREAM_EVENTS.get(frame.type, (0, ""))[1] == frames.DATA
            else (frame.rest)
        )
        why = lib.pv_call_step(self.native, SIDES[sender], frame.type, len(frame.rest), rest)
        return ffi.string(why).decode() if why else ""


def in_python(progress: Progress, sender: str, frame: Frame) -> str:
    try:
        progress.step(sender, frame)
    except RemoteProtocolError as error:
        return str(error)
    return ""


def header_in_c(header: bytes, sender: str) -> str:
    why = lib.pv_call_header_read(header, SIDES[sender], ffi.new("int *"), ffi.new("uint32_t *"))
    return ffi.string(why).decode() if why else ""


def test_each_side_goes_through_the_same_states_in_c() -> None:
    for sender, (number, state), kind in itertools.product(SIDES, enumerate(STATES), FORMS):
        expected = frames.TRANSITIONS[sender][state].get(kind)
        got = lib.pv_call_next(SIDES[sender], number, kind)
        assert (STATES[got] if got >= 0 else None) == expected


def test_each_stream_goes_through_the_same_states_in_c() -> None:
    for (number, state), (event_number, event) in itertools.product(
        enumerate(STREAM_STATES), enumerate(STREAM_EVENTS)
    ):
        expected = frames.STREAM_TRANSITIONS[state].get(event)
        got = lib.pv_call_stream_next(number, event_number)
        assert (STREAM_STATES[got] if got >= 0 else None) == expected


def test_each_frame_means_the_same_in_c() -> None:
    for kind in FORMS:
        number = lib.pv_call_stream_of(kind)
        event = lib.pv_call_event_of(kind)
        expected = frames.STREAM_EVENTS.get(kind)
        assert ((STREAMS[number], STREAM_EVENTS[event]) if number >= 0 else None) == expected
    windows = [lib.pv_call_window(number) for number in range(3)]
    assert windows == [frames.WINDOWS[stream] for stream in STREAMS]


@pytest.mark.parametrize("sender", SIDES)
def test_every_header_near_a_bound_is_read_alike(sender: str) -> None:
    lengths = {0, 2**31, 2**32 - 1}
    for form in FORMS.values():
        for bound in (form.least, form.most):
            lengths |= {max(0, bound - 1), bound, bound + 1}
    for kind, length in itertools.product(range(256), lengths):
        header = bytes([kind, 0, 0, 0]) + length.to_bytes(4, "little")
        form = FORMS.get(kind)
        right = form is not None and sender in form.senders and form.least <= length <= form.most
        why = header_in_c(header, sender)
        assert (why == "") is right
        assert why == frames._wrong_header(header, sender)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_reserved_bits_are_refused(place: int) -> None:
    header = bytearray(frames.build(Frame(frames.ABORT), CALLER))
    header[place] = 1
    assert header_in_c(bytes(header), CALLER) == "a header with reserved bits"


def some_frame(dice: random.Random, progress: Progress, sender: str) -> Frame:
    """One that may come next, more often than not."""
    allowed = list(frames.TRANSITIONS[sender][progress.states[sender]]) or [frames.END]
    every = [kind for kind, form in FORMS.items() if sender in form.senders]
    kind = dice.choice(every if dice.random() < 0.2 else allowed)
    form = FORMS[kind]
    if kind in (frames.CALL, frames.STARTED):
        return Frame(kind, CALL if dice.random() < 0.9 else bytes(16))
    if kind == frames.EXIT:
        exit_kind = dice.randrange(8)
        least, most = frames.STATUSES.get(exit_kind, (0, 9))
        status = dice.choice([least - 1 if least else 0, least, most, most + 1])
        return frames.exit_frame(exit_kind, status, b"text" * dice.randrange(3))
    if form.least == form.most == 4:
        stream = frames.STREAM_EVENTS.get(kind, (None, ""))[0]
        owed = frames.WINDOWS[stream] - progress.credit[stream] if stream else 64
        return frames.number(
            kind, dice.choice([0, 1, owed, owed + 1, 255, 256, dice.randrange(70)])
        )
    if form.most == frames.DATA_MAX:
        credit = progress.credit[frames.STREAM_EVENTS[kind][0]]
        length = dice.choice([1, 5, credit, credit + 1, 30_000, frames.DATA_MAX])
        return Frame(kind, bytes(min(max(1, length), frames.DATA_MAX)))
    return Frame(kind)


def test_c_and_python_agree_on_every_step_of_many_calls() -> None:
    dice = random.Random(22)
    seen: dict[str, int] = {}
    over = 0
    for _ in range(1500):
        model, native = Progress(CALL), InC(CALL)
        for _ in range(60):
            sender = dice.choice([CALLER, SERVICE])
            frame = some_frame(dice, model, sender)
            why = in_python(model, sender, frame)
            assert native.step(sender, frame) == why
            seen[why] = seen.get(why, 0) + 1
        over += model.is_over
    assert over > 20
    assert set(seen) == {
        "",
        "a frame out of turn",
        "a stream goes on after its end",
        "more of a stream than there is credit for",
        "credit for what was never sent",
        "another call's id",
        "an answer to no call",
        "an impossible signal",
        "an impossible exit",
        "an exit before the streams' end",
        "an end before the exit",
    }
