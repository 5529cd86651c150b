"""The settings of a VM without a window: what is saved, what is left of it when the service refuses
or goes away, and what others change meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from pedos_cli.client import Unreachable
from pedos_protocol.errors import CallError
from pedos_protocol.messages import AssignedNow
from pedos_widget.settings.model import State
from pedos_widget.settings.saving import load, save

from tests.widget.settings_service import STICK, Service, assigned
from tests.widget.settings_steps import add, nothing, opened, row_of, states, tried, usual_service

PRESENT = AssignedNow(matches=("1-2",), verdict="allow", rule="30-user.policy:3", runs=True)
DENIED = CallError(
    "denied", "assign sys-usb:1-3 -> work", {"rule": "30-user.policy:4", "text": "a rule"}
)
HOSTILE = "<b>x</b>\u202e\x1b[2J  &"


@pytest.fixture
def service() -> Service:
    return usual_service()


async def test_everything_is_saved_and_what_is_removed_comes_first(service: Service) -> None:
    service.stored["usb"].append(assigned("sys-usb:1-9"))
    settings = await opened(service)
    await add(service, settings, "sys-usb:1-3")
    settings.change(settings.rows[0].key, replace(settings.rows[0].shown, mode="required"))
    settings.remove(row_of(settings, "sys-usb:1-9").key)
    seen = []
    await save(service, settings, lambda: seen.append(states(settings)))
    done = [
        (name, params["device"])
        for name, params in service.calls
        if name in ("device.assign", "device.unassign")
    ]
    assert done == [
        ("device.unassign", "1-9"), ("device.assign", "1-2"), ("device.assign", "1-3"),
    ]  # fmt: skip
    assert all(not params["dry_run"] for params in service.asked("device.assign"))
    assert set(states(settings).values()) == {State.SAVED} and settings.is_saved
    assert {State.SAVING} <= {state for each in seen for state in each.values()}
    assert {each.device: each.mode for each in service.stored["usb"]} == {
        "1-2": "required", "1-3": "auto-attach",
    }  # fmt: skip


async def test_what_cannot_be_saved_keeps_nothing_else_from_it(service: Service) -> None:
    settings = await opened(service)
    refused = await add(service, settings, "sys-usb:1-3")
    await add(service, settings, "dom0:00_1b.0")
    service.refuse["device.assign 1-3"] = DENIED
    await save(service, settings, nothing)
    assert states(settings) == {
        f"sys-usb:1-2:{STICK}": State.SAVED,
        refused.shown.name: State.FAILED,
        "dom0:00_1b.0:8086:2668:x:p040300": State.SAVED,
    }
    row = row_of(settings, "sys-usb:1-3")
    assert row.problem.startswith("assign sys-usb:1-3 -> work (rule: ")
    assert row.wanted == refused.wanted and settings.to_save() == [row]
    service.refuse.clear()
    await save(service, settings, nothing)
    assert settings.is_saved


@pytest.mark.parametrize("was_done", [False, True])
async def test_nothing_is_lost_when_the_service_goes_away_in_between(
    service: Service, was_done: bool
) -> None:
    settings = await opened(service)
    first = await add(service, settings, "sys-usb:1-3")
    last = await add(service, settings, "dom0:00_1b.0")
    service.lose["device.assign 1-3"] = was_done
    await save(service, settings, nothing)
    assert row_of(settings, "sys-usb:1-3").state is State.UNKNOWN
    assert "the connection" in row_of(settings, "sys-usb:1-3").problem
    assert row_of(settings, "dom0:").state is State.EDITED  # it was not begun
    settings.change(first.key, replace(first.shown, mode="ask"))  # of what?
    assert row_of(settings, "sys-usb:1-3").shown.mode == "auto-attach"
    service.view.connected = True
    service.lose.clear()
    settings.load(await load(service, "work"))
    row = row_of(settings, "sys-usb:1-3")
    assert row.state is (State.SAVED if was_done else State.FAILED)
    assert bool(row.problem) is not was_done and row.wanted == first.wanted
    await save(service, settings, nothing)
    assert settings.is_saved
    assert {each.device for each in service.stored["usb"]} == {"1-2", "1-3"}
    assert last.shown.name in states(settings)


@pytest.mark.parametrize("was_done", [False, True])
async def test_a_removal_that_nobody_answered_is_settled_by_the_next_list(
    service: Service, was_done: bool
) -> None:
    settings = await opened(service)
    (row,) = settings.rows
    settings.remove(row.key)
    service.lose["device.unassign"] = was_done
    await save(service, settings, nothing)
    assert settings.rows[0].state is State.UNKNOWN
    service.view.connected = True
    settings.load(await load(service, "work"))
    assert [each.state for each in settings.rows] == ([] if was_done else [State.FAILED])


async def test_without_a_service_nothing_is_begun_and_all_stays_as_it_is_edited(
    service: Service,
) -> None:
    settings = await opened(service)
    await add(service, settings, "sys-usb:1-3")
    service.view.connected = False
    await save(service, settings, nothing)
    row = row_of(settings, "sys-usb:1-3")
    assert row.state is State.FAILED and "there is no such socket" in row.problem
    with pytest.raises(Unreachable):
        await load(service, "work")


async def test_a_device_gets_its_new_assignment_before_it_loses_the_old_one(
    service: Service,
) -> None:
    settings = await opened(service)
    (row,) = settings.rows
    settings.change(row.key, settings.choices(row)["device"])
    assert [step.verb for step in settings.steps(settings.rows[0])] == ["assign", "unassign"]
    await save(service, settings, nothing)
    assert settings.is_saved and len(settings.rows) == 1
    (stored,) = service.stored["usb"]
    assert (stored.device, stored.identity) == (None, STICK)


async def test_a_move_that_is_half_done_is_two_rows(service: Service) -> None:
    settings = await opened(service)
    (row,) = settings.rows
    settings.change(row.key, settings.choices(row)["device"])
    service.refuse["device.unassign"] = DENIED
    await save(service, settings, nothing)
    assert states(settings) == {
        f"sys-usb:1-2:{STICK}": State.FAILED, f"sys-usb:*:{STICK}": State.SAVED,
    }  # fmt: skip
    assert len(service.stored["usb"]) == 2
    settings.load(await load(service, "work"))
    assert len(settings.rows) == 2


async def test_a_move_that_the_service_half_did_goes_on_after_it_is_back(service: Service) -> None:
    settings = await opened(service)
    (row,) = settings.rows
    settings.change(row.key, settings.choices(row)["device"])
    service.lose["device.assign"] = True
    await save(service, settings, nothing)
    service.view.connected = True
    service.lose.clear()
    settings.load(await load(service, "work"))
    assert states(settings) == {
        f"sys-usb:1-2:{STICK}": State.EDITED, f"sys-usb:*:{STICK}": State.SAVED,
    }  # fmt: skip
    await save(service, settings, nothing)
    assert len(service.stored["usb"]) == 1


async def test_what_policy_sends_to_another_vm_is_said_and_is_not_of_this_one(
    service: Service,
) -> None:
    settings = await opened(service)
    await add(service, settings, "sys-usb:1-3")
    service.lands = "vault"
    await save(service, settings, nothing)
    row = row_of(settings, "sys-usb:1-3")
    assert row.state is State.FAILED
    assert row.problem.startswith("assigned to vault, and not to work")


async def test_what_nobody_answers_in_time_is_not_said_to_have_failed(service: Service) -> None:
    settings = await opened(service)
    await add(service, settings, "sys-usb:1-3")
    service.refuse["device.assign 1-3"] = CallError("timeout", "no answer within 190 s")
    await save(service, settings, nothing)
    assert row_of(settings, "sys-usb:1-3").state is State.UNKNOWN


async def test_what_is_gone_already_counts_as_removed(service: Service) -> None:
    settings = await opened(service)
    settings.remove(settings.rows[0].key)
    service.stored["usb"].clear()
    await save(service, settings, nothing)
    assert settings.rows == []


# What others do meanwhile


async def test_what_is_changed_elsewhere_is_merged_under_what_is_edited(service: Service) -> None:
    service.stored["usb"] += [assigned("sys-usb:1-8"), assigned("sys-usb:1-9")]
    settings = await opened(service)
    mine, gone, other = settings.rows
    settings.change(mine.key, replace(mine.shown, mode="ask"))
    settings.change(gone.key, replace(gone.shown, mode="ask"))
    await tried(service, settings)
    service.stored["usb"] = [
        assigned(f"sys-usb:1-2:{STICK}", mode="required"),
        assigned("sys-usb:1-9", mode="ask"),
        assigned("sys-usb:1-10"),
    ]
    settings.load(await load(service, "work"))
    notes = {row.shown.name: row.note for row in settings.rows}
    assert notes == {
        f"sys-usb:1-2:{STICK}": "It was changed elsewhere meanwhile.",
        "sys-usb:1-8": "It was removed elsewhere meanwhile.",
        "sys-usb:1-9": "",
        "sys-usb:1-10": "",
    }
    assert [row.shown.mode for row in settings.rows[:2]] == ["ask", "ask"]
    assert other.key == row_of(settings, "sys-usb:1-9").key
    assert len(settings.to_try()) == 2  # what would happen may be something else by now


async def test_what_is_changed_elsewhere_just_before_it_is_saved_is_shown_first(
    service: Service,
) -> None:
    settings = await opened(service)
    first = await add(service, settings, "sys-usb:1-3")
    (row, _new) = settings.rows
    settings.change(row.key, replace(row.shown, mode="ask"))
    service.stored["usb"] = [assigned(f"sys-usb:1-2:{STICK}", mode="required")]
    service.held = trio.Event()
    async with trio.open_nursery() as nursery:
        settings.change(first.key, replace(first.shown, mode="ask"))
        nursery.start_soon(save, service, settings, nothing)
        await trio.testing.wait_all_tasks_blocked()
        settings.load(await load(service, "work"))  # while the first is under way
        service.held.set()
    assert settings.row(row.key) is not None
    assert len(settings.rows) == 2
