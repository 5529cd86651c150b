from __future__ import annotations

import contextlib
from typing import Any

import attr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_protocol import codec, fields, messages
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.messages import parse_params, parse_result, to_wire
from pedos_protocol.schema import Room, wire_size

from . import strategies

DEVICE = {
    "device_class": "block",
    "device": "sda1",
    "identity": "0781:5581:4C53",
    "description": "SanDisk Ultra",
    "size": 2**40,
    "parent": "sda",
    "read_only": False,
    "busy": None,
}
REPORT = {"revision": 1, "devices": [DEVICE], "exports": [], "imports": []}


def over_the_wire(value: Any) -> Any:
    return codec.decode(codec.encode([to_wire(value)])[codec.HEADER_SIZE :])[0]


@pytest.mark.parametrize(("method", "part", "message_class"), strategies.SPOKEN)
@settings(max_examples=8)
@given(data=st.data())
def test_every_message_comes_out_as_it_went_in(
    method: str, part: str, message_class: type[Any], data: st.DataObject
) -> None:
    said = data.draw(strategies.message(message_class))
    parse = parse_params if part == "params" else parse_result
    assert parse(method, over_the_wire(said)) == said


@pytest.mark.parametrize(("method", "part", "message_class"), strategies.SPOKEN)
@settings(max_examples=8)
@given(data=st.data())
def test_every_message_with_a_part_changed_is_refused_or_still_a_message(
    method: str, part: str, message_class: type[Any], data: st.DataObject
) -> None:
    parse = parse_params if part == "params" else parse_result
    wire = to_wire(data.draw(strategies.message(message_class)))
    name = data.draw(st.sampled_from([*wire, "unknown"]))
    change = data.draw(st.sampled_from(["drop", "replace"]))
    if change == "replace":
        wire[name] = data.draw(strategies.values)
    elif wire.pop(name, wire) is wire:
        return  # there was no such key, so nothing has changed
    optional = {a.name: a.default for a in attr.fields(message_class) if fields.is_optional(a)}
    if change == "drop" and name in optional:
        assert getattr(parse(method, wire), name) == optional[name]
        return
    if change == "drop" or name == "unknown":
        with pytest.raises(RemoteProtocolError, match=name):
            parse(method, wire)
        return
    try:
        assert isinstance(parse(method, wire), message_class)
    except RemoteProtocolError as error:
        assert name in str(error)


@pytest.mark.parametrize(("method", "part", "message_class"), strategies.SPOKEN)
@settings(max_examples=8)
@given(untrusted=strategies.values)
def test_any_value_is_parsed_or_refused(
    method: str, part: str, message_class: type[Any], untrusted: Any
) -> None:
    parse = parse_params if part == "params" else parse_result
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(parse(method, untrusted), message_class)


def test_messages_are_immutable_and_have_slots() -> None:
    for _, _, message_class in strategies.SPOKEN:
        assert not hasattr(message_class, "__dict__") or "__slots__" in vars(message_class)
    report = parse_params("agent.report", REPORT)
    with pytest.raises(attr.exceptions.FrozenInstanceError):
        report.revision = 2


