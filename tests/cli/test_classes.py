"""A class that the service has and that this command line does not have built in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import qvm_device, qvm_policy
from pedos_cli.completion import candidates
from pedos_cli.qvm_device import main
from pedos_protocol.device_classes import CLASSES, class_names
from pedos_protocol.messages import ClassInfo, DeviceClassesListed, OptionInfo, to_wire

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]

PRINTER = ClassInfo(
    name="printer",
    one="printer",
    many="printers",
    source="sys-usb",
    example="inkjet",
    shared=True,
    live=True,
    written=False,
    options=(OptionInfo("colour", ("yes", "no"), "no", "yes"),),
)


@pytest.fixture
def newer(service: FakeService) -> FakeService:
    service.replies["device.classes"] = to_wire(DeviceClassesListed((PRINTER,)))
    service.replies["device.list"] = {"devices": [], "policy": None}
    return service


def test_the_classes_are_those_of_the_service(newer: FakeService, capsys: Captured) -> None:
    assert main(["--list-device-classes"]) == 0
    assert capsys.readouterr().out == "printer\n"
    assert main(["--list-device-classes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"device_classes": ["printer"]}


def test_its_devices_are_listed_and_attached(newer: FakeService, capsys: Captured) -> None:
    assert main(["printer"]) == 0
    assert newer.asked("device.list")["device_class"] == "printer"
    newer.replies["device.attach"] = {
        "outcome": "attached", "options": {"colour": "no"}, "request": "r1", "vm": "work",
    }  # fmt: skip
    assert main(["printer", "attach", "work", "sys-usb:inkjet", "-o", "colour=OFF"]) == 0
    assert newer.asked("device.attach")["device_class"] == "printer"
    assert capsys.readouterr().out == "sys-usb:inkjet attached to work (colour=no)\n"


def test_its_help_has_its_own_example(newer: FakeService, capsys: Captured) -> None:
    assert main(["printer", "attach", "--help"]) == 0
    text = capsys.readouterr().out
    assert "qvm-device printer attach work sys-usb:inkjet -o colour=no" in text


def test_a_class_that_is_built_in_is_not_asked_for(newer: FakeService) -> None:
    main(["block", "list"])
    assert [method for method, _ in newer.calls] == ["device.list"]


def test_it_is_completed(newer: FakeService) -> None:
    parser = qvm_device.build_parser()
    assert candidates(parser, [], "") == ["printer", "watch"]
    actions = list(qvm_device.ACTIONS.keys() - {"mute", "unmute"})
    assert sorted(candidates(parser, ["printer"], "")) == sorted(actions)
    assert candidates(parser, ["printer", "attach", "-o"], "") == ["colour=no"]
    assert "device.attach.printer" in candidates(qvm_policy.build_parser(), ["explain"], "")


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        {"classes": 5},
        {"classes": [{}]},
        {"classes": []},
        {"classes": [{**to_wire(PRINTER), "name": "--help"}]},
        {"classes": [{**to_wire(PRINTER), "options": [{"name": "colour"}]}]},
    ],
)
def test_without_a_proper_answer_they_are_those_built_in(
    service: FakeService, capsys: Captured, nonsense: dict[str, Any]
) -> None:
    service.replies["device.classes"] = nonsense
    assert main(["--list-device-classes"]) == 0
    assert capsys.readouterr().out.split() == list(class_names())


def test_an_older_service_or_none_leaves_those_built_in(
    service: FakeService, no_service: Path, capsys: Captured
) -> None:
    for path in (str(service.path), str(no_service)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PEDOS_SOCKET", path)
            assert main(["printer", "list"]) == 2
    error = capsys.readouterr().err
    assert error.count("'printer' is no device class: the classes are block, usb, pci, mic") == 2


def test_what_is_built_in_can_be_said_on_the_wire() -> None:
    from pedos_cli.classes import _class

    for each in CLASSES:
        options = tuple(OptionInfo(o.name, o.values, o.example, o.default) for o in each.options)
        told = ClassInfo(
            name=each.name, one=each.one, many=each.many, source=each.source, example=each.example,
            shared=each.shared, live=each.live, written=each.written, options=options,
        )  # fmt: skip
        heard = _class(to_wire(told))
        assert heard.example_device == each.example_device
        assert [o.values for o in heard.options] == [o.values for o in each.options]
