from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol import codec, connection, events, messages
from pedos_protocol.codec import FRAME_MAX, HEADER_SIZE
from pedos_protocol.connection import (
    CLOSED,
    ERROR,
    OPEN,
    PENDING_MAX,
    START,
    TRANSITIONS,
    VERSIONS,
    Connection,
)
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError
from pedos_protocol.events import (
    ERROR_TEXT_MAX,
    NEED_DATA,
    Answer,
    Closed,
    ErrorAnswer,
    Event,
    Hello,
    NeedData,
    Notice,
    Request,
)
from pedos_protocol.names import is_printable

from . import strategies

HELLO = Hello(VERSIONS, "test 1")

#: One of each, as harmless as can be.
EXAMPLES: dict[type[Event], Event] = {
    Hello: HELLO,
    Request: Request(1, "vm.list", {}, 1000),
    Answer: Answer(1, {}),
    ErrorAnswer: ErrorAnswer(1, "failed", "it did not work", {}),
    Notice: Notice("operation.step", {}),
    Closed: Closed(),
}


class Pair:
    """Two connected ends. What one sends, the other must hear; both are looked at together."""

    def __init__(self) -> None:
        self.ends = (Connection(), Connection())

    def say(self, event: Event, *, sender: int = 0) -> None:
        here, there = self.ends[sender], self.ends[1 - sender]
        data = here.send(event)
        assert isinstance(event, Closed) == (data == b"")
        there.receive_data(data)
        assert there.next_event() == event
        if not isinstance(event, Closed):
            assert there.next_event() is NEED_DATA
        assert here.our_state == there.their_state
        assert here.ours_in_flight == there.theirs_in_flight

    def greet(self) -> Pair:
        self.say(HELLO)
        self.say(HELLO, sender=1)
        return self


def in_state(state: str) -> Connection:
    """An end whose own side has come to `state`, and knows of a request 1 that it may answer."""
    ends = Pair()
    if state != START:
        ends.greet()
        ends.say(EXAMPLES[Request], sender=1)
    if state == CLOSED:
        ends.say(Closed())
    assert ends.ends[0].our_state == state
    return ends.ends[0]


def heard_in_state(state: str) -> Connection:
    """An end whose other side has come to `state`, and that has a request 1 in flight."""
    ends = Pair()
    if state != START:
        ends.greet()
        ends.say(EXAMPLES[Request], sender=1)
    if state == CLOSED:
        ends.say(Closed())
    if state == ERROR:
        ends.ends[1].receive_data(b"\xff" * 4)
        with pytest.raises(RemoteProtocolError):
            ends.ends[1].next_event()
    assert ends.ends[1].their_state == state
    return ends.ends[1]


def frame_of(event: Event) -> bytes:
    """The bytes that say `event`, made by an end that may say it."""
    return in_state(START if isinstance(event, Hello) else OPEN).send(event)


PAIRS = [(state, event_type) for state in TRANSITIONS for event_type in EXAMPLES]
LEGAL = [(state, event_type) for state, event_type in PAIRS if event_type in TRANSITIONS[state]]
ILLEGAL = [pair for pair in PAIRS if pair not in LEGAL]


def test_the_table_speaks_of_every_state_and_every_event() -> None:
    assert set(TRANSITIONS) == {START, OPEN, CLOSED, ERROR}
    assert {e for row in TRANSITIONS.values() for e in row} == set(EXAMPLES)
    assert {target for row in TRANSITIONS.values() for target in row.values()} <= set(TRANSITIONS)


@pytest.mark.parametrize(("state", "event_type"), LEGAL)
def test_what_the_table_allows_can_be_sent_and_leads_where_it_says(
    state: str, event_type: type[Event]
) -> None:
    end = in_state(state)
    end.send(EXAMPLES[event_type])
    assert end.our_state == TRANSITIONS[state][event_type]


