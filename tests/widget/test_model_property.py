"""Whatever happens in whatever order: the view shows what is so, and each click has one result.

The controller and a service talk through memory, with a clock that jumps; the service's own tables
are the truth that the view is compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pedos_widget.link
import pedos_widget.pairs_file
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_protocol.errors import CallError
from pedos_widget.controller import PACE_S, WORK_S, Controller
from pedos_widget.model.view import Action, DeviceRef, Result

from tests.widget.fake_service import FakeService, device, vm

VMS = ("work", "vault", "dom0", "src")
IDS = ("sda", "sda1", "1-2")
CLASS_OF = {"sda": "block", "sda1": "block", "1-2": "usb"}
ANSWERS = ("do", "deny", "fail", "never", "nonsense", "break", "do and break")

STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(IDS), st.sampled_from("AB"), st.booleans()),
    st.tuples(st.just("take"), st.sampled_from(IDS)),
    st.tuples(st.just("attach"), st.sampled_from(IDS), st.sampled_from(VMS[:2])),
    st.tuples(st.just("detach"), st.sampled_from(IDS), st.sampled_from(VMS[:2])),
    st.tuples(st.just("vm"), st.sampled_from(VMS[:2]), st.booleans()),
    st.tuples(st.just("strange"), st.sampled_from(["x", "sda", "work"]), st.integers(0, 4)),
    st.tuples(st.just("drop")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("answer"), st.sampled_from(ANSWERS)),
    st.tuples(
        st.just("verdict"), st.sampled_from(VMS[:2]), st.sampled_from(["allow", "ask", "deny"])
    ),
    st.tuples(st.just("look"), st.sampled_from(IDS)),
    st.tuples(st.just("click"), st.sampled_from(IDS), st.sampled_from(VMS[:2]), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 10.0, 100.0])),
)
"""What may happen, in any order."""


class World:
    """The truth, the widget, and what came of clicks."""

    def __init__(self) -> None:
        self.service = FakeService(Path("unused"))
        self.service.put_vms(*(vm(each) for each in VMS))
        self.controller = Controller("unused", memory=Path("/proc/nowhere/widget.json"))
        self.controller.on_result(self.note)
        self.results: list[Result] = []
        self.clicks = 0
        self.nursery: trio.Nursery
        self.is_away = False
        self.answer = "do"
        self.seen: dict[str, DeviceRef] = {}  # what was shown last of each device
        for method in ("device.attach", "device.detach"):
            self.service.answers[method] = self.answering(method)

    def note(self, result: Result) -> None:
        self.results.append(result)

    def answering(self, method: str) -> Any:
        async def answer(params: dict[str, Any]) -> dict[str, Any]:
            do = self.service._attach if method == "device.attach" else self.service._detach
            how = self.answer
            if how == "deny":
                raise CallError("denied", "policy denies it")
            if how == "fail":
                raise CallError("busy", "it is in use")
            if how == "never":
                await trio.sleep_forever()
            if how == "nonsense":
                return {"nonsense": 1}
            if how == "break":
                self.service.drop()
                return {}
            result = await do(params)
            if how == "do and break":
                self.service.drop()
            return result

        return answer

    async def connect(self, _path: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise ConnectionRefusedError
        here, there = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.service._serve_client, there)
        return here

    async def step(self, kind: str, *how: Any) -> None:  # noqa: PLR0912
        service, name = self.service, f"src:{how[0]}" if how else ""
        device_class = CLASS_OF.get(how[0], "block") if how else ""
        told = service.devices.get((device_class, "src", how[0])) if how else None
        # What is strange has no attachments to add to or to take from.
        is_whole = told is not None and isinstance(told.get("attachments"), list)
        if kind == "put":
            _id, identity, is_busy = how
            parent = {"sda": ("1-2", "usb"), "sda1": ("sda", "block"), "1-2": (None, None)}[how[0]]
            fields = {"parent": parent[0], "parent_class": parent[1], "identity": identity}
            service.put(device(name, device_class, **fields, busy="mounted" if is_busy else None))
        elif kind == "take" and told is not None:
            service.take(name, device_class)
        elif kind == "attach" and is_whole:
            service.attach(name, how[1], device_class)
        elif kind == "detach" and is_whole:
            service.detach(name, how[1], device_class)
        elif kind == "vm":
            service.put_vms(vm(how[0], runs=how[1]))
        elif kind == "strange":
            self.make_strange(*how)
        elif kind == "drop":
            service.drop()
        elif kind == "restart":
            service.restarted()
            service.drop()
        elif kind == "away":
            self.is_away = how[0]
            service.drop()
        elif kind == "answer":
            self.answer = how[0]
        elif kind == "verdict":
            service.verdicts[how[0]] = (how[1], f"test.policy:1 says {how[1]}")
        elif kind == "look" and how[0] in self.seen:
            self.controller.look(self.seen[how[0]])
        elif kind == "click" and how[0] in self.seen:
            self.clicks += 1
            act = self.controller.attach if how[2] else self.controller.detach
            act(self.seen[how[0]], how[1])
        elif kind == "wait":
            await trio.sleep(how[0])

    def make_strange(self, what: str, how: int) -> None:
        """A device or VM of which the service tells something that nobody can read."""
        if what == "work":
            self.service.put_vms(vm("work") | {"state": how})
            return
        odd: dict[str, Any] = (
            device(f"src:{what}")
            | {
                0: {"identity": 7},
                1: {"attachments": None},
                2: {"new_field": 1},
                3: {"description": ["x"]},
                4: {"parent": "../.."},
            }[how]
        )
        self.service.put(odd)

    def readable(self) -> dict[str, dict[str, Any]]:
        """The devices that the view has to show: those that are told of in the usual form."""
        usual = device("src:x").keys() | {"parent_class"}
        return {
            each["device"]: each
            for each in self.service.devices.values()
            if each.keys() <= usual
            and isinstance(each["identity"], str)
            and isinstance(each["attachments"], list)
            and isinstance(each["description"], str)
            and each["parent"] != "../.."
        }

    def check(self) -> None:
        """The view against the truth."""
        view = self.controller.view
        rows = {row.ref.device: row for section in view.sections for row in section.rows}
        assert len(rows) == sum(len(section.rows) for section in view.sections)
        if not view.connected:
            assert view.status
            assert not any(row.enabled for row in rows.values())
            assert not any(each.enabled for row in rows.values() for each in row.vms or ())
            return
        truth = self.readable()
        assert rows.keys() == truth.keys()
        assert view.attached == sum(bool(each["attachments"]) for each in truth.values())
        running = {name for name, each in self.service.vms.items() if each["state"] == "Running"}
        for name, row in rows.items():
            self.seen[name] = row.ref
            users = {each["vm"] for each in truth[name]["attachments"]}
            assert row.ref.identity == truth[name]["identity"]
            assert row.bold == bool(users)
            assert all(f"attached to {vm}" in row.text for vm in users)
            for each in row.vms or ():
                if each.action is Action.EJECT:
                    assert each.vm in users
                if each.action is Action.ATTACH and each.enabled:
                    assert each.vm in running - users - {"dom0", "src"}
                    assert not users  # neither is a microphone
                if not each.enabled:
                    assert each.text.startswith(each.vm)
                    assert len(each.text) > len(each.vm)

    def check_results(self) -> None:
        """Exactly one that is final for each click, and at most one that precedes it."""
        counts = Counter(each.state == "working" for each in self.results)
        assert counts[False] == self.clicks
        assert counts[True] <= self.clicks
        assert all(each.reason for each in self.results if each.state in ("failed", "denied"))


async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return work(*arguments)


async def live(steps: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(pedos_widget.link, "connect_unix", world.connect)
    # A clock that jumps does not wait for threads.
    monkeypatch.setattr(pedos_widget.pairs_file, "to_thread", at_once)
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        nursery.start_soon(world.controller.run)
        for step in steps:
            await world.step(*step)
            await trio.sleep(PACE_S)  # after which everything is told
            await trio.testing.wait_all_tasks_blocked()
            world.check()
        world.is_away = False
        world.controller.opened()  # by somebody, as there is no file that comes with the service
        await trio.sleep(WORK_S + 10)
        await trio.testing.wait_all_tasks_blocked()
        world.check()
        assert world.controller.view.connected
        world.check_results()
        nursery.cancel_scope.cancel()
    return world


@given(steps=st.lists(STEPS, max_size=25))
@settings(max_examples=100)
def test_the_view_shows_what_is_so_and_each_click_has_one_result(
    steps: list[tuple[Any, ...]],
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        trio.run(
            live,
            steps,
            monkeypatch,
            clock=trio.testing.MockClock(autojump_threshold=0),
            strict_exception_groups=True,
        )