def with_device(**changes: Any) -> dict[str, Any]:
    return {**REPORT, "devices": [{**DEVICE, **changes}]}


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (None, "parameters of agent.report: a map is expected"),
        ({**REPORT, "extra": 1}, "'extra' is not known"),
        ({"revision": 1}, "devices is missing"),
        ({**REPORT, "revision": True}, "revision: an integer"),
        ({**REPORT, "revision": -1}, "revision: an integer from 0"),
        ({**REPORT, "revision": 2**63}, "revision: an integer from 0"),
        ({**REPORT, "devices": None}, "devices: a list is expected"),
        ({**REPORT, "devices": [DEVICE] * 129}, "devices: 129 entries, and 128 is the most"),
        ({**REPORT, "devices": [DEVICE, 5]}, r"devices: \[1\] a map is expected"),
        (with_device(device="../etc"), r"devices: \[0\] device: '../etc' is not a device id"),
        (with_device(device_class="TPM"), "'TPM' is not a device class"),
        (with_device(identity="a b"), "'a b' is not a device's identity"),
        (with_device(instance="a b"), "'a b' is not an instance"),
        (with_device(instance="x" * 41), "is not an instance"),
        (with_device(description=5), "description: text is expected, not a value of type int"),
        (with_device(size=-1), "size: an integer"),
        (with_device(size=1.5), "size: an integer"),
        (with_device(parent=""), "parent: '' is not a device id"),
        (with_device(read_only=1), "read_only: true or false"),
        (with_device(read_only=None), "read_only: true or false"),
    ],
)
def test_a_refusal_says_where_and_why(params: Any, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        parse_params("agent.report", params)


def test_what_a_vm_says_in_words_is_made_harmless() -> None:
    report = parse_params(
        "agent.report", with_device(description="<b>\x1b[31m\u202e" + "x" * 10_000, busy="a\nb")
    )
    assert report.devices[0].description.startswith("_b__[31m_xxx")
    assert len(report.devices[0].description) == 128
    assert report.devices[0].busy == "a_b"
    ended = parse_params(
        "attachment.ended", {"attachment": "0" * 16, "side": "export", "reason": "`id`"}
    )
    assert ended.reason == "_id_"


@pytest.mark.parametrize("attachment", ["", "0" * 15, "0" * 17, "A" * 16, "g" * 16, 5])
def test_an_attachment_is_16_hexadecimal_digits(attachment: object) -> None:
    with pytest.raises(RemoteProtocolError, match="attachment"):
        parse_params("export.stop", {"attachment": attachment})


@pytest.mark.parametrize(
    "options",
    [
        None,
        ["read-only"],
        {"read-only": True},
        {"read-only": "yes\n"},
        {"x" * 33: "yes"},
        {"read-only": "x" * 257},
        {str(n): "" for n in range(fields.OPTIONS_MAX + 1)},
    ],
)
def test_options_are_a_few_short_texts(options: object) -> None:
    attach = {
        "device_class": "block",
        "vm": "work",
        "backend": "sys-usb",
        "device": "sda",
        "options": {"read-only": "yes"},
        "persistent": False,
    }
    assert parse_params("device.attach", attach).options == {"read-only": "yes"}
    with pytest.raises(RemoteProtocolError, match="options"):
        parse_params("device.attach", {**attach, "options": options})


def test_methods_that_are_not_in_the_table_have_no_messages() -> None:
    with pytest.raises(RemoteProtocolError, match=r"'device\.eject' is not a method"):
        parse_params("device.eject", {})
    with pytest.raises(RemoteProtocolError, match="is not a method"):
        parse_result("x" * 1000, {})
    with pytest.raises(RemoteProtocolError, match="is a notice"):
        parse_result("operation.step", {})


def test_an_error_can_be_part_of_a_result() -> None:
    error = CallError("busy", "it is attached to work", {"hint": "qvm-device block detach work"})
    info = messages.ErrorInfo.of(error)
    item = messages.DetachItem("sys-usb", "sda", False, False, info)
    result = messages.DetachResult((item,), "0123456789ab")
    assert to_wire(result) == {
        "results": [
            {
                "backend": "sys-usb",
                "device": "sda",
                "detached": False,
                "unassigned": False,
                "error": {
                    "code": "busy",
                    "message": "it is attached to work",
                    "data": {"hint": "qvm-device block detach work"},
                },
            }
        ],
        "request": "0123456789ab",
        "policy_ok": None,
        "unassigned": [],
        "unassigned_left_out": 0,
    }
    assert parse_result("device.detach", to_wire(result)) == result


def test_a_report_with_all_that_is_allowed_fits_into_a_frame() -> None:
    device = {
        **DEVICE,
        "device": "d" * 64,
        "identity": "i" * 64,
        "description": "x" * 64,
        "size": 2**62,
        "parent": "p" * 16,
    }
    report = parse_params("agent.report", {**REPORT, "devices": [device] * 128})
    assert len(codec.encode([0, 1, "agent.report", to_wire(report)])) <= codec.FRAME_MAX


def test_what_is_optional_may_be_missing_and_nothing_else() -> None:
    report = parse_params("agent.report", REPORT)
    assert report.devices[0].stale is None
    with pytest.raises(RemoteProtocolError, match="busy is missing"):
        without = {name: value for name, value in DEVICE.items() if name != "busy"}
        parse_params("agent.report", REPORT | {"devices": [without]})


def test_room_is_what_is_left_of_a_frame_in_bytes_and_in_entries() -> None:
    text = "x" * 100
    assert wire_size(text) >= 100
    room = Room(3 * wire_size(text))
    assert [room.takes(text) for _ in range(5)] == [True, True, True, False, False]
    room = Room(codec.FRAME_MAX, entries=2)
    assert [room.takes(messages.VmStart("work")) for _ in range(3)] == [True, True, False]
    full = Room(codec.FRAME_MAX)
    many = list(iter(lambda: text if full.takes(text) else None, None))
    assert len(codec.encode([many])) <= codec.FRAME_MAX