@pytest.mark.parametrize(("state", "event_type"), [pair for pair in ILLEGAL if pair[0] != ERROR])
def test_what_the_table_does_not_allow_cannot_be_sent_and_changes_nothing(
    state: str, event_type: type[Event]
) -> None:
    end = in_state(state)
    with pytest.raises(LocalProtocolError, match=f"{event_type.__name__} cannot be sent"):
        end.send(EXAMPLES[event_type])
    assert end.our_state == state


@pytest.mark.parametrize(("state", "event_type"), LEGAL)
def test_what_the_table_allows_can_be_heard_and_leads_where_it_says(
    state: str, event_type: type[Event]
) -> None:
    end = heard_in_state(state)
    if state != CLOSED:  # then nothing can come, and it says Closed again by itself
        end.receive_data(frame_of(EXAMPLES[event_type]) if event_type is not Closed else b"")
    assert end.next_event() == EXAMPLES[event_type]
    assert end.their_state == TRANSITIONS[state][event_type]


@pytest.mark.parametrize(("state", "event_type"), [p for p in ILLEGAL if p[0] in (START, OPEN)])
def test_what_the_table_does_not_allow_is_the_other_sides_error(
    state: str, event_type: type[Event]
) -> None:
    end = heard_in_state(state)
    end.receive_data(frame_of(EXAMPLES[event_type]))
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            end.next_event()
    assert end.their_state == ERROR


def test_nothing_comes_after_the_end_of_the_stream() -> None:
    end = heard_in_state(CLOSED)
    with pytest.raises(LocalProtocolError, match="after the end"):
        end.receive_data(b"x")
    assert end.next_event() == Closed()


def test_their_end_is_ours_too_and_no_answer_is_given_any_more() -> None:
    end = in_state(OPEN)  # it knows of their request 1
    end.receive_data(b"")
    assert end.next_event() == Closed()
    assert end.our_state == end.their_state == CLOSED
    for event_type in (Request, Answer, ErrorAnswer, Notice):
        with pytest.raises(LocalProtocolError, match="cannot be sent in state CLOSED"):
            end.send(EXAMPLES[event_type])
    assert end.send(Closed()) == b""


def test_an_error_is_for_good() -> None:
    end = heard_in_state(ERROR)
    end.receive_data(frame_of(EXAMPLES[Notice]))
    with pytest.raises(RemoteProtocolError, match="4294967295 bytes is announced"):
        end.next_event()


def test_the_diagram_shows_the_whole_table() -> None:
    drawn = connection.diagram()
    assert drawn.startswith("stateDiagram-v2\n    [*] --> START\n")
    for state, row in TRANSITIONS.items():
        for event_type, target in row.items():
            lines = [line for line in drawn.splitlines() if f"{state} --> {target}:" in line]
            assert len(lines) == 1
            assert event_type.__name__ in lines[0]


# Methods' names


def test_names_that_a_peer_makes_up_are_not_remembered_and_cost_no_other_peer_anything() -> None:
    """All connections of a process share what is known, so it is this program's own names alone."""
    events.know_methods(["device.attach", "No Method"])
    known = set(events._known_methods)
    assert "device.attach" in known
    assert "No Method" not in known
    ends = Pair().greet()
    for number in range(2000):
        name = "made.up." + "".join(chr(97 + int(digit)) for digit in str(number))
        ends.say(Notice(name, {}))
    assert events._known_methods == known


def test_the_names_that_a_program_serves_need_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"device.attach", "export.start", "prompt.cancel"} <= set(messages.SCHEMA)
    monkeypatch.setattr(events, "is_method", lambda _: False)
    for method in messages.SCHEMA:
        Notice(method, {})


@given(name=st.text(alphabet="ab._Aé1 ", max_size=8))
def test_a_methods_name_is_words_of_letters_with_dots_between(name: str) -> None:
    words = name.split(".")
    letters = all(word and set(word) <= set("ab_") for word in words)
    assert events.is_method(name) == (letters and "_" not in words[0])


# Events


