"""What a person is told of a device's kinds of interfaces."""

from __future__ import annotations

import re
from pathlib import Path

import pedos_dom0
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol.kind_words import PCI, USB, in_short, interfaces, words
from pedos_protocol.kinds import KINDS_MAX, with_kinds
from pedos_protocol.names import IDENTITY_MAX

POLICY = Path(pedos_dom0.__file__).parent / "policy.d" / "90-default.policy"
# Of these a prompt shows so many characters of a field (pedos_cli.output.TEXT_MAX).
SHOWN = 512
kinds = st.text("0123456789abcdef", min_size=6, max_size=6).map(lambda code: f"u{code}")
bad = st.sampled_from(sorted(code for code in USB if code[:2] in ("03", "e0", "ff")))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("u030101", "HID: keyboard"),
        ("u030102", "HID: mouse"),
        ("u030000", "HID: types, points, or has buttons of another sort"),
        ("u080650", "mass storage"),
        ("u080101", "mass storage"),
        ("u0e0200", "video: camera"),
        ("u770102", "class 77"),
        ("p0c0330", "USB controller"),
        ("p010802", "NVMe controller"),
        ("p0600ff", "Host bridge"),
        ("p990000", "class 99"),
    ],
)
def test_a_kind_has_the_words_of_the_longest_code_that_is_known(kind: str, said: str) -> None:
    assert words(kind) == said


@pytest.mark.parametrize("table", [USB, PCI])
def test_the_codes_are_whole_and_a_part_has_words_where_the_whole_has_them(
    table: dict[str, str],
) -> None:
    for code, said in table.items():
        assert re.fullmatch("(?:[0-9a-f]{2}){1,3}", code)
        assert said.isascii() and said.isprintable() and code[:2] in table


def test_what_is_not_known_is_said_too() -> None:
    assert interfaces("usb", "1:2:S:u080650u030101") == [
        ("u080650", "mass storage"),
        ("u030101", "HID: keyboard"),
    ]
    more = ("u-unknown", "more that is not known")
    assert interfaces("usb", "1:2:S:u080650u-unknown") == [("u080650", "mass storage"), more]
    for identity in ("", "1:2:S:", "1:2", "u080650", "1:2:S:u-unknown", "1:2:S:x"):
        assert interfaces("usb", identity) == [("u-unknown", "not known")]
    assert interfaces("block", "S:P:F") == interfaces("block", "a:b:c:u080650") == []
    assert interfaces("mic", "") == []


@given(st.lists(kinds, max_size=KINDS_MAX + 3), bad, st.booleans())
def test_a_text_that_is_cut_names_what_types_or_is_not_known(
    many: list[str], code: str, is_open: bool
) -> None:
    """However many others a device claims to have."""
    typing = f"u{code.ljust(6, '0')}"
    identity = with_kinds("0781:5581:x", "usb", [*many[: KINDS_MAX - 1], typing])
    identity += "u-unknown" * (is_open and not identity.endswith("unknown"))
    assert len(identity) <= IDENTITY_MAX
    told = in_short("usb", identity)[:SHOWN]
    assert words(typing) in told
    assert ("not known" in told) == identity.endswith("unknown")


def test_what_comes_first_is_what_the_shipped_policy_asks_about() -> None:
    rule = re.compile(r"^device\.attach\.\S+ +\+\*:\*:\*([up]\w+)\*", re.MULTILINE)
    asked = set(rule.findall(POLICY.read_text()))
    for begins in asked:
        letter = "usb" if begins[0] == "u" else "pci"
        harmless = "u080650" if begins[0] == "u" else "p020000"
        kind = begins.ljust(7, "0")
        assert in_short(letter, f"1:2::{harmless}{kind}").startswith(words(kind))
    assert len(asked) == 4
