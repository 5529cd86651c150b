"""dom0's device classes: what differs between them, and families that go across them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pedos_dom0
import pytest
import trio.testing
from pedos_dom0.device_classes.base import DeviceClass
from pedos_dom0.device_classes.registered import OWN, class_of
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_dom0.tables.device_set import DeviceKey
from pedos_dom0.tables.leases import PENDING, Lease, LeaseTable, Taken
from pedos_dom0.tables.registry import Registry
from pedos_protocol import device_classes as described
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import World, fails, named
from tests.dom0.test_registry import device, key

STICK = key("1-2", device_class="usb")
CONTROLLER = key("00_14.0", device_class="pci")


def stick_and_disk() -> Registry:
    registry = Registry()
    registry.replace(
        "sys-usb",
        [
            device("00_14.0", device_class="pci"),
            device("1-2", "00_14.0", device_class="usb", parent_class="pci"),
            device("sda", "1-2", parent_class="usb"),
            device("sda1", "sda"),
            device("sdb"),
            device("1-2", device_class="block"),
        ],
    )
    return registry


def lease(of: DeviceKey, vm: str, attachment: str) -> Lease:
    return Lease(attachment, of, vm, {}, None, 16, 3, 4, PENDING)


def test_a_stick_and_its_disk_are_one_family() -> None:
    registry = stick_and_disk()
    disks = {key("sda"), key("sda1")}
    assert registry.family(STICK) == {CONTROLLER, STICK, *disks}
    assert registry.family(CONTROLLER) == {CONTROLLER, STICK, *disks}
    assert registry.family(key("sda1")) == {CONTROLLER, STICK, *disks}
    assert registry.family(key("sdb")) == {key("sdb")}
    assert registry.family(key("1-2")) == {key("1-2")}, "an id says nothing in another class"


@pytest.mark.parametrize(
    ("first", "then"),
    [(STICK, key("sda1")), (key("sda1"), STICK), (CONTROLLER, key("sda"))],
    ids=str,
)
def test_two_vms_do_not_hold_one_piece_of_hardware(first: DeviceKey, then: DeviceKey) -> None:
    registry, leases = stick_and_disk(), LeaseTable()
    leases.grant(lease(first, "work", "a"), registry.family(first), shared=False)
    with pytest.raises(Taken):
        leases.grant(lease(then, "vault", "b"), registry.family(then), shared=False)
    # Also when its agent tells another story by then.
    leases.free("a")
    leases.grant(lease(first, "work", "a"), registry.family(first), shared=False)
    with pytest.raises(Taken):
        leases.grant(lease(then, "vault", "b"), {then}, shared=False)


async def test_a_stick_and_its_disk_exclude_each_other_by_what_an_agent_reports(
    world_with_a_stick: World, autojump_clock: Clock
) -> None:
    world = world_with_a_stick
    world.driver.carriers = {**world.driver.carriers, "usb": CarriedByAgents()}
    usb = world.driver.agents["sys-usb"]
    usb.plug("1-2", "usb")
    usb.plug("sdc", parent="1-2", parent_class="usb")
    usb.plug("sdc1", parent="sdc")
    await usb.report()
    stick, part = named("work", "sys-usb:1-2", "usb"), named("vault", "sys-usb:sdc1")
    for first, then in ((stick, part), (part, stick)):
        await world.client.call("device.attach", **first)
        with fails("busy", first["vm"]):
            await world.client.call("device.attach", **then)
        await world.client.call("device.detach", **first)
    await world.client.call("device.attach", **part)
    await world.client.call("device.attach", **named("work", "sys-usb:stick"))


async def test_the_class_of_a_parent_that_there_is_not_is_a_breach(
    local: World, autojump_clock: Clock
) -> None:
    usb = local.driver.agents["sys-usb"]
    usb.plug("sdc", parent_class="usb")
    with fails("unavailable"):
        await usb.report()
    await trio.testing.wait_all_tasks_blocked()
    (line,) = local.audit("disconnected")
    assert line["reason"] == "sdc has the class of a parent and no parent"


def test_a_microphone_is_for_several_vms() -> None:
    mic, leases = key("mic", device_class="mic"), LeaseTable()
    shared = class_of("mic").shared
    leases.grant(lease(mic, "work", "a"), {mic}, shared)
    leases.grant(lease(mic, "vault", "b"), {mic}, shared)
    with pytest.raises(Taken):
        leases.grant(lease(mic, "work", "c"), {mic}, shared)


@pytest.mark.parametrize(
    ("raw", "asked", "made"),
    [
        ({}, {}, {"read-only": "no"}),
        ({"read-only": "ON"}, {"read-only": "yes"}, {"read-only": "yes"}),
        ({"devtype": "disk"}, {}, {"read-only": "no"}),
        (
            {"devtype": "cdrom", "frontend-dev": "xvdj"},
            {"frontend-dev": "xvdj", "read-only": "yes", "devtype": "cdrom"},
            {"read-only": "yes", "devtype": "cdrom"},
        ),
    ],
)
def test_the_options_of_a_disk(
    raw: dict[str, str], asked: dict[str, str], made: dict[str, str]
) -> None:
    options = class_of("block").parse_options(raw)
    assert list(options.canonical().items()) == list(asked.items())
    read_only = options.read_only is True
    assert class_of("block").granted(options, read_only=read_only) == made
    assert class_of("block").parse_options(options.canonical()) == options


@pytest.mark.parametrize(
    ("device_class", "raw", "words"),
    [
        ("usb", {"read-only": "yes"}, "usb devices take no options, so not 'read-only'"),
        ("block", {"frontend-dev": "xvda"}, "it is a name from xvde to xvdz"),
        ("block", {"devtype": "cdrom", "read-only": "no"}, "a cdrom is read-only"),
        (
            "block",
            {"speed": "9"},
            "known for block: read-only=yes|no, frontend-dev=xvde..xvdz, devtype=disk|cdrom",
        ),
    ],
)
def test_options_that_make_no_sense(device_class: str, raw: dict[str, str], words: str) -> None:
    with pytest.raises(CallError, match=re.escape(words)) as raised:
        class_of(device_class).parse_options(raw)
    assert raised.value.code == "usage"


def test_a_class_without_options_is_read_only_where_a_rule_says_so() -> None:
    usb = class_of("usb")
    assert usb.granted(usb.parse_options({}), read_only=False) == {}
    assert usb.granted(usb.parse_options({}), read_only=True) == {"read-only": "yes"}
    assert usb.in_effect({}, "xvdi") == {}


def test_formatting_makes_no_other_disk_and_says_nothing_of_other_classes() -> None:
    assert class_of("block").lasting_identity("::1234-ABCD") == ""
    assert class_of("block").lasting_identity("046d:c52b:1") == "046d:c52b:1"
    assert class_of("usb").lasting_identity(None) == ""


def test_every_class_that_is_described_is_registered() -> None:
    for each in described.CLASSES:
        assert class_of(each.name).description is each
        assert type(class_of(each.name)) is OWN.get(each.name, DeviceClass)
    assert set(OWN) <= set(described.class_names())
    assert class_of("newer").names == ()


# What a class is stands in its own module, and how it is carried in a driver's. Only tables of
# drivers name it beside them.
NAME_BLOCK = {"drivers/local.py"}
ITS_OWN = {"device_classes/block.py", "device_classes/registered.py", "drivers/xen/block.py"}


def names(path: Path, word: str) -> bool:
    """Whether a module has a text, other than its documentation, that is a class's name or the
    name of a service or program of it."""
    tree = ast.parse(path.read_text())
    docs: set[int] = set()
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            docs.add(id(body[0].value))
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return any(
        id(node) not in docs
        and isinstance(node.value, str)
        and re.search(rf"(^|qvm-|qvm-device |device\.\w+\.){word}($| )", node.value)
        for node in texts
    )


def test_no_other_file_of_the_service_names_the_class_block() -> None:
    package = Path(str(pedos_dom0.__file__)).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if not path.is_relative_to(package / "local") and names(path, "block")
    }
    assert found - ITS_OWN == NAME_BLOCK
