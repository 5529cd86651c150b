"""The frames of a microphone's data channel, as plain data; `native/sound/frames.c` is their other
reader, and tests compare the two.

A frame is a header and what follows it, all little-endian: u16 type, u16 length of what follows,
u32 counter. The counter numbers the samples since START, and wraps: it is that of the frame's first
sample, so that a frame that was dropped shows as a gap. Anything that is not in `FORMS`, or that
the wrong side sends, ends the channel.
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import LocalProtocolError, RemoteProtocolError

#: Samples are s16le, one channel, so many a second, whatever the microphone has: its sound server
#: converts them.
RATE = 48_000
SAMPLE = 2  # bytes

HEADER = 8  # bytes

AUDIO, SILENCE, START, STOP = 1, 2, 3, 4

#: Twenty milliseconds: a tenth of the ring, and more than a sound server gives at once.
AUDIO_MAX = 1920  # bytes
SILENCE_MAX = RATE  # samples: one second

SOURCE, TARGET = "source", "target"


class Form(NamedTuple):
    """What a type of frame looks like: who sends it, and the bounds of its length in bytes, which
    is a multiple of `step`."""

    sender: str
    least: int
    most: int
    step: int


FORMS = {
    AUDIO: Form(SOURCE, SAMPLE, AUDIO_MAX, SAMPLE),
    SILENCE: Form(SOURCE, 4, 4, 4),
    START: Form(TARGET, 0, 0, 1),
    STOP: Form(TARGET, 0, 0, 1),
}


class Frame(NamedTuple):
    """`rest` is what follows the header: samples, or how many of them are silent. START and STOP
    have neither it nor a counter."""

    type: int
    counter: int = 0
    rest: bytes = b""

    @property
    def samples(self) -> int:
        """How many samples the frame stands for."""
        return _number(self.rest) if self.type == SILENCE else len(self.rest) // SAMPLE


def silence(counter: int, samples: int) -> Frame:
    """The frame that stands for so many silent samples."""
    return Frame(SILENCE, counter, samples.to_bytes(4, "little"))


def build(frame: Frame) -> bytes:
    """The bytes of a frame. LocalProtocolError if there is no such frame."""
    wrong = _wrong(frame.type, len(frame.rest), frame.counter, frame.rest)
    if wrong:
        raise LocalProtocolError(wrong)
    numbers = (frame.type, 2), (len(frame.rest), 2), (frame.counter, 4)
    return b"".join(number.to_bytes(size, "little") for number, size in numbers) + frame.rest


def take(untrusted: bytearray, sender: str) -> list[Frame]:
    """The whole frames that `untrusted` begins with, which are taken out of it; what is left is the
    beginning of another. RemoteProtocolError at the first bytes that no frame of `sender` has."""
    frames: list[Frame] = []
    at = 0
    while len(untrusted) - at >= HEADER:
        kind, length = _number(untrusted[at : at + 2]), _number(untrusted[at + 2 : at + 4])
        counter = _number(untrusted[at + 4 : at + 8])
        wrong = _wrong(kind, length, counter)
        if not wrong and FORMS[kind].sender != sender:
            wrong = f"a frame of the wrong side: type {kind}"
        if wrong:
            raise RemoteProtocolError(wrong)
        end = at + HEADER + length
        if len(untrusted) < end:
            break
        rest = bytes(untrusted[at + HEADER : end])
        wrong = _wrong(kind, length, counter, rest)
        if wrong:
            raise RemoteProtocolError(wrong)
        frames.append(Frame(kind, counter, rest))
        at = end
    del untrusted[:at]
    return frames


def _wrong(kind: int, length: int, counter: int, rest: bytes | None = None) -> str:
    """What is wrong with a header, and with what follows it if that is known; "": nothing."""
    form = FORMS.get(kind)
    if form is None:
        return f"an unknown frame: type {kind}"
    if not form.least <= length <= form.most or length % form.step:
        return f"a frame of type {kind} has an impossible length: {length}"
    if not 0 <= counter <= 0xFFFFFFFF or (counter and form.sender == TARGET):
        return f"a frame of type {kind} has an impossible counter: {counter}"
    if kind == SILENCE and rest is not None and not 1 <= _number(rest) <= SILENCE_MAX:
        return f"an impossible number of silent samples: {_number(rest)}"
    return ""


def _number(raw: bytes | bytearray) -> int:
    return int.from_bytes(raw, "little")