@given(hello=strategies.hellos)
def test_hello_is_heard_as_it_was_said(hello: Hello) -> None:
    ends = Pair()
    ends.say(hello)
    assert ends.ends[1].their_hello == hello
    assert ends.ends[1].version == min(hello.versions[1], VERSIONS[1])


@given(data=st.data())
def test_every_event_is_heard_as_it_was_said(data: st.DataObject) -> None:
    ends = Pair().greet()
    sender = data.draw(st.integers(0, 1))
    request = data.draw(strategies.requests)
    ends.say(request, sender=sender)
    ends.say(data.draw(strategies.notices), sender=sender)
    ends.say(data.draw(strategies.answers(request.id)), sender=1 - sender)
    ends.say(Closed(), sender=sender)
    ends.say(Closed(), sender=1 - sender)


@pytest.mark.parametrize(
    ("event_type", "fields"),
    [
        (Hello, ((0, 1), "x")),
        (Hello, ((2, 1), "x")),
        (Hello, ((1, True), "x")),
        (Hello, ((1,), "x")),
        (Hello, ([1, 1], "x")),
        (Hello, ((1, 65536), "x")),
        (Hello, ((1, 1), "x" * 65)),
        (Request, (-1, "vm.list", {}, 1)),
        (Request, (2**32, "vm.list", {}, 1)),
        (Request, (True, "vm.list", {}, 1)),
        (Request, (1, "vm.list", {}, 0)),
        (Request, (1, "vm.list", {}, 86_400_001)),
        (Request, (1, "vm.list", {}, 1.0)),
        (Request, (1, "vm.list", {}, None)),
        (Request, (1, "vm.list", [], 1)),
        (Request, (1, "vm.list", {"deadline_ms": 1}, 1)),
        (Answer, (1, None)),
        (Answer, (2**32, {})),
        (ErrorAnswer, (1, "strange", "", {})),
        (ErrorAnswer, (1, None, "", {})),
        (ErrorAnswer, (1, "failed", "x" * 1025, {})),
        (ErrorAnswer, (1, "failed", None, {})),
        (ErrorAnswer, (1, "failed", "", None)),
        (Notice, ("hello", {})),
        (Notice, ("operation.step", None)),
    ],
)
def test_an_event_that_makes_no_sense_cannot_be_made(event_type: Any, fields: Any) -> None:
    with pytest.raises(LocalProtocolError):
        event_type(*fields)


@pytest.mark.parametrize(
    "method",
    [
        *(
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "A",
            "a.B",
            "a_b",
            "a_b.c",
            "a-b",
            "a.b1",
            "a b",
            "a\n",
            "ä",
        ),
        *("a" * 65, None, 5, b"vm.list"),
    ],
)
def test_what_is_no_method(method: Any) -> None:
    with pytest.raises(LocalProtocolError, match="is not a method's name"):
        Notice(method, {})


def test_events_are_values() -> None:
    assert Request(1, "vm.list", {}, 1000) == EXAMPLES[Request]
    assert Request(1, "vm.list", {"a": 1}, 1000) != EXAMPLES[Request]
    assert Request(id=1, method="vm.list", params={}, deadline_ms=1000) == EXAMPLES[Request]
    assert Answer(id=1, result={}) == EXAMPLES[Answer]
    assert Notice(method="operation.step", params={}) == EXAMPLES[Notice]
    for event_type, event in EXAMPLES.items():
        assert event != object()
        for other_type, other in EXAMPLES.items():
            assert (event == other) == (event_type is other_type)
        assert not hasattr(event, "__dict__")
        with pytest.raises(AttributeError):
            event.sender = 5  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            hash(event)
    assert repr(Answer(5, {"a": 1})) == "Answer(id=5, result={'a': 1})"
    assert repr(NEED_DATA) == "NEED_DATA"


# Hello and versions


@pytest.mark.parametrize(
    ("offered", "spoken"), [((1, 1), 1), ((1, 2), 2), ((1, 7), 2), ((2, 7), 2)]
)
def test_the_highest_version_that_both_speak_is_spoken(
    offered: tuple[int, int], spoken: int
) -> None:
    ends = Pair()
    ends.say(Hello(offered, "x"))
    assert ends.ends[1].version == spoken


