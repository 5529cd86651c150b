"""The frames of a call's data channel, as plain data; `native/csrc/call_frames.c` is their other
reader, and tests compare the two.

A frame is a header and what follows it, all little-endian: u8 type, u8 and u16 that are 0, u32
length of what follows. What is not in `FORMS`, comes from the wrong side, or out of turn, ends the
channel.
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import LocalProtocolError, RemoteProtocolError

CALLER, SERVICE = "caller", "service"

HEADER = 8  # bytes
ID = 16  # bytes of a call's id
#: As much as is read at once (CHUNK of csrc/pump.c): small enough that the other end begins with
#: the first part while the rest still arrives.
DATA_MAX = 128 * 1024  # bytes
TEXT_MAX = 200  # bytes of an EXIT's text: a line for a person

#: Bytes of a stream that may be under way. Each end can hold so much of a stream that is blocked,
#: and so always read what stands behind it. Four times the usual ring: then the ring is the bound
#: of a stream that flows, and credit, which wakes the other end, is rare.
WINDOW = 512 * 1024
#: What a program may write to stderr while nobody reads it: as much as to a pipe.
STDERR_WINDOW = 64 * 1024

SIGNAL_MAX = 64  # Linux, signal(7)

# From the caller, from both, from the service.
CALL, STDIN, STDIN_EOF, STDOUT_CLOSED, STDOUT_CREDIT, STDERR_CREDIT, SIGNAL, ABORT = range(1, 9)
END = 9
STARTED, STDOUT, STDOUT_EOF, STDERR, STDERR_EOF, STDIN_CLOSED, STDIN_CREDIT = range(17, 24)
MAIN_EXITED, EXIT = 24, 25


class Form(NamedTuple):
    """What a type of frame looks like: who sends it, and the bounds of its length in bytes."""

    name: str
    senders: frozenset[str]
    least: int
    most: int


_CALLER, _SERVICE = frozenset({CALLER}), frozenset({SERVICE})

FORMS = {
    CALL: Form("CALL", _CALLER, ID, ID),  # the call's id; the first frame of all
    STDIN: Form("STDIN", _CALLER, 1, DATA_MAX),
    STDIN_EOF: Form("STDIN_EOF", _CALLER, 0, 0),
    STDOUT_CLOSED: Form("STDOUT_CLOSED", _CALLER, 0, 0),  # nobody reads it any more
    STDOUT_CREDIT: Form("STDOUT_CREDIT", _CALLER, 4, 4),  # u32: so many bytes more may come
    STDERR_CREDIT: Form("STDERR_CREDIT", _CALLER, 4, 4),
    SIGNAL: Form("SIGNAL", _CALLER, 4, 4),  # u32: its number
    ABORT: Form("ABORT", _CALLER, 0, 0),  # the calling program is gone
    END: Form("END", _CALLER | _SERVICE, 0, 0),  # nothing of this call follows
    STARTED: Form("STARTED", _SERVICE, ID, ID),  # the call's id again
    STDOUT: Form("STDOUT", _SERVICE, 1, DATA_MAX),
    STDOUT_EOF: Form("STDOUT_EOF", _SERVICE, 0, 0),
    STDERR: Form("STDERR", _SERVICE, 1, DATA_MAX),
    STDERR_EOF: Form("STDERR_EOF", _SERVICE, 0, 0),
    STDIN_CLOSED: Form("STDIN_CLOSED", _SERVICE, 0, 0),
    STDIN_CREDIT: Form("STDIN_CREDIT", _SERVICE, 4, 4),
    # u32 status: the service's main process has exited, and another one still holds stdout.
    MAIN_EXITED: Form("MAIN_EXITED", _SERVICE, 4, 4),
    EXIT: Form("EXIT", _SERVICE, 8, 8 + TEXT_MAX),  # u32 kind, u32 status, text
}

#: How a call ends: the kinds of EXIT, and the statuses that each may have.
EXITED, SIGNALLED, PROBLEM, REFUSED, NOT_FOUND, ABORTED = range(1, 7)
STATUSES = {
    EXITED: (0, 255),
    SIGNALLED: (1, SIGNAL_MAX),  # the signal
    PROBLEM: (125, 125),
    REFUSED: (126, 126),
    NOT_FOUND: (127, 127),
    ABORTED: (125, 125),
}

# The theory
# ----------
# A call is two one-way conversations, of the caller's side and of the service's. Each goes through
# the states below by itself.
#
#   START   The side has sent nothing. The caller begins; the service answers when it has started,
#           or with EXIT if it never will: then no stream was opened, and none has to end.
#   OPEN    Streams go on.
#   CLOSING The last word was said (EXIT, ABORT).
#   ENDED   END was sent. The channel belongs to no call again once both have sent it. The caller
#           sends END when it has EXIT and has ended its stdin, or after ABORT.
#
# Beside them stand three streams. An end that wants no more of a stream says so (CLOSED); what is
# on its way then is thrown away, and the stream still ends with its EOF. Frames of the two sides
# cross each other, so a side has to expect CLOSED and credit for a stream that it has ended.
#
#   OPEN      Data flows, as far as there is credit.
#   FINISHED  EOF was sent.
#   UNWANTED  CLOSED was sent.
#   OVER      Both were.
#
# Each stream has ended when EXIT is sent (stdin may be UNWANTED).

START, OPEN, CLOSING, ENDED = "START", "OPEN", "CLOSING", "ENDED"

TRANSITIONS: dict[str, dict[str, dict[int, str]]] = {
    CALLER: {
        START: {
            CALL: OPEN,
        },
        OPEN: {
            STDIN: OPEN,
            STDIN_EOF: OPEN,
            STDOUT_CLOSED: OPEN,
            STDOUT_CREDIT: OPEN,
            STDERR_CREDIT: OPEN,
            SIGNAL: OPEN,
            ABORT: CLOSING,
            END: ENDED,
        },
        CLOSING: {
            END: ENDED,
        },
        ENDED: {},
    },
    SERVICE: {
        START: {
            STARTED: OPEN,
            EXIT: CLOSING,
        },
        OPEN: {
            STDOUT: OPEN,
            STDOUT_EOF: OPEN,
            STDERR: OPEN,
            STDERR_EOF: OPEN,
            STDIN_CLOSED: OPEN,
            STDIN_CREDIT: OPEN,
            MAIN_EXITED: OPEN,
            EXIT: CLOSING,
        },
        CLOSING: {
            END: ENDED,
        },
        ENDED: {},
    },
}

FINISHED, UNWANTED, OVER = "FINISHED", "UNWANTED", "OVER"

DATA, EOF, CLOSED, CREDIT = "DATA", "EOF", "CLOSED", "CREDIT"

STREAM_TRANSITIONS: dict[str, dict[str, str]] = {
    OPEN: {
        DATA: OPEN,
        CREDIT: OPEN,
        EOF: FINISHED,
        CLOSED: UNWANTED,
    },
    FINISHED: {
        CREDIT: FINISHED,
        CLOSED: OVER,
    },
    UNWANTED: {
        DATA: UNWANTED,
        EOF: OVER,
    },
    OVER: {},
}

#: What each frame means to which stream.
STREAM_EVENTS = {
    STDIN: (STDIN, DATA),
    STDIN_EOF: (STDIN, EOF),
    STDIN_CLOSED: (STDIN, CLOSED),
    STDIN_CREDIT: (STDIN, CREDIT),
    STDOUT: (STDOUT, DATA),
    STDOUT_EOF: (STDOUT, EOF),
    STDOUT_CLOSED: (STDOUT, CLOSED),
    STDOUT_CREDIT: (STDOUT, CREDIT),
    STDERR: (STDERR, DATA),
    STDERR_EOF: (STDERR, EOF),
    STDERR_CREDIT: (STDERR, CREDIT),
}

WINDOWS = {STDIN: WINDOW, STDOUT: WINDOW, STDERR: STDERR_WINDOW}


class Frame(NamedTuple):
    """One frame; `rest` is what follows the header."""

    type: int
    rest: bytes = b""

    @property
    def number(self) -> int:
        """The first number of what follows: credit, signal, status, or EXIT's kind."""
        return _number(self.rest[:4])


