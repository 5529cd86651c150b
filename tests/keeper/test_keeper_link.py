"""The packets between agent and keeper."""

from __future__ import annotations

import contextlib
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol.codec import HEADER_SIZE, encode
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError
from pedos_protocol.keeper_link import (
    AGENT,
    FORMS,
    KEEPER,
    PACKET_MAX,
    TEXT_MAX,
    Connected,
    Ended,
    Finished,
    ForUser,
    Kill,
    Killed,
    NotFound,
    Packet,
    Problem,
    Run,
    Signal,
    Spawned,
    Waiting,
    build,
    parse,
    said,
)

CALL = "0123456789abcdef" * 2
RUN = Run(CALL, "test.Echo", "+one", "work", "@default", False)
EXAMPLES = {
    AGENT: [RUN, Signal(15), Finished(), Kill("0123456789abcdef" * 2)],
    KEEPER: [
        Waiting("it waits"),
        Spawned(True, False, True),
        Connected(False, True, False),
        ForUser("root"),
        NotFound("there is none"),
        Problem("/etc/x:1: this is wrong"),
        Killed(),
        Ended("exited", 255),
        Ended("signalled", 9),
    ],
}
ALL = [(sender, packet) for sender, packets in EXAMPLES.items() for packet in packets]


def raw(*values: object) -> bytes:
    return encode(list(values))[HEADER_SIZE:]


def test_each_packet_has_one_sender_and_one_number() -> None:
    assert {form for _, form, _ in FORMS.values()} == set(get_args(Packet))
    assert {(sender, type(packet)) for sender, packet in ALL} == {
        (sender, form) for sender, form, _ in FORMS.values()
    }


@pytest.mark.parametrize(("sender", "packet"), ALL)
def test_what_is_built_is_parsed(sender: str, packet: Packet) -> None:
    assert parse(build(packet), sender) == packet
    with pytest.raises(RemoteProtocolError):
        parse(build(packet), KEEPER if sender == AGENT else AGENT)


@pytest.mark.parametrize(
    "run",
    [
        RUN._replace(call=CALL.upper()),
        RUN._replace(service="../sh"),
        RUN._replace(service="a/b"),
        RUN._replace(service=""),
        RUN._replace(argument="one"),
        RUN._replace(argument="+a/b"),
        RUN._replace(source="a b"),
        RUN._replace(target="@what\n"),
        RUN._replace(is_forced=1),  # type: ignore[arg-type]
    ],
)
def test_a_run_is_of_names_alone(run: Run) -> None:
    with pytest.raises(LocalProtocolError):
        build(run)
    with pytest.raises(RemoteProtocolError, match=r"^Run\."):
        parse(raw(1, *run), AGENT)


@pytest.mark.parametrize(
    "untrusted",
    [
        b"",
        raw(),
        raw(1),
        raw(True),
        raw("1", *RUN),
        raw(1, *RUN, ""),
        raw(2, 0),
        raw(2, 65),
        raw(2, True),
        raw(99),
        build(RUN) + b"\0",
        b"\0" * (PACKET_MAX + 1),
    ],
)
def test_what_is_no_packet_is_an_error(untrusted: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse(untrusted, AGENT)


@pytest.mark.parametrize("number", [0, 65, 255])
def test_a_service_is_ended_by_signals_that_there_are(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match="no signal"):
        parse(raw(17, "signalled", number), KEEPER)


@given(st.binary(max_size=100), st.sampled_from([AGENT, KEEPER]))
def test_any_bytes_are_a_packet_or_the_one_error(untrusted: bytes, sender: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert build(parse(untrusted, sender))


@given(st.text(max_size=2 * TEXT_MAX))
def test_any_text_can_be_said(text: str) -> None:
    packet = Problem(said(text))
    assert len(build(packet)) <= PACKET_MAX
    assert parse(build(packet), KEEPER) == packet


def test_the_longest_run_fits() -> None:
    run = RUN._replace(service="s" * 255, argument="+" + "a" * 383, source="w" * 31)
    assert len(build(run)) <= PACKET_MAX