def test_a_side_that_speaks_only_later_versions_is_refused() -> None:
    end = Connection()
    end.receive_data(Connection().send(Hello((3, 4), "x")))
    with pytest.raises(RemoteProtocolError, match="versions 3 to 4 are offered, and 1 to 2"):
        end.next_event()


def test_a_request_may_follow_hello_without_waiting_for_the_others() -> None:
    ends = Pair()
    ends.say(HELLO)
    ends.say(EXAMPLES[Request])
    ends.say(HELLO, sender=1)
    ends.say(EXAMPLES[Answer], sender=1)


def test_a_program_is_named_harmlessly() -> None:
    hello = [2, "hello", {"versions": [1, 1], "program": "<b>\x1b" + "x" * 100, "later": None}]
    end = Connection()
    end.receive_data(codec.encode(hello))
    assert end.next_event() == Hello((1, 1), "_b__" + "x" * 57 + "...")


# Requests in flight


def test_an_id_in_flight_cannot_be_used_again() -> None:
    ends = Pair().greet()
    ends.say(Request(7, "vm.list", {}, 1))
    ends.say(Request(7, "vm.list", {}, 1), sender=1)  # the other way it is another call
    with pytest.raises(LocalProtocolError, match="id 7 is in flight"):
        ends.ends[0].send(Request(7, "vm.list", {}, 1))
    ends.ends[1].receive_data(frame_of(Request(7, "vm.list", {}, 1)))
    with pytest.raises(RemoteProtocolError, match="second request came with the id 7"):
        ends.ends[1].next_event()


def test_an_answer_needs_a_request() -> None:
    ends = Pair().greet()
    ends.say(Request(7, "vm.list", {}, 1))
    ends.say(Answer(7, {}), sender=1)
    with pytest.raises(LocalProtocolError, match="id 7 waits"):
        ends.ends[1].send(Answer(7, {}))
    ends.ends[0].receive_data(codec.encode([1, 7, None, {}]))
    with pytest.raises(RemoteProtocolError, match="an answer came to no request: id 7"):
        ends.ends[0].next_event()


def test_only_so_many_requests_are_in_flight_each_way() -> None:
    ends = Pair().greet()
    for call_id in range(PENDING_MAX):
        ends.say(Request(call_id, "vm.list", {}, 1))
    with pytest.raises(LocalProtocolError, match="128 requests are in flight"):
        ends.ends[0].send(Request(1000, "vm.list", {}, 1))
    ends.say(Answer(5, {}), sender=1)
    ends.say(Request(1000, "vm.list", {}, 1))
    ends.ends[1].receive_data(frame_of(Request(1001, "vm.list", {}, 1)))
    with pytest.raises(RemoteProtocolError, match="more than 128 requests"):
        ends.ends[1].next_event()


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, 3)), max_size=40))
def test_both_directions_obey_the_same_rules(said: list[tuple[int, bool, int]]) -> None:
    """What an end may not say of requests and answers, the other end does not hear either."""
    ends = Pair().greet()
    for sender, is_request, call_id in said:
        event = Request(call_id, "vm.list", {}, 1) if is_request else Answer(call_id, {})
        before = [(end.ours_in_flight, end.theirs_in_flight) for end in ends.ends]
        try:
            ends.say(event, sender=sender)
        except LocalProtocolError:
            assert [(end.ours_in_flight, end.theirs_in_flight) for end in ends.ends] == before
            ends.ends[1 - sender].receive_data(frame_of_any(event))
            with pytest.raises(RemoteProtocolError, match=f"id {call_id}"):
                ends.ends[1 - sender].next_event()
            return


def frame_of_any(event: Request | Answer) -> bytes:
    """The bytes that say `event`, made by an end that may say it."""
    speaker = Pair().greet()
    if isinstance(event, Answer):
        speaker.say(Request(event.id, "vm.list", {}, 1), sender=1)
    return speaker.ends[0].send(event)


