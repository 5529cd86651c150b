"""The kinds of interfaces of USB devices: all of them, or the mark that there are more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pedos_agent.device_classes import on_machine as discovery_sysfs
from pedos_agent.device_classes.usb.usb_kinds import kinds_of
from pedos_protocol.kinds import KINDS_MAX, open_part
from pedos_protocol.names import is_identity

KEYBOARD, STORAGE = "u030101", "u080650"


def configuration(*kinds: str, more: bytes = b"") -> bytes:
    """One configuration with these interfaces, each with an endpoint."""
    parts = b"".join(
        bytes((9, 4, number, 0, 1)) + bytes.fromhex(kind[1:]) + b"\0" + bytes((7, 5, 1, 2, 0, 2, 0))
        for number, kind in enumerate(kinds)
    )
    parts += more
    size = (9 + len(parts)).to_bytes(2, "little")
    return bytes((9, 2)) + size + bytes((len(kinds), 1, 0, 0x80, 50)) + parts


def descriptors(*configurations: bytes, announced: int | None = None) -> bytes:
    count = len(configurations) if announced is None else announced
    return bytes((18, 1, *bytes(15), count)) + b"".join(configurations)


def test_every_interface_of_every_configuration_counts() -> None:
    text = descriptors(configuration(STORAGE, "uff0000"), configuration(KEYBOARD))
    assert list(kinds_of(text)) == [STORAGE, "uff0000", KEYBOARD]


NOT_WHOLE = {
    "none": b"",
    "the device alone": descriptors(),
    "a configuration that did not come": descriptors(configuration(STORAGE), announced=2),
    "one more than was announced": descriptors(*[configuration(STORAGE)] * 2, announced=1),
    "cut in the middle": descriptors(configuration(STORAGE, KEYBOARD))[:-20],
    "a descriptor that is longer than what is left": descriptors(
        configuration(STORAGE, more=bytes((40, 4, 1)))
    ),
    "a descriptor of no length": descriptors(configuration(STORAGE, more=bytes(9))),
    "an interface that is too short": descriptors(configuration(STORAGE, more=bytes((3, 4, 1)))),
}


@pytest.mark.parametrize("text", NOT_WHOLE.values(), ids=list(NOT_WHOLE))
def test_what_cannot_be_read_is_not_left_out_in_silence(text: bytes) -> None:
    assert None in kinds_of(text)


@given(st.binary(max_size=200))
@example(descriptors(configuration(STORAGE)))
def test_any_bytes_give_kinds_or_that_they_are_not_known(text: bytes) -> None:
    found = list(kinds_of(text))
    assert found
    assert all(kind is None or len(kind) == 7 for kind in found)


def usb(tmp_path: Path, serial: bytes, text: bytes) -> str:
    """The identity of a device with these descriptors."""
    folder = tmp_path / "bus/usb/devices/1-1"
    folder.mkdir(parents=True)
    for name, value in (("idVendor", b"1234"), ("idProduct", b"5678"), ("serial", serial)):
        (folder / name).write_bytes(value + b"\n")
    (folder / "descriptors").write_bytes(text)
    (found,) = discovery_sysfs.scan(tmp_path, tmp_path)
    assert is_identity(found.device.identity)
    return found.device.identity


def test_a_keyboard_behind_nine_other_kinds_and_a_long_serial_is_told(tmp_path: Path) -> None:
    kinds = [STORAGE, *(f"uff{number:02x}00" for number in range(8)), KEYBOARD]
    identity = usb(tmp_path, b"A" * 126, descriptors(configuration(*kinds)))
    assert identity.endswith(":" + "".join(kinds))
    assert open_part("usb", identity) is None


def test_more_kinds_than_an_identity_holds_are_said_to_be_there(tmp_path: Path) -> None:
    kinds = [f"uff{number:02x}00" for number in range(KINDS_MAX)] + [KEYBOARD]
    identity = usb(tmp_path, b"A" * 126, descriptors(configuration(*kinds)))
    assert identity.endswith("".join(kinds[:-1]) + "u-unknown")
    assert open_part("usb", identity) is not None


TOO_LONG = descriptors(*[configuration(STORAGE)] * 3000, announced=8)


@pytest.mark.parametrize(
    "text", [b"", descriptors(configuration(STORAGE), announced=2), TOO_LONG], ids=len
)
def test_a_device_whose_interfaces_cannot_be_read_says_so(tmp_path: Path, text: bytes) -> None:
    assert usb(tmp_path, b"S", text).endswith("u-unknown")


def test_a_kind_that_comes_twice_is_said_once(tmp_path: Path) -> None:
    text = descriptors(configuration(STORAGE, STORAGE), configuration(STORAGE))
    assert usb(tmp_path, b"S", text) == f"1234:5678:S:{STORAGE}"


@pytest.mark.parametrize(
    ("one", "other"),
    [(b"S ", b"S"), (b"\xff", b"\xfe"), (b"A" * 300 + b"1", b"A" * 300 + b"2"), (b"a:b", b"a_b")],
)
def test_two_sticks_of_one_make_are_told_apart(tmp_path: Path, one: bytes, other: bytes) -> None:
    text = descriptors(configuration(STORAGE))
    assert usb(tmp_path / "one", one, text) != usb(tmp_path / "other", other, text)


def test_the_longest_identity_is_one(tmp_path: Path) -> None:
    kinds = [f"u{number:06x}" for number in range(100)]
    assert len(usb(tmp_path, b"\xf0" * 4000, descriptors(configuration(*kinds)))) <= 256
