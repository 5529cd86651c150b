"""The description of each class of devices."""

from __future__ import annotations

import typing

import pytest
from pedos_protocol import device_classes, kinds, names
from pedos_protocol.device_classes import (
    CLASSES,
    OPTION_NAME_MAX,
    OPTION_VALUE_MAX,
    OPTIONS_MAX,
    DeviceClass,
    class_named,
    services,
)
from pedos_protocol.messages import Verb


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.name)
def test_a_description_keeps_to_what_the_wire_allows(each: DeviceClass) -> None:
    assert device_classes.is_class_name(each.name)
    assert names.parse_device_name(each.example_device).id == each.example
    assert len(each.options) <= OPTIONS_MAX
    for option in each.options:
        assert len(option.name) <= OPTION_NAME_MAX
        assert 0 < len(option.values) <= device_classes.VALUES_MAX
        assert all(0 < len(value) <= OPTION_VALUE_MAX for value in option.values)
        assert option.example in option.values
        assert option.default is None or option.default in option.values


def test_the_verbs_are_those_of_the_messages() -> None:
    assert typing.get_args(Verb) == device_classes.VERBS


def test_each_verb_of_each_class_is_a_service() -> None:
    assert len(services()) == len(device_classes.VERBS) * len(CLASSES)
    assert services(["attach"], ["block", "usb"]) == ("device.attach.block", "device.attach.usb")


def test_classes_have_names_of_their_own_and_letters_too() -> None:
    assert len({each.name for each in CLASSES}) == len(CLASSES) <= device_classes.CLASSES_MAX
    assert len(set(kinds.letters().values())) == len(kinds.letters())


def test_what_is_not_described_is_none() -> None:
    assert class_named("block") is CLASSES[0]
    assert class_named("floppy") is None
    assert class_named(None) is None


@pytest.mark.parametrize(
    ("value", "kept"), [("yes", "yes"), ("TRUE", "yes"), ("1", "yes"), ("off", "no"), ("No", "no")]
)
def test_yes_and_no_have_other_words(value: str, kept: str) -> None:
    read_only = CLASSES[0].options[0]
    assert read_only.canonical(value) == kept


@pytest.mark.parametrize("bad", ["", "Block", "block1", "b-k", "a" * 17, "blöck", "a b"])
def test_what_is_no_name_of_a_class(bad: str) -> None:
    assert not device_classes.is_class_name(bad)
