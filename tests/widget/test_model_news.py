"""What is told of a device that has changed: which family it is of, whatever its VM makes up."""

from __future__ import annotations

from typing import Any

from pedos_protocol.fields import DEVICES_MAX
from pedos_widget.model.news import PARENTS_MAX, news
from pedos_widget.model.picture import Change, Picture
from pedos_widget.model.view import Happened

from tests.widget.fake_service import device, vm
from tests.widget.test_model_picture import answer

VMS = (vm("dom0"), vm("src"))


def appeared(*devices: dict[str, Any]) -> dict[str, Happened]:
    """What is told, by device, when all of them appear at once."""
    picture = Picture()
    picture.take(answer(list(devices), list(VMS)))
    changes = [Change(key, None, now) for key, now in picture.devices.items()]
    return {each.ref.device: each for each in news(changes, picture, lambda *_: False)}


def families(*devices: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, each in appeared(*devices).items():
        assert each.family is not None
        found[name] = each.family.device
    return found


def test_a_stick_is_the_family_of_its_disk_and_partition() -> None:
    assert families(
        device("src:2-1", "usb"),
        device("src:sda", parent="2-1", parent_class="usb"),
        device("src:sda1", parent="sda"),
        device("src:sdb", parent="gone"),
    ) == {"2-1": "2-1", "sda": "2-1", "sda1": "2-1", "sdb": "sdb"}


def test_a_circle_and_a_device_that_is_its_own_part_have_families() -> None:
    found = families(device("src:a", parent="b"), device("src:b", parent="a"))
    assert set(found) == {"a", "b"} and set(found.values()) <= {"a", "b"}
    assert families(device("src:c", parent="c")) == {"c": "c"}


def test_of_a_chain_of_thousands_only_a_few_are_looked_at_for_each() -> None:
    names = [f"d{number}" for number in range(DEVICES_MAX)]
    parents = [None, *names[:-1]]
    chain = [
        device(f"src:{name}", parent=parent) for name, parent in zip(names, parents, strict=True)
    ]
    assert families(*chain)[names[-1]] == names[-1 - PARENTS_MAX]