def number(kind: int, value: int) -> Frame:
    """The frame of a type that has a number."""
    return Frame(kind, value.to_bytes(4, "little"))


def exit_frame(kind: int, status: int, text: bytes = b"") -> Frame:
    """EXIT."""
    return Frame(EXIT, kind.to_bytes(4, "little") + status.to_bytes(4, "little") + text)


def build(frame: Frame, sender: str) -> bytes:
    """The bytes of a frame. LocalProtocolError if `sender` has no such frame."""
    header = bytes([frame.type, 0, 0, 0]) + len(frame.rest).to_bytes(4, "little")
    if wrong := _wrong_header(header, sender):
        raise LocalProtocolError(wrong)
    return header + frame.rest


def take(untrusted: bytearray, sender: str) -> list[Frame]:
    """The whole frames that `untrusted` begins with, which are taken out of it; what is left is the
    beginning of another. RemoteProtocolError at the first bytes that no frame of `sender` has."""
    frames: list[Frame] = []
    while len(untrusted) >= HEADER:
        if wrong := _wrong_header(untrusted, sender):
            raise RemoteProtocolError(wrong)
        end = HEADER + _number(untrusted[4:HEADER])
        if len(untrusted) < end:
            break
        frames.append(Frame(untrusted[0], bytes(untrusted[HEADER:end])))
        del untrusted[:end]
    return frames


