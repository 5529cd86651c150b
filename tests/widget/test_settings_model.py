"""The settings of a VM without a window: what is read, edited and tried."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.messages import AssignedNow, AttachedTo, Conflict, to_wire
from pedos_widget.settings.model import Loaded, Settings, State, candidate_of
from pedos_widget.settings.saving import lasting_identity, load, save

from tests.protocol.test_imports import modules_imported_by
from tests.widget.settings_service import STICK, Service, assigned, listed
from tests.widget.settings_steps import add, nothing, opened, row_of, states, tried, usual_service

PRESENT = AssignedNow(matches=("1-2",), verdict="allow", rule="30-user.policy:3", runs=True)
DENIED = CallError(
    "denied", "assign sys-usb:1-3 -> work", {"rule": "30-user.policy:4", "text": "a rule"}
)
HOSTILE = "<b>x</b>\u202e\x1b[2J  &"


@pytest.fixture
def service() -> Service:
    return usual_service()


# What is shown


async def test_the_assignments_of_all_classes_are_read_and_said_as_the_commands_do(
    service: Service,
) -> None:
    service.stored["pci"] = [assigned("dom0:00_1c.0", mode="required")]
    settings = await opened(service)
    assert settings.runs is True
    assert [(row.shown.name, settings.lines(row)) for row in settings.rows] == [
        (f"sys-usb:1-2:{STICK}", ["present"]),
        ("dom0:00_1c.0", ["not present", "It takes effect at the next start of work."]),
    ]
    assert settings.is_saved and settings.to_save() == []


async def test_what_is_assigned_to_other_vms_is_not_of_these_settings(service: Service) -> None:
    theirs = to_wire(assigned("work:sda", vm="vault"))  # it is listed, since work is its source
    settings = Settings("work")
    settings.load(Loaded(True, {"block": [theirs]}, {}))
    assert settings.rows == []


async def test_a_removed_vm_keeps_its_assignments_which_can_be_removed(service: Service) -> None:
    service.stored["usb"] = [assigned("sys-usb:1-9", vm="old", orphaned=True)]
    settings = await opened(service, "old")
    assert settings.runs is None
    (row,) = settings.rows
    assert settings.lines(row) == ["the VM was removed"]
    settings.remove(row.key)
    await save(service, settings, nothing)
    assert settings.rows == [] and service.stored["usb"] == []


async def test_a_class_that_the_service_does_not_have_is_told_and_the_rest_is_shown(
    service: Service,
) -> None:
    service.stored = {"usb": service.stored["usb"]}
    settings = Settings("work")
    whole = await load(service, "work")
    settings.load(whole)
    service.refuse["device.assignments None"] = CallError("usage", "no class of that name")
    settings.load(await load(service, "work"))
    assert [row.shown.name for row in settings.rows] == [f"sys-usb:1-2:{STICK}"]
    assert any("no class of that name" in each for each in settings.troubles)


async def test_an_answer_that_makes_no_sense_changes_nothing(service: Service) -> None:
    settings = await opened(service)
    before = settings.rows
    with pytest.raises(ProtocolError):
        settings.load(Loaded(False, {"usb": [{"vm": "work", "backend": 5}]}, {}))
    with pytest.raises(ProtocolError):
        settings.load(Loaded(False, {"usb": []}, {"usb": [{"device": "1-2"}]}))
    assert settings.rows == before and settings.runs is True


# Adding


async def test_what_is_there_and_not_assigned_can_be_searched_and_added(service: Service) -> None:
    settings = await opened(service)
    names = [each.name for each in settings.candidates()]
    assert names == ["sys-usb:sda", "sys-usb:1-3", "dom0:00_1b.0"]
    assert [each.name for each in settings.candidates("usb RECEIVER")] == ["sys-usb:1-3"]
    assert [each.name for each in settings.candidates("c52b")] == ["sys-usb:1-3"]
    assert settings.candidates("nothing like that") == []
    assert "work" not in {each.backend for each in settings.candidates()}


async def test_what_is_added_is_that_device_at_that_port_if_it_can_be_told_apart(
    service: Service,
) -> None:
    settings = await opened(service)
    row = await add(service, settings, "sys-usb:1-3")
    assert (row.shown.match, row.shown.mode, row.state) == ("both", "auto-attach", State.EDITED)
    row = await add(service, settings, "dom0:00_1b.0")
    assert row.shown.mode == "required"  # a VM gets it when it is made
    service.lasting = False
    row = await add(service, settings, "sys-usb:sda")
    assert (row.shown.match, row.shown.identity) == ("port", "")
    assert not settings.is_saved and service.asked("device.assign") == []


async def test_a_device_that_was_replaced_before_it_is_added_is_not_added(service: Service) -> None:
    settings = await opened(service)
    candidate = next(each for each in settings.candidates() if each.name == "sys-usb:1-3")
    service.devices[1] = listed("sys-usb:1-3", identity="dead:beef:x:u030101")
    with pytest.raises(CallError, match="another device by now"):
        await lasting_identity(service, candidate)


async def test_what_was_to_be_removed_is_wanted_again_when_it_is_added(service: Service) -> None:
    settings = await opened(service)
    (row,) = settings.rows
    settings.remove(row.key)
    again = await add(service, settings, "sys-usb:1-2")
    assert again.key == row.key and settings.is_saved


# The dry run


async def test_a_dry_run_says_what_would_happen_and_changes_nothing(service: Service) -> None:
    settings = await opened(service)
    service.now = replace_now(matches=("1-3",), verdict="allow", runs=True)
    row = await add(service, settings, "sys-usb:1-3")
    await tried(service, settings)
    (asked,) = service.asked("device.assign")
    assert asked["dry_run"] is True and asked["identity"] == "046d:c52b:x:u030101"
    assert settings.lines(row_of(settings, row.shown.name)) == [
        "it is attached when work starts, and when it appears while work runs",
        "sys-usb:1-3 is present, and would be attached to work at once",
    ]
    assert len(service.stored["usb"]) == 1
    assert settings.to_try() == []


def replace_now(**fields: Any) -> AssignedNow:
    return AssignedNow(**fields)


async def test_a_dry_run_says_what_is_in_the_way(service: Service) -> None:
    service.now = AssignedNow(
        matches=("1-3", "1-4"), ambiguous="two devices look the same", verdict="deny",
        rule="30-user.policy:3", held_by="vault", held="1-3", name_taken="xvdj is taken",
        conflicts=(Conflict("vault", "1-3", "", "ask", "equal"),),
    )  # fmt: skip
    settings = await opened(service)
    row = await add(service, settings, "sys-usb:1-3")
    await tried(service, settings)
    assert settings.lines(row_of(settings, row.shown.name))[1:] == [
        "sys-usb:1-3, sys-usb:1-4 are present",
        "two devices look the same",
        "denied by policy (30-user.policy:3)",
        "vault has it",
        "xvdj is taken",
        "the assignment of sys-usb:1-3 to vault (ask) is as specific, so that neither gets it by "
        "itself",
    ]


async def test_a_dry_run_that_is_refused_says_why_and_by_which_rule(service: Service) -> None:
    service.refuse["device.assign dry"] = DENIED
    settings = await opened(service)
    row = await add(service, settings, "sys-usb:1-3")
    await tried(service, settings)
    (line,) = settings.lines(row_of(settings, row.shown.name))
    assert line == "assign sys-usb:1-3 -> work (rule: 30-user.policy:4 a rule)"


async def test_an_answer_about_something_else_than_is_wanted_by_now_is_ignored(
    service: Service,
) -> None:
    settings = await opened(service)
    row = await add(service, settings, "sys-usb:1-3")
    settings.change(row.key, replace(row.shown, mode="ask"))
    settings.tried(row.key, row.shown, ["would be attached"])
    assert row_of(settings, "sys-usb:1-3").trial is None


async def test_a_dry_run_is_made_again_when_what_decides_is_different(service: Service) -> None:
    silent, heard = AttachedTo("work"), AttachedTo("work", listening=True)
    service.devices.append(listed("dom0:mic", "mic", identity="", attachments=(silent,)))
    settings = await opened(service)
    await add(service, settings, "sys-usb:1-3")
    await tried(service, settings)
    service.devices[-1] = listed("dom0:mic", "mic", identity="", attachments=(heard,))
    settings.load(await load(service, "work"))
    assert settings.to_try() == []  # somebody speaks
    service.devices[1] = listed(
        "sys-usb:1-3", identity="046d:c52b:x:u030101", attachments=(AttachedTo("vault"),)
    )
    settings.load(await load(service, "work"))
    (row,) = settings.to_try()
    assert row.trial is not None  # the old words stay until there are new ones


async def test_what_a_move_replaces_is_no_conflict_of_it(service: Service) -> None:
    settings = await opened(service)
    (row,) = settings.rows
    service.now = AssignedNow(
        matches=("1-2",), verdict="allow", runs=True,
        conflicts=(Conflict("work", "1-2", STICK, "auto-attach", "more"),),
    )  # fmt: skip
    settings.change(row.key, settings.choices(row)["device"])
    await tried(service, settings)
    assert settings.lines(settings.rows[0])[-1] == (
        "sys-usb:1-2 is present, and would be attached to work at once"
    )


async def test_a_pci_device_is_for_the_next_start(service: Service) -> None:
    settings = await opened(service)
    row = await add(service, settings, "dom0:00_1b.0")
    assert settings.lines(row)[-1] == "It takes effect at the next start of work."
    service.vms["work"] = "Halted"
    settings.load(await load(service, "work"))
    assert settings.lines(row_of(settings, "dom0:00_1b.0")) == []


async def test_options_of_what_is_attached_are_for_the_next_attach(service: Service) -> None:
    service.devices = [
        listed("sys-usb:sda", "block", identity="", attachments=(AttachedTo("work"),))
    ]
    service.stored = {"block": [assigned("sys-usb:sda", matches=("sda",))]}
    settings = await opened(service)
    (row,) = settings.rows
    settings.change(row.key, row.shown.with_option("read-only", "yes"))
    assert settings.lines(settings.rows[0])[-1] == (
        "Its options change when it is attached the next time."
    )
    settings.remove(row.key)
    assert settings.lines(settings.rows[0]) == [
        "sys-usb:sda stays attached to work until it is detached"
    ]


# Changing


async def test_what_counts_of_a_device_can_be_chosen_as_far_as_it_is_known(
    service: Service,
) -> None:
    service.stored["usb"] += [assigned("sys-usb:1-9"), assigned("sys-usb:*:dead:beef:x:")]
    settings = await opened(service)
    both, absent, anywhere = settings.rows
    assert set(settings.choices(both)) == {"both", "device", "port"}
    assert set(settings.choices(absent)) == {"port"}
    assert set(settings.choices(anywhere)) == {"device"}
    settings.change(both.key, settings.choices(both)["port"])
    assert set(settings.choices(row_of(settings, "sys-usb:1-2"))) == {"both", "device", "port"}


async def test_two_rows_are_never_about_the_same(service: Service) -> None:
    service.stored["usb"].append(assigned(f"sys-usb:*:{STICK}"))
    settings = await opened(service)
    row = settings.rows[0]
    with pytest.raises(ValueError, match=r"is in the list already"):
        settings.change(row.key, settings.choices(row)["device"])
    assert settings.is_saved


async def test_undo_gives_back_what_is_stored_and_a_new_row_goes(service: Service) -> None:
    settings = await opened(service)
    (row,) = settings.rows
    new = await add(service, settings, "sys-usb:1-3")
    settings.change(row.key, replace(row.shown, mode="ask"))
    assert states(settings)[row.shown.name] is State.EDITED
    settings.undo(row.key)
    settings.undo(new.key)
    assert settings.rows == [row]


# The layers


def test_all_but_the_windows_knows_nothing_of_qt() -> None:
    for name in ("settings.wish", "settings.model", "settings.saving", "policy_window.model"):
        seen = modules_imported_by(f"pedos_widget.{name}")
        assert not {each for each in seen if each.startswith(("pedos_widget.qt", "trio"))}, name


# Hostile names


async def test_texts_of_devices_are_data_and_never_a_failure(service: Service) -> None:
    device = to_wire(listed("sys-usb:1-3")) | {"description": HOSTILE}
    settings = Settings("work")
    settings.load(Loaded(True, {"usb": []}, {"usb": [device]}))
    (candidate,) = settings.candidates("<B>")
    assert candidate == candidate_of(device)
    settings.add(candidate)
    assert settings.description(settings.rows[0].shown) == HOSTILE  # windows escape what they show
