"""What the messages about calls of services accept, and what not."""

from __future__ import annotations

from typing import Any

import pytest
from pedos_protocol import agent_messages, call_messages, codec, messages, names
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.messages import SCHEMA, RunningCall, parse_params, parse_result, to_wire

ID = "0123456789abcdef" * 2
CALL = {"service": "my.Echo", "argument": "+", "target": "work", "user": None, "uid": 1000}
CALLED = {
    "call": ID,
    "request": "0123456789ab",
    "peer": 3,
    "port": 16,
    "new": True,
    "target": None,
}
START = {
    "call": ID,
    "service": "my.Echo",
    "argument": "+a+b",
    "source": "work",
    "requested_target": "@default",
    "user": "user",
    "peer": 2,
    "port": 16,
    "new": False,
    "stderr": True,
}
ENDED = {
    "call": ID,
    "kind": "exited",
    "status": 0,
    "text": "",
    "stdin": 1,
    "stdout": 2,
    "stderr": 3,
    "started_s": 0.001,
    "seconds": 2,
    "reusable": True,
    "reason": "",
    "breach": False,
}
KILL = {"call": ID, "kind": "lost", "status": 0, "text": "the agent of work went away"}
LISTEN = {"peer": 3, "port": 16, "left_order": 17, "right_order": 17}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("service.call", CALL),
        ("service.start", START),
        ("service.ended", ENDED),
        ("service.started", {"call": ID}),
        ("service.kill", KILL),
        ("channel.listen", LISTEN),
        ("channel.close", {"port": 16}),
        ("channel.closed", {"port": 16, "reason": "the other end is gone"}),
        ("call.running", {"after": None}),
        ("call.list", {"after": 5}),
        ("call.end", {"call": ID}),
    ],
)
def test_a_message_is_read_as_it_was_said(method: str, params: dict[str, Any]) -> None:
    assert to_wire(parse_params(method, params)) == params


def test_the_answers_are_read_too() -> None:
    assert to_wire(parse_result("service.call", CALLED)) == CALLED
    assert parse_result("service.start", {"started": False}).started is False
    running = parse_result("call.running", {"calls": [], "ports": [16, 17], "more": False})
    assert (running.calls, running.ports, running.more) == ((), (16, 17), False)


def test_an_agent_reads_what_it_needs_without_the_messages_of_clients() -> None:
    assert agent_messages.SCHEMA.keys() >= call_messages.METHODS.keys()
    assert not agent_messages.SCHEMA.keys() & {"call.list", "call.end"}
    assert {SCHEMA[method].since for method in call_messages.METHODS} == {2}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"service": ""}, "service: '' is not the name of a service: a letter, digit"),
        ({"service": ".."}, "is not the name of a service"),
        ({"service": "-x"}, "is not the name of a service"),
        ({"service": "a/b"}, "is not the name of a service"),
        ({"service": "a+b"}, "is not the name of a service"),
        ({"service": "a" * 256}, r"\(256 characters\) is not the name of a service"),
        ({"service": 5}, "service: a value of type int is not the name"),
        ({"argument": ""}, "argument: '' is not the argument of a service: a '\\+', then"),
        ({"argument": "x"}, "is not the argument"),
        ({"argument": "+a b"}, "is not the argument"),
        ({"argument": "+\n"}, "is not the argument"),
        ({"argument": "+" + "a" * 384}, "is not the argument"),
        ({"target": "@tag:x"}, "target: '@tag:x' is not the target of a call: a VM's name, or"),
        ({"target": "$default"}, "is not the target"),
        ({"target": "@dispvm:"}, "is not the target"),
        ({"target": "@dispvm:@tag:x"}, "is not the target"),
        ({"target": "uuid:"}, "is not the target"),
        ({"target": "uuid:" + "0" * 60}, "is not the target"),
        ({"target": "a b"}, "is not the target"),
        ({"user": ""}, "user: '' is not a user's name: a letter or '_'"),
        ({"user": "-f"}, "is not a user's name"),
        ({"user": "a:b"}, "is not a user's name"),
        ({"uid": -1}, "uid: an integer"),
        ({"more": 1}, "'more' is not known"),
    ],
)
def test_a_call_that_is_malformed_is_refused_with_words(change: dict[str, Any], why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        parse_params("service.call", {**CALL, **change})


@pytest.mark.parametrize(
    "target",
    ["", "@default", "@adminvm", "@dispvm", "@dispvm:default-dvm", "dom0", "work", "uuid:0f-a1"],
)
def test_a_call_names_a_vm_a_keyword_or_nothing(target: str) -> None:
    assert names.parse_call_target(target) == target


@pytest.mark.parametrize("call", ["", "0" * 31, "0" * 33, "A" * 32, 5])
def test_a_call_has_an_id_of_128_bits(call: object) -> None:
    with pytest.raises(RemoteProtocolError, match="call"):
        parse_params("service.kill", {**KILL, "call": call})


@pytest.mark.parametrize(
    "change",
    [{"kind": "failed"}, {"status": 256}, {"status": -1}, {"stdin": -1}, {"seconds": -1}],
)
def test_an_end_is_of_a_known_kind_and_within_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match=next(iter(change))):
        parse_params("service.ended", {**ENDED, **change})


def test_what_a_vm_says_of_an_end_is_harmless_and_short() -> None:
    said = "\x1b[31m`id`\n" + "x" * 1000
    ended = parse_params("service.ended", {**ENDED, "text": said, "reason": said})
    assert ended.text == ended.reason
    assert ended.text.startswith("_[31m_id__xxx")
    assert len(ended.text) == names.END_TEXT_MAX


@pytest.mark.parametrize("change", [{"left_order": 9}, {"right_order": 21}, {"port": 0}])
def test_a_channel_has_a_port_and_rings_of_a_possible_size(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match=next(iter(change))):
        parse_params("channel.listen", {**LISTEN, **change})


def test_a_full_page_of_running_calls_fits_into_a_frame() -> None:
    longest = RunningCall(
        call="f" * 32,
        side="service",
        service="s" * names.SERVICE_NAME_MAX,
        argument="+" * names.SERVICE_ARGUMENT_MAX,
        user="u" * names.USER_NAME_MAX,
        peer=0x7FEF,
        port=2**31 - 1,
        seconds=1e9 + 0.1,
        stdin=2**62,
        stdout=2**62,
        stderr=2**62,
    )
    page = messages.CallsRunning(
        (longest,) * call_messages.RUNNING_PAGE_MAX, (2**31 - 1,) * call_messages.PORTS_MAX, True
    )
    wire = to_wire(page)
    assert len(codec.encode([1, 1, None, wire])) <= codec.FRAME_MAX
    assert parse_result("call.running", wire) == page
    with pytest.raises(RemoteProtocolError, match="calls: 65 entries, and 64 is the most"):
        parse_result("call.running", {**wire, "calls": [*wire["calls"], wire["calls"][0]]})
