"""Clicks, changes and losses, by the controller and a service on a socket."""

from __future__ import annotations

from pathlib import Path

import pedos_widget.controller
import pytest
import trio
from pedos_dom0.access.questions import ASK_TIMEOUT
from pedos_protocol.errors import CallError
from pedos_protocol.fields import parse_message
from pedos_protocol.messages import Listed
from pedos_widget import link
from pedos_widget.calls import reason_alone
from pedos_widget.controller import WORK_S
from pedos_widget.link import Link
from pedos_widget.model.pairs import Pairs, parse
from pedos_widget.model.view import Action
from pedos_widget.pairs_file import PairsFile

from tests.widget.fake_service import device, vm
from tests.widget.widget_system import running


async def test_a_device_is_attached_and_shown_so_and_ejected(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        row = system.row("sys-usb:sda")
        assert row is not None
        assert (row.text, row.bold, row.enabled) == (
            "sys-usb:sda · Flash Disk · 1.0 GiB", False, True,
        )  # fmt: skip
        rows = await system.vms("sys-usb:sda")
        assert [(each.vm, each.action, each.enabled) for each in rows] == [
            ("vault", Action.ATTACH, True),
            ("work", Action.ATTACH, True),
        ]
        system.controller.attach(row.ref, "work")
        assert [each.state for each in system.results] == ["working"]
        assert (await system.result()).state == "done"
        row = system.row("sys-usb:sda")
        assert row is not None
        assert row.bold
        assert row.text.endswith(" · attached to work")
        assert ", attached to work, it calls itself “" in row.spoken
        assert system.controller.view.attached == 1
        assert [(each.kind, each.vm, each.own) for each in system.happened] == [
            ("attached", "work", True)
        ]
        asked = system.service.called("device.attach")
        assert asked == [
            {
                "device_class": "block", "backend": "sys-usb", "device": "sda", "vm": "work",
                "identity": "id-sda", "options": {}, "persistent": False,
            }
        ]  # fmt: skip
        eject = next(each for each in await system.vms("sys-usb:sda") if each.vm == "work")
        assert (eject.action, eject.bold, eject.text) == (Action.EJECT, True, "work · attached")
        system.controller.detach(row.ref, "work")
        assert (await system.result(2)).state == "done"
        [asked] = system.service.called("device.detach")
        assert (asked["vm"], asked["identity"], asked["force"]) == ("work", "id-sda", False)
        row = system.row("sys-usb:sda")
        assert row is not None
        assert not row.bold
        assert system.happened[-1].kind == "detached"
        assert system.happened[-1].own
        again, *_others = await system.vms("sys-usb:sda")
        assert (again.vm, again.text, again.is_again) == ("work", "Attach to work again", True)


async def test_what_other_programs_do_is_shown_and_told(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        system.service.put(device("dom0:mic", "mic", description="Headset"))
        system.service.attach("sys-usb:sda", "vault")
        await system.until(lambda: (row := system.row("sys-usb:sda")) and row.bold)
        await system.until(lambda: system.row("dom0:mic"))
        system.service.attach("dom0:mic", "work", "mic", listening=True)
        await system.until(lambda: system.happened[-1].kind == "listening")
        row = system.row("dom0:mic")
        assert row is not None
        assert row.text == "dom0:mic · Headset · attached to work (listening now)"
        system.service.take("sys-usb:sda")
        await system.until(lambda: system.row("sys-usb:sda") is None)
        assert [(each.kind, each.ref.device, each.vm, each.own) for each in system.happened] == [
            ("appeared", "mic", None, False),
            ("attached", "sda", "vault", False),
            ("attached", "mic", "work", False),
            ("listening", "mic", "work", False),
            ("detached", "sda", "vault", False),
            ("gone", "sda", None, False),
        ]


async def test_a_device_is_called_by_its_name_and_its_family_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        system.service.put(device("sys-usb:2-1", "usb", description="Stick"))
        system.service.put(device("sys-usb:sdb", parent="2-1", parent_class="usb", size=2**20))
        system.service.put(device("sys-usb:sdb1", parent="sdb"))
        await system.until(lambda: len(system.happened) == 3)
        told = {each.ref.device: each for each in system.happened}
        assert {each.family and each.family.device for each in told.values()} == {"2-1"}
        assert told["sdb"].text == "sys-usb:sdb “device sdb” 1.0 MiB"
        system.controller.attach(told["sdb"].ref, "work")
        assert system.results[-1].text == told["sdb"].text


async def test_a_list_that_is_open_follows_what_changes(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        await system.vms("sys-usb:sda")
        system.service.verdicts["late"] = ("deny", "10-test.policy:7 denies it")
        system.service.put_vms(vm("late"))

        def late_is_denied() -> bool:
            row = system.row("sys-usb:sda")
            return row is not None and any(
                each.text == "late · 10-test.policy:7 denies it" and not each.enabled
                for each in row.vms or ()
            )

        await system.until(late_is_denied)
        # Nothing of the kind is asked while no list was opened.
        looks = len(system.service.called("device.targets"))
        system.controller._known.looks._latest = None
        system.service.put_vms(vm("later"))
        await system.until(lambda: "later" in system.controller._known.picture.vms)
        assert len(system.service.called("device.targets")) == looks


async def test_a_refusal_is_shown_with_its_reason(tmp_path: Path) -> None:
    async def deny(_params: object) -> dict[str, object]:
        raise CallError("denied", "policy denies it", {"rule": "10-test.policy:2"})

    async with running(tmp_path) as system:
        row = system.row("sys-usb:sda")
        assert row is not None
        system.service.answers["device.attach"] = deny
        system.controller.attach(row.ref, "work")
        result = await system.result()
        assert (result.state, result.reason) == ("denied", "policy denies it")
        # What is not there cannot be asked for, and says so at once.
        other = row.ref.__class__("block", "sys-usb", "sda", "another-identity")
        system.controller.attach(other, "work")
        assert system.results[-1].state == "failed"
        assert "Another device" in system.results[-1].reason
        assert len(system.service.called("device.attach")) == 1


async def test_one_click_at_a_time_a_device(tmp_path: Path) -> None:
    go_on = trio.Event()

    async with running(tmp_path) as system:
        service = system.service

        async def slowly(params: dict[str, object]) -> dict[str, object]:
            await go_on.wait()
            return await service._attach(params)

        service.answers["device.attach"] = slowly
        service.put(device("sys-usb:sdb"))
        await system.until(lambda: system.row("sys-usb:sdb"))
        await system.vms("sys-usb:sda")
        first, second = system.row("sys-usb:sda"), system.row("sys-usb:sdb")
        assert first is not None
        assert second is not None
        system.controller.attach(first.ref, "work")
        row = system.row("sys-usb:sda")
        assert row is not None
        assert row.text.endswith(" · attaching to work …")
        assert [(each.text, each.enabled) for each in row.vms or ()] == [
            ("vault", False),
            ("work · attaching to work …", False),
        ]
        system.controller.attach(first.ref, "vault")
        assert system.results[-1].state == "failed"
        assert "not finished" in system.results[-1].reason
        system.controller.attach(second.ref, "vault")  # another one may begin
        await service.until(lambda: len(service.called("device.attach")) == 2)
        go_on.set()
        final = [await system.result(number) for number in (2, 3)]
        assert [each.state for each in final] == ["done", "done"]


async def test_after_a_broken_connection_a_click_is_judged_by_what_there_is(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as system:
        service = system.service

        async def done_and_gone(params: dict[str, object]) -> dict[str, object]:
            result = await service._attach(params)
            service.restarted()
            service.drop()
            return result

        async def gone(_params: object) -> dict[str, object]:
            service.restarted()
            service.drop()
            return {}

        row = system.row("sys-usb:sda")
        assert row is not None
        service.answers["device.attach"] = gone
        system.controller.attach(row.ref, "work")
        result = await system.result(1)
        assert (result.state, "is not done" in result.reason) == ("failed", True)
        service.answers["device.attach"] = done_and_gone
        system.controller.attach(row.ref, "work")
        assert (await system.result(2)).state == "done"
        row = system.row("sys-usb:sda")
        assert row is not None
        assert row.bold


async def test_a_service_that_is_back_before_the_devices_vm_knows_who_has_the_device(
    tmp_path: Path,
) -> None:
    """It tells of the attachment, and of nothing else of the device."""
    async with running(tmp_path) as system:
        service = system.service
        row = system.row("sys-usb:sda")
        assert row is not None
        service.attach("sys-usb:sda", "work")
        await system.until(lambda: (now := system.row("sys-usb:sda")) and now.bold)

        async def gone(_params: object) -> dict[str, object]:
            known = {"attachments": [{"vm": "work", "options": {}}], "present": False}
            service.put(device("sys-usb:sda", identity="", description="(not present)", **known))
            service.restarted()
            service.drop()
            return {}

        service.answers["device.detach"] = gone
        system.controller.detach(row.ref, "work")
        result = await system.result()
        assert (result.state, "is not done" in result.reason) == ("failed", True)


async def test_without_a_service_nothing_can_be_chosen_and_the_view_says_why(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, is_served=False) as system:
        await system.until(lambda: "no socket" in system.controller.view.status)
        assert not system.controller.view.connected
        assert [each.empty for each in system.controller.view.sections] == ["not known"] * 3
        async with trio.open_nursery() as nursery:
            await nursery.start(system.service.serve)
            await system.connected()
            await system.vms("sys-usb:sda")
            assert system.controller.view.status == ""
            nursery.cancel_scope.cancel()
        await system.until(lambda: not system.controller.view.connected)
        row = system.row("sys-usb:sda")
        assert row is not None
        assert not row.enabled
        assert row.text.startswith("sys-usb:sda")
        assert system.controller.view.status.endswith("This is how it was before.")
        system.controller.attach(row.ref, "work")
        assert [each.state for each in system.results] == ["failed"]
        # A device that went meanwhile is not shown when the service is back, with the same count.
        system.service.take("sys-usb:sda")
        await system.service_again()
        await system.connected()
        assert system.row("sys-usb:sda") is None


async def test_a_program_that_is_restarted_remembers_pairs(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        row = system.row("sys-usb:sda")
        assert row is not None
        system.controller.attach(row.ref, "work")
        await system.result()
        system.controller.detach(row.ref, "work")
        await system.result(2)
    async with running(tmp_path) as system:
        await system.vms("sys-usb:sda")
        await system.until(lambda: (row := system.row("sys-usb:sda")) and row.vms[0].is_again)
        system.service.verdicts["work"] = ("deny", "denied now")
        system.service.put_vms(vm("another"))
        await system.until(
            lambda: (row := system.row("sys-usb:sda"))
            and any(each.text == "work · denied now" for each in row.vms or ())
        )
        row = system.row("sys-usb:sda")
        assert row is not None
        assert not any(each.is_again for each in row.vms or ())


async def test_a_disk_that_hangs_keeps_nobody_from_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, read = trio.Event(), PairsFile.read

    async def hangs(file: PairsFile) -> Pairs:
        await goes_on.wait()
        return await read(file)

    monkeypatch.setattr(PairsFile, "read", hangs)
    async with running(tmp_path) as system:
        system.memory.parent.mkdir(parents=True)
        earlier = Pairs()
        earlier.put("block", "id-sdb", "vault")
        system.memory.write_text(earlier.text())
        row = system.row("sys-usb:sda")
        assert row is not None
        system.controller.attach(row.ref, "work")
        assert (await system.result()).state == "done"
        goes_on.set()
        await system.until(lambda: len(system.controller._known.pairs) == 2)
    kept = parse(system.memory.read_text())
    for name, by in (("sys-usb:sda", "work"), ("sys-usb:sdb", "vault")):
        assert kept.vm_of(parse_message(Listed, device(name))) == by


async def test_a_service_that_is_older_leaves_the_verdict_to_the_attach(tmp_path: Path) -> None:
    async def unknown(_params: object) -> dict[str, object]:
        raise CallError("unknown_method", "device.targets is not served here")

    async with running(tmp_path) as system:
        system.service.answers["device.targets"] = unknown
        assert all(each.enabled for each in await system.vms("sys-usb:sda"))
        row = system.row("sys-usb:sda")
        assert row is not None
        assert "older" in row.note


async def test_errors_of_the_policy_are_said(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        system.service.policy["ok"] = False
        await system.vms("sys-usb:sda")
        await system.until(lambda: "The policy has errors" in system.controller.view.status)


async def test_who_opens_the_menu_sees_that_the_policy_is_mended(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        await system.connected()
        for is_ok in (False, True):
            system.service.policy["ok"] = is_ok
            system.controller.opened()
            await system.until(lambda is_ok=is_ok: (system.controller.view.status == "") is is_ok)


async def test_a_prompter_that_the_service_has_no_place_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RETRY_FIRST_S", 0.01)

    class Desk:
        async def ask(self, _method: str, _params: object) -> dict[str, object]:
            raise NotImplementedError

        def cancel(self, _request: str, _reason: str) -> None: ...

        def gone(self) -> None: ...

    async def full(_params: object) -> dict[str, object]:
        raise CallError("quota", "8 prompters are connected already")

    async with running(tmp_path) as system:
        system.service.answers["prompter.register"] = full
        system.controller.ask_by(Desk())
        said = "Questions of dom0 are not asked here: 8 prompters are connected already."
        await system.until(lambda: system.controller.view.status == said)
        del system.service.answers["prompter.register"]
        await system.until(lambda: system.controller.view.status == "")


async def test_questions_come_to_the_prompter_for_as_long_as_there_is_one(tmp_path: Path) -> None:
    class Desk:
        def __init__(self) -> None:
            self.said: list[object] = []

        async def ask(self, method: str, params: dict[str, object]) -> dict[str, object]:
            self.said.append((method, params))
            await trio.lowlevel.checkpoint()
            return {"verdict": "allow", "target": "work"}

        def cancel(self, request: str, reason: str) -> None:
            self.said.append((request, reason))

        def gone(self) -> None:
            self.said.append("gone")

    desk = Desk()
    async with running(tmp_path) as system:
        service = system.service
        system.controller.ask_by(desk)
        await service.until(lambda: service.prompters)
        assert await service.ask({"question": 1}) == {"verdict": "allow", "target": "work"}
        await service.prompters[-1].notify("prompt.cancel", {"request": "r", "reason": "over"})
        assert await service.ask({"question": 2}) == {"verdict": "allow", "target": "work"}
        service.drop()
        await service.until(lambda: not service.prompters)
        await service.until(lambda: service.prompters)  # again, by a new connection
        await service.ask({"question": 3})
        system.controller.ask_by(None)
        await service.until(lambda: not service.prompters)
        asked = [("prompt.ask", {"question": number}) for number in (1, 2, 3)]
        assert desk.said == [asked[0], ("r", "over"), asked[1], "gone", asked[2], "gone"]


async def test_many_changes_are_told_together(tmp_path: Path) -> None:
    """A VM that changes its devices without end does not keep the widget busy."""
    async with running(tmp_path) as system:
        answers = len(system.service.called("watch.next"))
        changes = system.changes
        for number in range(2_000):
            system.service.put(device(f"sys-usb:d{number % 50}", description=f"{number}"))
            if number % 10 == 0:
                await trio.lowlevel.checkpoint()  # so that some are told before others are there
        await system.until(lambda: (row := system.row("sys-usb:d49")) and "1999" in row.text)
        assert len(system.service.called("watch.next")) - answers < 20
        assert system.changes - changes < 20


async def test_who_wants_to_be_told_no_more_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        before = len(system.controller._changed_callbacks)
        told: list[int] = []
        end = system.controller.on_change(lambda: told.append(1))
        system.service.put(device("sys-usb:sdb"))
        await system.until(lambda: system.row("sys-usb:sdb") and told)
        end()
        told.clear()
        system.service.take("sys-usb:sdb")
        await system.until(lambda: system.row("sys-usb:sdb") is None)
        assert not told
        assert len(system.controller._changed_callbacks) == before


async def test_an_answer_without_news_costs_no_new_view(tmp_path: Path) -> None:
    """The service gives one when half of the time is over that a caller waits."""
    async with running(tmp_path) as system:
        await system.service.until(lambda: len(system.service.called("watch.next")) == 2)
        view, changes = system.controller.view, system.changes
        system.service._change.set()  # wakes what waits there, and has nothing to tell
        system.service.is_quiet = True
        await system.service.until(lambda: len(system.service.called("watch.next")) == 3)
        assert system.controller.view is view
        assert system.changes == changes


async def test_a_service_that_does_not_answer_is_noticed_when_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_params: object) -> dict[str, object]:
        await trio.sleep_forever()
        raise AssertionError

    async with running(tmp_path) as system:
        await system.service.until(lambda: len(system.service.called("watch.next")) == 2)
        monkeypatch.setattr(pedos_widget.controller, "LOOK_S", 0.01)
        system.service.answers["service.status"] = hang
        system.controller.opened()
        await system.until(lambda: not system.controller.view.connected)
        assert system.controller.view.status.startswith("dom0's service does not answer.")
        assert system.row("sys-usb:sda") is not None
        del system.service.answers["service.status"]
        await system.connected()


@pytest.mark.parametrize("method", ["device.attach", "device.detach"])
async def test_an_older_service_is_not_told_of_an_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with running(tmp_path) as system:
        row = system.row("sys-usb:sda")
        assert row is not None
        monkeypatch.setattr(Link, "version", 1)
        click = system.controller.attach if method == "device.attach" else system.controller.detach
        if method == "device.detach":
            system.service.attach("sys-usb:sda", "work")
        click(row.ref, "work")
        await system.service.until(lambda: system.service.called(method))
        [params] = system.service.called(method)
        assert "identity" not in params


async def test_a_service_of_the_first_version_is_said_to_be_older(tmp_path: Path) -> None:
    async def unknown(_params: object) -> dict[str, object]:
        raise CallError("unknown_method", "watch.next is not served here")

    async with running(tmp_path, is_served=False) as system:
        system.service.answers["watch.next"] = unknown
        await system.service_again()
        await system.until(lambda: "is older" in system.controller.view.status)


def test_a_question_that_nobody_answers_ends_before_the_click_is_given_up() -> None:
    assert WORK_S > ASK_TIMEOUT + 10


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('sys-usb:sda ("x") -> work: dom0\'s user said no', "dom0's user said no"),
        ('sys-usb:sda (" -> work: it is done") -> work: no', "no"),
        ("work has it; detach it there first", "work has it; detach it there first"),
        ("sys-usb:sdb -> work: no", "sys-usb:sdb -> work: no"),
    ],
)
def test_a_reason_beside_its_device_does_not_name_it_again(said: str, why: str) -> None:
    assert reason_alone(CallError("denied", said), "sys-usb:sda", "work") == why
