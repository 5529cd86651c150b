"""The default policy does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pedos_dom0
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_dom0.local import templates
from pedos_dom0.policy import lint, loose_kinds
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts
from pedos_protocol.kinds import KINDS_MAX, with_kinds

SYSTEM = System({name: VmFacts(name) for name in ("work", "sys-usb")})
FILE = Path(pedos_dom0.__file__).parent / "policy.d" / "90-default.policy"
KEYBOARD = "+sys-usb:1-2:046d:c31c:x:u030101"
RECEIVER = "+sys-usb:1-2:046d:c52b::u080650u030101u030102"
STICK = "+sys-usb:sda:0781:5581:x:u080650"
BAD_STICK = "+sys-usb:1-2:0781:5581:x:u080650u030101"
BLUETOOTH = "+sys-usb:1-2:8087:0029::ue00101"
TOUCH_SCREEN = "+sys-usb:1-2:0eef:0001::uff0000"
HALF_KNOWN = "+sys-usb:1-2:0781:5581:x:u080650u-unknown"
WEBCAM = "+sys-usb:1-2:046d:0825:77:u0e0100u0e0200u010100u010200"
NETWORK_CARD = "+dom0:00_1f.6:8086:15d3::p020000"
USB_CONTROLLER = "+dom0:00_14.0:8086:a0ed::p0c0330"
INPUT_CONTROLLER = "+dom0:00_15.0:8086:1234::p090000"


@pytest.fixture(scope="module")
def shipped() -> Snapshot:
    rules, errors = parse_file(FILE.name, FILE.read_bytes())
    assert errors == []
    return Snapshot(rules)


@pytest.mark.parametrize(
    ("verdict", "service", "argument", "source", "target"),
    [
        ("allow", "device.list.block", STICK, "dom0", "dom0"),
        ("allow", "device.list.usb", KEYBOARD, "work", "work"),
        ("allow", "device.attach.block", STICK, "dom0", "work"),
        ("allow", "device.assign.block", STICK, "dom0", "work"),
        ("allow", "device.detach.usb", KEYBOARD, "dom0", "work"),
        ("allow", "device.attach.mic", "+dom0:mic:", "dom0", "work"),
        ("allow", "device.attach.pci", NETWORK_CARD, "dom0", "work"),
        ("allow", "device.attach.pci", USB_CONTROLLER, "dom0", "sys-usb"),
        ("allow", "device.assign.pci", USB_CONTROLLER, "dom0", "sys-usb"),
        ("ask", "device.attach.pci", INPUT_CONTROLLER, "dom0", "work"),
        ("ask", "device.assign.pci", INPUT_CONTROLLER, "dom0", "work"),
        # Its class is not known.
        ("ask", "device.attach.pci", "+dom0:00_1f.0:8086:a0c8", "dom0", "work"),
        ("deny", "device.attach.pci", NETWORK_CARD, "work", "work"),
        ("deny", "device.assign.pci", NETWORK_CARD, "work", "work"),
        ("deny", "device.attach.pci", NETWORK_CARD, "sys-usb", "work"),
        ("ask", "device.attach.usb", KEYBOARD, "dom0", "work"),
        ("ask", "device.assign.usb", KEYBOARD, "dom0", "work"),
        ("ask", "device.attach.usb", RECEIVER, "dom0", "work"),
        ("allow", "device.attach.usb", STICK, "dom0", "work"),
        ("allow", "device.attach.usb", WEBCAM, "dom0", "work"),
        ("allow", "device.detach.usb", BAD_STICK, "dom0", "work"),
        ("deny", "device.attach.block", STICK, "dom0", "nobody"),
        ("deny", "device.attach.usb", STICK, "sys-usb", "dom0"),
        ("deny", "device.attach.block", STICK, "dom0", "dom0"),
        ("deny", "device.attach.block", STICK, "work", "work"),
        ("deny", "device.attach.block", STICK, "sys-usb", "work"),
        ("deny", "device.attach.usb", KEYBOARD, "work", "work"),
        ("deny", "device.detach.block", STICK, "work", "work"),
        ("deny", "device.list.block", STICK, "work", "dom0"),
        ("allow", "my.Service", "+", "dom0", "work"),
        ("deny", "my.Service", "+", "dom0", "@default"),
        ("deny", "my.Service", "+", "work", "sys-usb"),
        ("deny", "my.Service", "+", "work", "dom0"),
        ("deny", "my.Service", "+", "work", "@default"),
    ],
)
def test_the_shipped_policy(
    shipped: Snapshot, verdict: str, service: str, argument: str, source: str, target: str
) -> None:
    request = Request(service, argument, source, target)
    assert evaluate(request, shipped, SYSTEM).verdict == verdict


@pytest.mark.parametrize(
    "argument", [KEYBOARD, RECEIVER, BAD_STICK, BLUETOOTH, TOUCH_SCREEN, HALF_KNOWN]
)
@pytest.mark.parametrize("verb", ["attach", "assign"])
@pytest.mark.parametrize("file", [FILE.read_text(), templates.POLICY])
def test_what_types_or_points_or_may_is_asked_about(argument: str, verb: str, file: str) -> None:
    rules, errors = parse_file("shipped", file)
    assert errors == []
    for source, verdict in (("dom0", "ask"), ("work", "deny"), ("sys-usb", "deny")):
        request = Request(f"device.{verb}.usb", argument, source, "work")
        assert evaluate(request, Snapshot(rules), SYSTEM).verdict == verdict


HARMLESS = st.sampled_from(["u080650", "u0e0100", "u010200", "u0b0000", "u070102", "u020600"])
CLASSES = st.sampled_from(["03", "e0", "ff"])
CODES = st.text("0123456789abcdef", min_size=4, max_size=4)
TYPING = st.builds(lambda first, rest: f"u{first}{rest}", CLASSES, CODES)
# What an agent makes of a serial number, among them some that look like kinds.
SERIALS = st.text("u08_-.xA", max_size=12)


@pytest.mark.parametrize("verb", ["attach", "assign"])
@given(
    serial=SERIALS,
    before=st.lists(HARMLESS, max_size=KINDS_MAX),
    typing=TYPING,
    after=st.lists(HARMLESS, max_size=KINDS_MAX),
)
def test_no_device_that_may_type_passes_whatever_else_it_has(
    shipped: Snapshot, verb: str, serial: str, before: list[str], typing: str, after: list[str]
) -> None:
    """Not in the twentieth place, nor behind it, where nothing of it is in the identity."""
    identity = with_kinds(f"0781:5581:{serial}", "usb", [*before, typing, *after])
    request = Request(f"device.{verb}.usb", f"+sys-usb:1-2:{identity}", "dom0", "work")
    assert evaluate(request, shipped, SYSTEM).verdict == "ask"


@given(serial=SERIALS, kinds=st.lists(HARMLESS, min_size=1, max_size=6))
def test_what_cannot_type_is_not_asked_about(
    shipped: Snapshot, serial: str, kinds: list[str]
) -> None:
    identity = with_kinds(f"0781:5581:{serial}", "usb", kinds)
    request = Request("device.attach.usb", f"+sys-usb:1-2:{identity}", "dom0", "work")
    assert evaluate(request, shipped, SYSTEM).verdict == "allow"


@pytest.mark.parametrize("file", [FILE.read_text(), templates.POLICY])
def test_check_finds_nothing_in_it(file: str) -> None:
    rules, errors = parse_file("shipped", file)
    assert errors == []
    assert [*lint.errors(rules), *lint.warnings(rules), *loose_kinds.notes(rules)] == []


def test_the_examples_in_its_comments_are_rules() -> None:
    examples = re.findall(r"^# +(device\..*)$", FILE.read_text(), re.MULTILINE)
    rules, errors = parse_file("examples", "\n".join(e for e in examples if "VERB" not in e))
    assert errors == []
    assert len(rules) >= 5
