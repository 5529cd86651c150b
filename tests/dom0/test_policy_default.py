"""The default policy does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pedos_dom0
import pytest
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts

SYSTEM = System({name: VmFacts(name) for name in ("work", "sys-usb")})
FILE = Path(pedos_dom0.__file__).parent / "policy.d" / "90-default.policy"
KEYBOARD = "+sys-usb:1-2:046d:c31c:x:u030101"
RECEIVER = "+sys-usb:1-2:046d:c52b::u080650u030101u030102"
STICK = "+sys-usb:sda:0781:5581:x:u080650"


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
        ("allow", "device.attach.pci", "+dom0:00_1f.0:8086:a0c8", "dom0", "work"),
        ("ask", "device.attach.usb", KEYBOARD, "dom0", "work"),
        ("ask", "device.assign.usb", KEYBOARD, "dom0", "work"),
        ("ask", "device.attach.usb", RECEIVER, "dom0", "work"),
        ("allow", "device.attach.usb", STICK, "dom0", "work"),
        ("deny", "device.attach.block", STICK, "dom0", "nobody"),
        ("deny", "device.attach.usb", STICK, "sys-usb", "dom0"),
        ("deny", "device.attach.block", STICK, "dom0", "dom0"),
        ("deny", "device.attach.block", STICK, "work", "work"),
        ("deny", "device.attach.block", STICK, "sys-usb", "work"),
        ("deny", "device.attach.usb", KEYBOARD, "work", "work"),
        ("deny", "device.detach.block", STICK, "work", "work"),
        ("deny", "device.list.block", STICK, "work", "dom0"),
    ],
)
def test_the_shipped_policy(
    shipped: Snapshot, verdict: str, service: str, argument: str, source: str, target: str
) -> None:
    request = Request(service, argument, source, target)
    assert evaluate(request, shipped, SYSTEM).verdict == verdict


def test_the_examples_in_its_comments_are_rules() -> None:
    examples = re.findall(r"^# +(device\..*)$", FILE.read_text(), re.MULTILINE)
    rules, errors = parse_file("examples", "\n".join(e for e in examples if "VERB" not in e))
    assert errors == []
    assert len(rules) >= 5