def test_an_answer_that_cannot_be_sent_leaves_its_request_unanswered() -> None:
    ends = Pair().greet()
    ends.say(EXAMPLES[Request])
    with pytest.raises(LocalProtocolError, match="bytes"):
        ends.ends[1].send(Answer(1, {"x": b"x" * FRAME_MAX}))
    ends.say(ErrorAnswer(1, "failed", "the answer is too large", {}), sender=1)


# Batches

BATCH = [
    HELLO,
    Request(1, "vm.list", {}, 1000),
    Notice("operation.step", {"a": 1}),
    Request(2, "vm.list", {}, 1000),
]


def bytes_of(said: list[Event]) -> bytes:
    speaker = Connection()
    return b"".join([speaker.send(event) for event in said])


def test_bytes_of_many_frames_are_their_events() -> None:
    end = Connection()
    assert list(end.receive_data(bytes_of(BATCH))) == BATCH
    assert end.next_event() is NEED_DATA
    assert list(end.receive_data(b"")) == [Closed()]
    assert end.next_event() == Closed()


@given(cuts=st.lists(st.integers(0, len(bytes_of(BATCH))), max_size=6).map(sorted))
def test_the_events_of_a_batch_are_the_same_however_it_is_cut(cuts: list[int]) -> None:
    end, data = Connection(), bytes_of(BATCH)
    heard: list[Event] = []
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if start < stop:
            heard += end.receive_data(data[start:stop])
    assert heard == BATCH


def test_a_request_of_a_batch_can_be_answered_before_the_next_event_is_heard() -> None:
    end = Connection()
    end.send(HELLO)
    for event in end.receive_data(bytes_of(BATCH)):
        assert end.theirs_in_flight == isinstance(event, Request)
        if isinstance(event, Request):
            end.send(Answer(event.id, {}))


def test_the_rest_of_a_batch_can_be_taken_later_and_by_another() -> None:
    end = Connection()
    assert next(end.receive_data(bytes_of(BATCH))) == BATCH[0]
    assert end.next_event() == BATCH[1]
    assert list(end.receive_data(bytes_of(BATCH)[:5])) == BATCH[2:]


def test_what_came_before_a_broken_frame_is_heard_and_nothing_after_it() -> None:
    end = Connection()
    events = end.receive_data(bytes_of(BATCH[:2]) + codec.encode([7]) + frame_of(BATCH[2]))
    assert [next(events), next(events)] == BATCH[:2]
    with pytest.raises(RemoteProtocolError, match="neither"):
        next(events)
    assert end.their_state == ERROR
    with pytest.raises(RemoteProtocolError, match="neither"):
        list(end.receive_data(b"x"))


@pytest.mark.parametrize("event_type", [Request, Answer, Notice])
def test_an_event_that_was_checked_cannot_be_changed(event_type: type[Event]) -> None:
    event = EXAMPLES[event_type]
    for name in event.__slots__:
        with pytest.raises(AttributeError):
            setattr(event, name, -1)
        with pytest.raises(AttributeError):
            delattr(event, name)
    with pytest.raises(TypeError):
        event_type()
    with pytest.raises(TypeError):
        event_type(*[1] * (len(event.__slots__) + 1))