def _wrong_header(header: bytes | bytearray, sender: str) -> str:
    """What is wrong with it; "": nothing."""
    form = FORMS.get(header[0])
    if form is None:
        return "an unknown frame"
    if any(header[1:4]):
        return "a header with reserved bits"
    if sender not in form.senders:
        return "a frame of the wrong side"
    if not form.least <= _number(header[4:HEADER]) <= form.most:
        return "a frame with an impossible length"
    return ""


class Progress:
    """How far a call has come, as one end of it sees it: in the order in which that end has sent
    and received frames. For frames whose form is right (`build`, `take`)."""

    def __init__(self, call: bytes) -> None:
        self._call = call
        self.states = {CALLER: START, SERVICE: START}
        self.streams = dict.fromkeys(WINDOWS, OPEN)
        self.credit = dict(WINDOWS)  # bytes that may still be sent
        self._main_exited = False

    @property
    def is_over(self) -> bool:
        """Whether both sides have sent END."""
        return set(self.states.values()) == {ENDED}

    def step(self, sender: str, frame: Frame) -> None:
        """The next frame. RemoteProtocolError if it may not come now; then nothing has changed."""
        if wrong := self._wrong(sender, frame):
            raise RemoteProtocolError(wrong)
        self.states[sender] = TRANSITIONS[sender][self.states[sender]][frame.type]
        self._main_exited |= frame.type == MAIN_EXITED
        if frame.type in STREAM_EVENTS:
            stream, event = STREAM_EVENTS[frame.type]
            self.streams[stream] = STREAM_TRANSITIONS[self.streams[stream]][event]
            if event == DATA:
                self.credit[stream] -= len(frame.rest)
            elif event == CREDIT:
                self.credit[stream] += frame.number

    def _wrong(self, sender: str, frame: Frame) -> str:
        if frame.type not in TRANSITIONS[sender][self.states[sender]]:
            return "a frame out of turn"
        if frame.type in STREAM_EVENTS:
            return self._wrong_in_stream(frame, *STREAM_EVENTS[frame.type])
        if frame.type in (CALL, STARTED) and frame.rest != self._call:
            return "another call's id"
        if sender == SERVICE and self.states[CALLER] == START:
            return "an answer to no call"
        return self._wrong_end(sender) if frame.type == END else self._wrong_number(frame)

    def _wrong_number(self, frame: Frame) -> str:
        if frame.type == SIGNAL and not 1 <= frame.number <= SIGNAL_MAX:
            return "an impossible signal"
        if frame.type == MAIN_EXITED and (self._main_exited or frame.number > 255):
            return "an impossible exit"
        return self._wrong_exit(frame) if frame.type == EXIT else ""

    def _wrong_in_stream(self, frame: Frame, stream: int, event: str) -> str:
        if event not in STREAM_TRANSITIONS[self.streams[stream]]:
            return "a stream goes on after its end"
        if event == DATA and len(frame.rest) > self.credit[stream]:
            return "more of a stream than there is credit for"
        if event == CREDIT and not 1 <= frame.number <= WINDOWS[stream] - self.credit[stream]:
            return "credit for what was never sent"
        return ""

    def _wrong_exit(self, frame: Frame) -> str:
        least, most = STATUSES.get(frame.number, (1, 0))
        if not least <= _number(frame.rest[4:8]) <= most:
            return "an impossible exit"
        if self.states[SERVICE] == START:
            return ""
        ended = {self.streams[STDOUT], self.streams[STDERR]} <= {FINISHED, OVER}
        return "" if ended and self.streams[STDIN] != OPEN else "an exit before the streams' end"

    def _wrong_end(self, sender: str) -> str:
        if sender == SERVICE or self.states[CALLER] == CLOSING:
            return ""
        told = self.states[SERVICE] in (CLOSING, ENDED)
        return "" if told and self.streams[STDIN] in (FINISHED, OVER) else "an end before the exit"


def diagram() -> str:
    """`TRANSITIONS` and `STREAM_TRANSITIONS` as Mermaid state diagrams, for the documentation."""
    charts = []
    for title, table in (
        *((f"{side}'s side", _named(TRANSITIONS[side])) for side in TRANSITIONS),
        ("a stream", STREAM_TRANSITIONS),
    ):
        lines = ["stateDiagram-v2", f"    %% {title}", f"    [*] --> {next(iter(table))}"]
        for state, transitions in table.items():
            by_target: dict[str, list[str]] = {}
            for event, target in transitions.items():
                by_target.setdefault(target, []).append(event)
            for target, events in by_target.items():
                lines.append(f"    {state} --> {target}: {', '.join(events)}")
        charts.append("\n".join(lines) + "\n")
    return "\n".join(charts)


def _named(table: dict[str, dict[int, str]]) -> dict[str, dict[str, str]]:
    return {
        state: {FORMS[kind].name: target for kind, target in transitions.items()}
        for state, transitions in table.items()
    }


def _number(raw: bytes | bytearray) -> int:
    return int.from_bytes(raw, "little")
