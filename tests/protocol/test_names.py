from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol import names
from pedos_protocol.device_classes import CLASSES
from pedos_protocol.names import DeviceName


@pytest.mark.parametrize("name", ["a", "sys-usb", "Work_2", "dom0", "a" * 31])
def test_vm_names(name: str) -> None:
    assert names.is_vm_name(name)
    assert names.parse_vm_name(name) == name


@pytest.mark.parametrize(
    "bad", ["", "1a", "-a", "_a", "a" * 32, "a b", "a\n", "a.b", "ä", "a:b", "@anyvm", "a/b", "²"]
)
def test_what_is_no_vm_name(bad: str) -> None:
    assert not names.is_vm_name(bad)
    with pytest.raises(ValueError, match="is not a VM name: a letter, then at most 30"):
        names.parse_vm_name(bad)


@pytest.mark.parametrize("good", ["sda", "1-2.3", "00_1f.2", "stick.img", "a" * 64])
def test_device_ids(good: str) -> None:
    assert names.parse_device_id(good) == good


@pytest.mark.parametrize(
    "bad", ["", ".hidden", "-x", "_x", "a" * 65, "a/b", "..", "a\n", "ä", "a b"]
)
def test_what_is_no_device_id(bad: str) -> None:
    with pytest.raises(ValueError, match="is not a device id"):
        names.parse_device_id(bad)


def test_a_device_is_named_by_its_source_and_id() -> None:
    device = names.parse_device_name("sys-usb:1-2.3")
    assert device == DeviceName("sys-usb", "1-2.3")
    assert hash(device) == hash(DeviceName("sys-usb", "1-2.3"))
    assert device != DeviceName("sys-usb", "1-2.4")
    assert str(device) == "sys-usb:1-2.3"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("sda", "SOURCE:ID is meant, as in sys-usb:sda1"),
        ("", "SOURCE:ID is meant"),
        (":sda", "'' is not a VM name"),
        ("sys-usb:", "'' is not a device id"),
        ("sys-usb:a:b", "'a:b' is not a device id"),
        ("a" * 50 + ":x", r"\.\.\. \(50 characters\) is not a VM name"),
        ("a\x1b[31m:x", r"'a\\x1b\[31m' is not a VM name"),
        ("\u043c\u043e\u0439:x", "'\u043c\u043e\u0439' is not a VM name"),
        ("\u043c\u202e'\U0001f600:x", r"\"\u043c\\u202e'\\U0001f600\" is not a VM name"),
    ],
)
def test_a_wrong_device_name_is_shown_harmlessly_with_what_would_be_right(
    bad: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        names.parse_device_name(bad)


def test_a_value_that_is_no_text_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="a value of type bytes is not a VM name"):
        names.parse_vm_name(b"work")
    with pytest.raises(ValueError, match="a value of type list is not a device"):
        names.parse_device_name(["work", "sda"])


def test_the_vms_own_disks_are_never_given_to_a_lent_device() -> None:
    assert names.frontend_names()[0] == "xvdi"
    assert sorted(names.frontend_names()) == [f"xvd{c}" for c in "efghijklmnopqrstuvwxyz"]
    for own in ("xvda", "xvdb", "xvdc", "xvdd", "xvd", "xvdaa", "xvdi1", "sda", "xvdI"):
        assert not CLASSES[0].may_be_called(own)