# Bytes


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ([], "neither"),
        ([3, 1, "vm.list", {}], "neither"),
        ([0, 1, "vm.list"], "neither"),
        ([0, 1, "vm.list", {"deadline_ms": 1}, None], "neither"),
        ([False, 1, "vm.list", {"deadline_ms": 1}], "neither"),
        ([0.0, 1, "vm.list", {"deadline_ms": 1}], "neither"),
        ([0, 1, "vm.list", []], "parameters are not a map"),
        ([0, 1, "vm.list", {}], "no deadline"),
        ([0, 1, "vm.list", {"deadline_ms": 0}], "no deadline"),
        ([0, 1, "vm.list", {"deadline_ms": "1"}], "no deadline"),
        ([0, -1, "vm.list", {"deadline_ms": 1}], "id of a call"),
        ([0, "1", "vm.list", {"deadline_ms": 1}], "id of a call"),
        ([0, 1, "vm list", {"deadline_ms": 1}], "not a method's name"),
        ([0, 1, None, {"deadline_ms": 1}], "not a method's name"),
        ([True, 1, None, {}], "neither"),
        ([1, 1, None, None], "result is not a map"),
        ([1, 1, None, []], "result is not a map"),
        ([1, 1, "failed", None], "neither"),
        ([1, 1, {"code": "failed", "message": "", "data": {}}, {}], "neither"),
        ([1, 1, {"code": "failed", "message": ""}, None], "code, message and data"),
        ([1, 1, {"code": "odd", "message": "", "data": {}}, None], "not an error code"),
        ([1, 1, {"code": "failed", "message": 5, "data": {}}, None], "message is not"),
        ([2, "operation.step", None], "not a map"),
        ([2, "hello", {"versions": [1, 1], "program": "x"}], "hello came a second time"),
    ],
)
def test_a_frame_that_is_no_message_is_refused(message: list[Any], why: str) -> None:
    end = Pair().greet().ends[0]
    end.send(EXAMPLES[Request])
    end.receive_data(codec.encode(message))
    with pytest.raises(RemoteProtocolError, match=why):
        end.next_event()


@pytest.mark.parametrize(
    "hello",
    [
        None,
        [],
        {},
        {"versions": [1, 1]},
        {"program": "x"},
        {"versions": [1], "program": "x"},
        {"versions": "11", "program": "x"},
        {"versions": [1, 1, 1], "program": "x"},
        {"versions": [0, 1], "program": "x"},
        {"versions": [1, 1], "program": None},
        {"versions": [1.0, 1], "program": "x"},
    ],
)
def test_a_hello_that_is_none_is_refused(hello: object) -> None:
    end = Connection()
    end.receive_data(codec.encode([2, "hello", hello]))
    with pytest.raises(RemoteProtocolError):
        end.next_event()


def test_only_a_message_that_says_hello_is_a_hello() -> None:
    hello = {"versions": [1, 1], "program": "x"}
    for message in ([2, "goodbye", hello], [2, None, hello], [2], [2, "hello"]):
        with pytest.raises(RemoteProtocolError, match="neither"):
            Connection._parse(message)


def outcome(pieces: list[bytes]) -> list[object]:
    """All that comes out of an end with one request in flight that hears `pieces` and the end."""
    end = Connection()
    end.send(HELLO)
    end.send(EXAMPLES[Request])
    heard: list[object] = []
    try:
        for piece in [*[piece for piece in pieces if piece], b""]:
            end.receive_data(piece)
            while not isinstance(event := end.next_event(), NeedData):
                heard.append(event)
                if isinstance(event, Closed):
                    return heard
    except RemoteProtocolError as error:
        heard.append(str(error))
    return heard


def check_any_bytes(data: bytes, cuts: list[int]) -> None:
    """The contract: events or RemoteProtocolError, and the same however the bytes are cut."""
    whole = outcome([data])
    assert isinstance(whole[-1], str | Closed)
    assert outcome([bytes([byte]) for byte in data]) == whole
    at = sorted(cut % (len(data) + 1) for cut in cuts)
    assert outcome([data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]) == whole


cuts = st.lists(st.integers(0, 1000), max_size=5)


@given(st.binary(max_size=300), cuts)
def test_any_bytes_are_events_or_a_remote_error(data: bytes, cuts: list[int]) -> None:
    check_any_bytes(data, cuts)


@given(st.lists(strategies.values, max_size=5), cuts)
def test_any_frames_are_events_or_a_remote_error(messages: list[Any], cuts: list[int]) -> None:
    frames = [
        codec.encode(message)
        for message in messages
        if isinstance(message, list) and strategies.depth_of(message) <= codec.DEPTH_MAX
    ]
    check_any_bytes(b"".join([frame_of(HELLO), *frames]), cuts)


