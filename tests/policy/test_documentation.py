"""The statements of docs/policy.md about rules are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_agent.device_classes.block.identity import identity_of
from pedos_agent.inventory.identities import part
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts
from pedos_protocol.names import is_identity

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"
SYSTEM = System({name: VmFacts(name) for name in ("work", "sys-usb")})


def forms(about: str) -> tuple[str, str, str]:
    """Of the sentence that has these words: the form that a serial number satisfies, the one that
    none does, and that one in full."""
    (paragraph,) = (each for each in PAGE.read_text().split("\n\n") if "(in full" in each)
    (sentence,) = (each for each in re.split(r"(?<=\.)\s", paragraph) if about in each)
    found = re.search(r"`(\S+)`.*?`([^`]*:[^`]*)` \(in full\s`(\S+)`\)", sentence, re.DOTALL)
    assert found is not None, sentence
    return found.group(1), found.group(2), found.group(3)


USB_LOOSE, USB, USB_IN_FULL = forms("looks at the kinds alone")
DISK_LOOSE, DISK, DISK_IN_FULL = forms("looks at the file system's UUID alone")
NAMED = DISK.rpartition(":")[2]


def is_met(device_class: str, argument: str, identity: str) -> bool:
    """Whether a device with this identity is what a rule is about that has this argument."""
    assert is_identity(identity)
    rules, errors = parse_file("a.policy", f"device.attach.{device_class} {argument} * * allow")
    assert errors == []
    request = Request(f"device.attach.{device_class}", f"+sys-usb:sda:{identity}", "dom0", "work")
    return evaluate(request, Snapshot(rules), SYSTEM).verdict == "allow"


def usb(serial: str, kinds: str = "u080650") -> str:
    return f"0781:5581:{part(serial)}:{kinds}"


def made_up(wanted: str) -> st.SearchStrategy[str]:
    """Serial numbers with what a rule looks for in them, and whatever else a device says."""
    around = st.text(st.sampled_from(":*u03_-./\\ \u00e9") | st.characters(), max_size=20)
    return st.builds(lambda before, after: before + wanted + after, around, around)


def test_the_document_shows_each_form_as_a_part_of_the_whole() -> None:
    for form, in_full in ((USB, USB_IN_FULL), (DISK, DISK_IN_FULL)):
        assert in_full == f"+sys-usb:*:{form}"


@pytest.mark.parametrize("argument", [USB_IN_FULL, f"+sys-usb:*:{USB_LOOSE}"])
def test_the_forms_for_kinds_match_what_has_the_kind(argument: str) -> None:
    assert is_met("usb", argument, usb("4C53", "u080650u030101"))
    assert not is_met("usb", argument, usb("4C53"))


@pytest.mark.parametrize("argument", [DISK_IN_FULL, f"+sys-usb:*:{DISK_LOOSE}"])
def test_the_forms_for_disks_match_the_file_system_that_is_named(argument: str) -> None:
    assert is_met("block", argument, identity_of({"ID_FS_UUID": NAMED}))
    assert not is_met("block", argument, identity_of({"ID_FS_UUID": "5678-ABCD"}))


def test_the_forms_that_the_document_warns_of_are_satisfied_by_a_serial_number() -> None:
    assert is_met("usb", f"+sys-usb:*:{USB_LOOSE}", usb("xu03x"))
    assert is_met("block", f"+sys-usb:*:{DISK_LOOSE}", identity_of({"ID_SERIAL": f"x{NAMED}"}))


@given(serial=made_up("u03") | made_up(":u030101") | made_up("u030101"))
def test_no_made_up_serial_number_satisfies_the_form_for_kinds(serial: str) -> None:
    assert not is_met("usb", USB_IN_FULL, usb(serial))


@given(serial=made_up(NAMED) | made_up(f":{NAMED}") | made_up(f"::{NAMED}"))
def test_no_made_up_serial_number_satisfies_the_form_for_disks(serial: str) -> None:
    for said in ({"ID_SERIAL": serial}, {"ID_WWN": serial}, {"DM_UUID": serial}):
        assert not is_met("block", DISK_IN_FULL, identity_of(said))