@pytest.mark.parametrize("bad", ["", "xvd i", "-x", "a/b", "x" * 65, None, 7])
def test_a_name_in_a_target_is_harmless_whatever_its_class(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a name for a lent device"):
        names.parse_name_in_target(bad)


@pytest.mark.parametrize(
    ("device", "frontend"),
    [
        ("xvdi", "xvdi"),
        ("xvdi12", "xvdi"),
        ("xvda1", "xvda"),
        ("xvd", None),
        ("xvd1", None),
        ("xvdaa", None),
        ("xvdI", None),
        ("xvdi1p1", None),
        ("sda1", None),
        ("xvdi\n", None),
        ("", None),
    ],
)
def test_a_partition_is_of_its_frontend(device: str, frontend: str | None) -> None:
    assert names.frontend_of(device) == frontend


def test_harmless_text_keeps_what_people_write_and_nothing_that_programs_read() -> None:
    assert names.harmless_text("SanDisk Ultra (32 GB), #2: 100%!") == (
        "SanDisk Ultra (32 GB), #2: 100%!"
    )
    assert names.harmless_text('<b>&"\\`\x1b[31m\n\u202eä\u0000') == "_b______[31m__ä_"


@pytest.mark.parametrize(
    "text",
    ["Müllers Sticks", "Фото 2024", "写真とデータ", "ข้อมูล", "गोपनीय", "تصاوير ٣", "Việt Nam"],
)
def test_letters_of_all_scripts_survive(text: str) -> None:
    assert names.harmless_text(text) == names.printable_text(text, 128) == text


@pytest.mark.parametrize(
    "text",
    [
        *("\u202e", "\u2066", "\u200f", "\u061c"),  # turn the direction of writing
        *("\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\ufeff"),  # blanks, and none
        *(
            "\u3164",
            "\u115f",
            "\uffa0",
            "\u034f",
            "\ufe0f",
            "\u17b4",
            "\u2800",
        ),  # "letters" that are blank
        *("\n", "\r", "\t", "\x1b", "\x07", "\x7f", "\x9b", "\ud800", "\ue000", "\U000e0041"),
    ],
)
def test_what_is_not_seen_or_moves_other_text_does_not_survive(text: str) -> None:
    assert names.harmless_text(f"a{text}b") == names.printable_text(f"a{text}b", 128) == "a_b"
    assert names.harmless_text(f"ä{text}b") == "ä_b"
    assert not names.is_printable(text)
    escaped = names.escaped_text(f"a{text}b")
    assert escaped.isascii() and escaped.isprintable() and escaped.startswith("a\\")


def test_a_letter_has_few_marks() -> None:
    assert names.harmless_text("\u0301x" + "a" + 9 * "\u0301") == "_xa" + 4 * "\u0301" + 5 * "_"


def test_no_script_makes_a_text_longer_than_another() -> None:
    text = names.harmless_text("写" * 100, 128)
    assert text == "写" * 41 + "..."
    assert len(text.encode()) <= 128


@given(st.text(max_size=300), st.integers(0, 200))
def test_harmless_text_is_bounded_and_stays_as_it_is(text: str, limit: int) -> None:
    harmless = names.harmless_text(text, limit)
    assert len(harmless) <= limit
    assert not set(harmless) & set('<>&"\\`\n\x1b')
    assert len(harmless.encode()) <= limit
    assert names.is_printable(harmless)
    assert not any(each.isspace() and each != " " for each in harmless)
    assert names.harmless_text(harmless, limit) == harmless
    assert names.is_printable(names.printable_text(text, limit))
    assert len(names.printable_text(text, limit)) <= limit
    assert names.is_printable(names.escaped_text(text))
    assert names.escaped_text(names.escaped_text(text)) == names.escaped_text(text)


def test_ten_kilobytes_of_text_become_one_line() -> None:
    assert names.harmless_text("x" * 10_000) == "x" * 125 + "..."


def test_numbers_sort_as_numbers() -> None:
    devices = ["sda10", "sda2", "sda", "1-10", "1-2", "sdb1", "sda02", "1-2.1"]
    assert sorted(devices, key=names.natural_key) == [
        "1-2",
        "1-2.1",
        "1-10",
        "sda",
        "sda02",
        "sda2",
        "sda10",
        "sdb1",
    ]


@pytest.mark.parametrize("source", ["", "dom0:"])
def test_pci_devices_sort_by_their_hexadecimal_slots(source: str) -> None:
    ids = ["00_02.0", "00_0a.0", "00_1a.0", "00_1c.0", "00_1c.0-00.0", "00_1c.0-01.0", "00_1f.0"]
    ids += ["00_1f.3", "3a_00.0", "10000_00_1f.0"]
    named = [source + each for each in ids]
    assert sorted([*named[5:], *named[:5]], key=names.natural_key) == named
    assert names.natural_key("sda_2") < names.natural_key("sda_10"), "which is no PCI device"


@given(st.text(max_size=30), st.text(max_size=30))
def test_natural_order_is_an_order_of_all_texts(one: str, other: str) -> None:
    key, other_key = names.natural_key(one), names.natural_key(other)
    assert (key == other_key) == (one == other)
    assert (key < other_key) or (other_key < key) or one == other


def test_a_number_of_any_length_sorts() -> None:
    assert names.natural_key("9" * 10_000) < names.natural_key("1" + "0" * 10_000)