@given(
    st.lists(strategies.requests | strategies.notices, max_size=4),
    st.integers(0, 10_000),
    st.integers(0, 255),
    cuts,
)
def test_a_conversation_with_one_byte_changed_is_events_or_a_remote_error(
    said: list[Event], where: int, what: int, cuts: list[int]
) -> None:
    speaker = Connection()
    data = bytearray(speaker.send(HELLO))
    for number, event in enumerate(said):
        if isinstance(event, Request):
            event = Request(number, event.method, event.params, event.deadline_ms)  # noqa: PLW2901
        data += speaker.send(event)
    check_any_bytes(bytes(data), cuts)
    data[where % len(data)] = what
    check_any_bytes(bytes(data), cuts)


def test_a_stream_that_ends_within_a_frame_is_broken() -> None:
    frame = frame_of(HELLO)
    for length in range(1, len(frame)):
        assert outcome([frame[:length]]) == ["the stream ended within a frame"]
    assert outcome([frame]) == [HELLO, Closed()]


def test_too_large_a_frame_is_refused_before_any_of_it_has_come() -> None:
    end = Connection()
    end.receive_data((FRAME_MAX + 1).to_bytes(4, "little"))
    with pytest.raises(RemoteProtocolError, match="65537 bytes is announced"):
        end.next_event()


def test_events_have_to_be_taken_out_before_more_goes_in() -> None:
    end = Connection()
    end.receive_data(FRAME_MAX.to_bytes(4, "little"))
    end.receive_data(bytes(FRAME_MAX - 1))
    assert end.next_event() is NEED_DATA
    end.receive_data(bytes(1))
    with pytest.raises(LocalProtocolError, match="taken out"):
        end.receive_data(b"x")


def test_the_largest_frame_passes() -> None:
    ends = Pair().greet()
    empty = len(codec.encode([2, "a", {"x": b"x" * 65_000}])) - HEADER_SIZE - 65_000
    ends.say(Notice("a", {"x": b"x" * (FRAME_MAX - empty)}))
    with pytest.raises(LocalProtocolError, match="more than 65536 bytes"):
        ends.ends[0].send(Notice("a", {"x": b"x" * (FRAME_MAX - empty + 1)}))


@given(strategies.texts, strategies.maps)
def test_the_words_of_an_error_are_one_printable_line_each(
    message: str, data: dict[str, Any]
) -> None:
    ends = Pair().greet()
    ends.say(Request(1, "x.y", {}, 1000))
    there, here = ends.ends
    there_data = here.send(ErrorAnswer(1, "failed", message, data))
    there.receive_data(there_data)
    event = there.next_event()
    assert isinstance(event, ErrorAnswer)
    assert is_printable(event.message) and len(event.message) == len(message)

    def look(value: Any) -> None:
        assert not isinstance(value, str) or is_printable(value)
        if isinstance(value, dict):
            value = [*value, *value.values()]
        for each in value if isinstance(value, list) else ():
            look(each)

    look(event.data)


def test_no_error_of_a_peer_forges_a_line_or_moves_a_cursor() -> None:
    ends = Pair().greet()
    ends.say(Request(1, "x.y", {}, 1000))
    there, here = ends.ends
    evil = "\x1b]0;pwned\x07 no\npedos-dom0: critical: \u202eevil"
    there.receive_data(here.send(ErrorAnswer(1, "failed", evil, {evil: [{"hint": evil * 30}]})))
    event = there.next_event()
    assert isinstance(event, ErrorAnswer)
    harmless = "_]0;pwned_ no_pedos-dom0: critical: _evil"
    assert event.message == harmless
    ((name, ((inner,))),) = event.data.items()
    assert name == harmless
    assert inner["hint"] == (harmless * 30)[: ERROR_TEXT_MAX - 3] + "..."
