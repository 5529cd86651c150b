"""The messages between programs that call services and their agent, in Python and in C."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from pedos_protocol import call_link
from pedos_protocol.call_link import (
    AGENT,
    KINDS,
    PROGRAM,
    Call,
    Ended,
    Message,
    Signal,
    Started,
    build,
    exit_status,
    fitting,
    parse,
)
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError

from tests.compiled import compile_c

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "native" / "call"

LINES = st.text(st.characters(blacklist_categories=["Cc", "Cs"]), max_size=20)
NUMBERS = st.integers(0, 255)
ENDS = st.builds(Ended, st.sampled_from(KINDS), NUMBERS, NUMBERS, LINES, LINES, LINES, LINES)
ANSWERS = st.one_of(st.builds(Started, LINES, LINES), ENDS)
QUESTIONS = st.one_of(
    st.builds(
        Call, st.integers(0, 0xFFFF), st.booleans(), LINES, LINES, LINES, LINES, st.booleans()
    ),
    st.builds(Signal, NUMBERS),
)


@given(ANSWERS)
def test_what_an_agent_says_arrives(message: Message) -> None:
    assert parse(build(message), AGENT) == message


@given(QUESTIONS)
def test_what_a_program_says_arrives(message: Message) -> None:
    assert parse(build(message), PROGRAM) == message


@given(st.one_of(ANSWERS, QUESTIONS), st.sampled_from([AGENT, PROGRAM]))
def test_nobody_may_say_what_is_the_other_s(message: Message, sender: str) -> None:
    is_theirs = isinstance(message, (Started, Ended)) == (sender == AGENT)
    if is_theirs:
        assert parse(build(message), sender) == message
    else:
        with pytest.raises(RemoteProtocolError):
            parse(build(message), sender)


@given(st.binary(max_size=80) | ANSWERS.map(build).flatmap(lambda raw: cuts(raw)))
def test_any_bytes_are_a_message_or_the_one_error(raw: bytes) -> None:
    for sender in (AGENT, PROGRAM):
        try:
            message = parse(raw, sender)
        except RemoteProtocolError:
            continue
        assert build(message) == raw, "what is read is all that was said"


def cuts(raw: bytes) -> st.SearchStrategy[bytes]:
    """Cut, lengthened, or with one other byte."""
    places = st.integers(0, len(raw) - 1)
    changed = st.builds(lambda at, to: raw[:at] + bytes([to]) + raw[at + 1 :], places, NUMBERS)
    return st.one_of(places.map(lambda at: raw[:at]), st.just(raw + b"x"), changed)


BOUNDS = {
    "target": call_link.TARGET_MAX,
    "service": call_link.SERVICE_MAX,
    "argument": call_link.ARGUMENT_MAX,
    "user": call_link.USER_MAX,
}


@pytest.mark.parametrize("field", BOUNDS)
def test_each_text_has_its_bound(field: str) -> None:
    plain = Call(1, False, "", "", "", "")
    longest = plain._replace(**{field: "x" * BOUNDS[field]})
    assert parse(build(longest), PROGRAM) == longest
    with pytest.raises(LocalProtocolError):
        build(plain._replace(**{field: "x" * (BOUNDS[field] + 1)}))


def test_the_longest_messages_fit_into_a_datagram() -> None:
    call = Call(1, True, *("x" * bound for bound in BOUNDS.values()))
    texts = (call_link.TEXT_MAX, call_link.RULE_MAX, call_link.HINT_MAX, call_link.ID_MAX)
    end = Ended("lost", 255, 255, *("x" * bound for bound in texts))
    assert max(len(build(call)), len(build(end))) < call_link.DATAGRAM_MAX


@pytest.mark.parametrize("text", ["a\nb", "\x1b[1m", "\x85", "\x7f"])
def test_no_text_has_control_characters(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        build(Started(text, ""))
    raw = b"\x0b" + len(text.encode()).to_bytes(2, "little") + text.encode() + b"\0\0"
    with pytest.raises(RemoteProtocolError, match="control"):
        parse(raw, AGENT)


@given(st.text(), st.integers(10, 60))
def test_any_text_can_be_made_to_fit(text: str, limit: int) -> None:
    line = fitting(text, limit)
    assert len(line.encode()) <= limit
    build(Ended("problem", 0, 125, line, "", "", ""))


def test_exit_statuses_tell_what_the_service_did_from_what_happened_to_the_call() -> None:
    assert [exit_status(kind, 3) for kind in KINDS] == [3, 131, 125, 126, 127, 125, 125]


# The other reader


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("packet") / "answers"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    files = [ROOT / "tests" / "native" / "packet_answers.c", SOURCES / "packet.c"]
    compile_c(["gcc", *flags, f"-I{SOURCES}", *files, "-o", program])
    return program


def in_python(raw: bytes) -> str:
    """What the program says of a datagram if it reads as Python does."""
    try:
        message = parse(raw, AGENT)
    except RemoteProtocolError:
        return "no"
    if isinstance(message, Started):
        return " ".join(["started", *(text.encode().hex() for text in message)])
    assert isinstance(message, Ended)
    numbers = [message.kind, str(message.status), str(message.exit_status)]
    return " ".join(["ended", *numbers, *(text.encode().hex() for text in message[3:])])


def test_c_reads_what_python_reads_and_refuses_what_python_refuses(answers: Path) -> None:
    datagrams: list[bytes] = []

    @seed(1)
    @settings(max_examples=1500, database=None)
    @given(st.one_of(ANSWERS.map(build), ANSWERS.map(build).flatmap(cuts), st.binary(max_size=40)))
    def gather(raw: bytes) -> None:
        datagrams.append(raw)

    gather()
    # Texts at and over each bound, and all that is nearly UTF-8.
    for bound in (call_link.ID_MAX, call_link.TEXT_MAX, call_link.RULE_MAX, call_link.HINT_MAX):
        for length in (bound, bound + 1):
            text = length.to_bytes(2, "little") + b"x" * length
            datagrams.append(b"\x0b" + text + b"\0\0")
            datagrams += [
                b"\x0c\x01\0\0" + b"\0\0" * before + text + b"\0\0" * (3 - before)
                for before in range(4)
            ]
    for text in NEARLY:
        datagrams.append(b"\x0b" + len(text).to_bytes(2, "little") + text + b"\0\0")
    said = b"".join(len(each).to_bytes(2, "little") + each for each in datagrams)
    done = subprocess.run([answers], input=said, stdout=subprocess.PIPE, check=True)
    heard = done.stdout.decode().splitlines()
    assert len(heard) == len(datagrams)
    for raw, line in zip(datagrams, heard, strict=True):
        assert line == in_python(raw), raw
    assert {line.split()[0] for line in heard} == {"no", "started", "ended"}


NEARLY = [
    *(b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xe2\x82"),
    *(b"\xed\xa0\x80", b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xf0\x80\x80\x80", b"\xf0\x90\x80\x80"),
    *(b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xff", b"\xc2\x80"),
    *(b"\xc2\x9f", b"\xc2\xa0", b"\x7f", b"\x1f", b" ", b"\0", b"a\xe2\x82\xac", b"\xe2\x28\xa1"),
]


def test_both_have_the_same_bounds() -> None:
    header = (SOURCES / "packet.h").read_text()
    for name in ("TARGET", "SERVICE", "ARGUMENT", "USER", "ID", "TEXT", "RULE", "HINT"):
        assert f"#define PACKET_{name}_MAX {getattr(call_link, f'{name}_MAX')}u" in header
    assert f"#define PACKET_MAX {call_link.DATAGRAM_MAX}u" in header
    assert f"#define PACKET_VERSION {call_link.VERSION}u" in header
    assert f"#define PACKET_KINDS {len(KINDS)}u" in header
