"""Which notifications there are, by a clock that the tests move."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pedos_widget.model.view import DeviceRef, Happened, Result
from pedos_widget.notifications.plan import (
    BODY_MAX,
    BURST_GAP_S,
    BURST_S,
    HELD_MAX,
    IDS_MAX,
    KINDS,
    SETTLE_S,
    SINGLES_MAX,
    SLOW_S,
    TITLE_MAX,
    VMS_MAX,
    Close,
    Note,
    Plan,
)


def ref(device: str = "sda", backend: str = "sys-usb", device_class: str = "block") -> DeviceRef:
    return DeviceRef(device_class, backend, device, "0781:5581:4C53")


STICK = ref("1-2", device_class="usb")


class Desktop:
    """A plan, a clock, and a daemon that shows everything; `shown` is what stands on the screen."""

    def __init__(self) -> None:
        self.plan = Plan()
        self.now = 1000.0
        self.told: list[Note] = []
        self.shown: dict[int, Note] = {}
        self.last = 0

    def happens(
        self,
        kind: Any,
        device: DeviceRef | None = None,
        *,
        vm: str | None = None,
        own: bool = False,
        family: DeviceRef | None = None,
    ) -> None:
        device = device or ref()
        text = f"{device.backend}:{device.device}"
        self.plan.happened(Happened(kind, device, text, vm, own, family), self.now)

    def results(self, state: Any, reason: str = "", verb: Any = "attach") -> None:
        result = Result(ref(), "work", verb, state, reason)
        self.plan.result(result, self.now)

    def wait(self, seconds: float) -> None:
        """Lets time pass, and shows what is due whenever it is."""
        end = self.now + seconds
        while (wake_at := self.plan.wake_at()) is not None and wake_at <= end:
            self.now = max(self.now, wake_at)
            self.show()
            again = self.plan.wake_at()
            assert again is None or again > self.now, "it would wake for nothing"
        self.now = end
        self.show()

    def show(self) -> None:
        for each in self.plan.due(self.now):
            if isinstance(each, Close):
                del self.shown[each.number]
                continue
            number = self.plan.replaces(each)
            if not number:
                self.last = number = self.last + 1
            self.shown[number] = each
            self.told.append(each)
            self.plan.posted(each.key, number, self.plan.generation)

    @property
    def titles(self) -> list[str]:
        return [each.title for each in self.shown.values()]


def test_a_device_that_appears_is_told_after_it_has_settled() -> None:
    desktop = Desktop()
    desktop.happens("appeared")
    desktop.wait(SETTLE_S - 0.01)
    assert desktop.told == []
    desktop.wait(0.01)
    assert [(each.title, each.body) for each in desktop.told] == [("New device", "sys-usb:sda")]
    desktop.wait(100)
    assert len(desktop.told) == 1


def test_a_stick_with_its_disk_and_partitions_is_one_device() -> None:
    desktop = Desktop()
    for device in (ref("sda"), STICK, ref("sda1"), ref("sda2"), ref("sda3"), ref("sda4")):
        desktop.happens("appeared", device, family=STICK)
    desktop.wait(10)
    assert [each.body for each in desktop.told] == ["sys-usb:1-2"]


def test_a_device_that_is_attached_replaces_what_was_said_of_it_and_of_its_stick() -> None:
    desktop = Desktop()
    desktop.happens("appeared", STICK, family=STICK)
    desktop.wait(3)
    desktop.happens("attached", ref(), vm="work", family=STICK)
    desktop.wait(3)
    assert desktop.titles == ["Attached to work"]
    desktop.happens("detached", ref(), vm="work", family=STICK)
    desktop.wait(3)
    assert desktop.titles == ["Detached from work"]
    assert desktop.last == 1


def test_a_device_that_is_attached_as_soon_as_it_appears_is_told_once() -> None:
    desktop = Desktop()
    desktop.happens("appeared", STICK, family=STICK)
    desktop.happens("appeared", ref(), family=STICK)
    desktop.happens("attached", ref(), vm="work", family=STICK)
    desktop.wait(10)
    assert [each.title for each in desktop.told] == ["Attached to work"]


def test_all_vms_that_get_a_microphone_at_once_are_told() -> None:
    desktop = Desktop()
    mic = ref("mic-1", device_class="mic")
    for vm in ("personal", "work"):
        desktop.happens("attached", mic, vm=vm)
    desktop.wait(SETTLE_S)
    assert desktop.titles == ["Attached to personal, work"]
    desktop.happens("detached", mic, vm="work")
    desktop.wait(SETTLE_S)
    assert desktop.titles == ["Detached from work"]


def test_a_vm_that_gets_a_microphone_when_another_loses_it_is_told_with_it() -> None:
    mic = ref("mic-1", device_class="mic")
    for first, last, title, more in (
        ("detached", "attached", "Attached to work", "Detached from personal"),
        ("attached", "detached", "Detached from work", "Attached to personal"),
    ):
        desktop = Desktop()
        desktop.happens(first, mic, vm="personal")
        desktop.wait(SETTLE_S / 2)
        desktop.happens(last, mic, vm="work")
        desktop.wait(SETTLE_S)
        assert [(each.title, each.body) for each in desktop.told] == [
            (title, f"sys-usb:mic-1\n{more}")
        ]


def test_of_a_vm_that_gets_a_device_and_loses_it_at_once_the_last_is_told() -> None:
    desktop = Desktop()
    for kind in ("attached", "detached"):
        desktop.happens(kind, vm="work")
    desktop.wait(SETTLE_S)
    assert [(each.title, each.body) for each in desktop.told] == [
        ("Detached from work", "sys-usb:sda")
    ]


def test_of_more_vms_than_are_named_the_last_is() -> None:
    desktop = Desktop()
    for number in range(2 * VMS_MAX):
        desktop.happens("attached", vm=f"vm{number}")
    desktop.happens("detached", vm="work")
    desktop.wait(SETTLE_S)
    assert desktop.titles == ["Detached from work"]


def test_a_device_that_is_gone_before_it_was_told_is_not_told() -> None:
    desktop = Desktop()
    for device in (STICK, ref()):
        desktop.happens("appeared", device, family=STICK)
    for device in (ref(), STICK):
        desktop.happens("gone", device, family=STICK)
    desktop.wait(10)
    assert desktop.told == []


def test_a_device_that_is_gone_takes_its_notification_along() -> None:
    desktop = Desktop()
    desktop.happens("appeared")
    desktop.wait(2)
    assert desktop.titles == ["New device"]
    desktop.happens("gone")
    desktop.wait(0)
    assert desktop.titles == []


def test_twelve_at_once_are_one_notification() -> None:
    desktop = Desktop()
    for number in range(12):
        desktop.happens("appeared", ref(f"sd{chr(ord('a') + number)}"))
    desktop.wait(SETTLE_S)
    assert [each.title for each in desktop.told] == ["12 devices appeared"]
    assert "sys-usb:sdl" in desktop.told[0].body
    desktop.happens("appeared", ref("sdz"))
    desktop.wait(BURST_GAP_S)
    assert desktop.titles == ["13 devices appeared"]  # in the place of the other
    desktop.wait(2 * BURST_S)
    desktop.happens("appeared", ref("sdy"))
    desktop.wait(SETTLE_S)
    assert desktop.titles == ["13 devices appeared", "New device"]


def test_what_the_user_just_did_is_silent() -> None:
    desktop = Desktop()
    desktop.results("working")
    desktop.wait(SLOW_S / 2)
    desktop.happens("attached", vm="work", own=True)
    desktop.results("done")
    desktop.wait(100)
    assert desktop.told == []


def test_what_takes_a_while_is_told_and_its_end_takes_its_place() -> None:
    desktop = Desktop()
    desktop.results("working")
    desktop.wait(SLOW_S)
    assert desktop.titles == ["Attaching to work…"]
    desktop.results("done")
    desktop.wait(0)
    assert desktop.titles == ["Attached to work"]
    assert len(desktop.told) == 2


def test_what_fails_is_told_at_once_with_the_reason() -> None:
    for state, title in (("failed", "Not attached to work"), ("denied", "May not be attached")):
        desktop = Desktop()
        desktop.results("working")
        desktop.results(state, "it is in use: mounted")
        desktop.wait(0)
        assert desktop.told[0].title.startswith(title)
        assert desktop.told[0].body == "sys-usb:sda\nit is in use: mounted"


def test_a_second_try_that_succeeds_takes_the_failure_away() -> None:
    desktop = Desktop()
    for state in ("failed", "done"):
        desktop.results("working", verb="detach")
        desktop.results(state, verb="detach")
        desktop.wait(0)
    assert desktop.titles == []
    assert [each.title for each in desktop.told] == ["Not detached from work"]


def test_a_result_that_nothing_was_known_of_is_told() -> None:
    desktop = Desktop()
    desktop.results("done")
    desktop.wait(0)
    assert desktop.titles == ["Attached to work"]


def test_another_daemon_knows_no_ids_of_the_one_before() -> None:
    desktop = Desktop()
    desktop.happens("appeared")
    desktop.wait(2)
    generation = desktop.plan.generation
    desktop.happens("gone")
    desktop.plan.forget()
    assert desktop.plan.due(desktop.now) == []
    desktop.plan.posted(ref(), 7, generation)
    assert desktop.plan.replaces(Note(ref(), "", "", "")) == 0


def test_a_device_that_is_gone_while_it_is_told_is_not_told_for_long() -> None:
    desktop = Desktop()
    desktop.happens("appeared")
    desktop.now += SETTLE_S
    (note,) = desktop.plan.due(desktop.now)
    assert isinstance(note, Note)
    desktop.happens("gone")
    desktop.plan.posted(note.key, 7, desktop.plan.generation)
    assert desktop.plan.due(desktop.now) == [Close(7)]


def test_a_notification_that_was_closed_is_not_replaced() -> None:
    desktop = Desktop()
    desktop.happens("appeared")
    desktop.wait(2)
    desktop.plan.closed(1)
    desktop.happens("attached", vm="work")
    desktop.wait(2)
    assert desktop.last == 2


def test_hostile_texts_are_cut_and_stay_on_their_lines() -> None:
    plan = Plan()
    text = "\u202e<b>\n" * 200
    plan.result(Result(ref(), "w" * 500, "attach", "failed", text, text), 0)
    (note,) = plan.due(0)
    assert isinstance(note, Note)
    assert len(note.title) <= TITLE_MAX
    assert len(note.body) <= BODY_MAX
    assert note.body.count("\n") == 1
    assert "\u202e" not in note.body
    assert len(note.body.partition("\n")[2]) > BODY_MAX / 2  # the reason is what matters


DEVICES = [ref(f"sd{letter}") for letter in "abcdefgh"]
STEPS = st.one_of(
    st.tuples(
        st.sampled_from([*KINDS, "gone", "listening"]),
        st.sampled_from(DEVICES),
        st.sampled_from(DEVICES[:2]),
        st.booleans(),
    ),
    st.sampled_from(["working", "done", "failed", "denied"]),
    st.floats(0, 12),
)


@given(st.lists(STEPS, max_size=60))
def test_whatever_happens_little_is_told_and_every_failure_is(steps: list[Any]) -> None:
    """And the plan never wakes for nothing, and nothing is closed that is not shown (`Desktop`)."""
    desktop = Desktop()
    began = desktop.now
    failures = 0
    for step in steps:
        if isinstance(step, float):
            desktop.wait(step)
        elif isinstance(step, str):
            desktop.results(step)
            failures += step in ("failed", "denied")
        else:
            kind, device, family, own = step
            desktop.happens(kind, device, vm="work", own=own, family=family)
    desktop.wait(2 * BURST_S)
    told = [each.title for each in desktop.told]
    assert sum("Not " in title or "May not" in title for title in told) == failures
    windows = (desktop.now - began) / BURST_S + 1
    results = sum(isinstance(step, str) for step in steps)
    most = len(KINDS) * windows * (SINGLES_MAX + BURST_S / BURST_GAP_S + 1)
    assert len(told) <= most + 2 * results
    assert desktop.plan.wake_at() is None
    assert not desktop.plan._held


def test_a_vm_that_makes_devices_without_end_costs_neither_memory_nor_attention() -> None:
    desktop = Desktop()
    devices = 10 * HELD_MAX
    for number in range(devices):
        desktop.happens("appeared", ref(f"sd{number}"))
        desktop.happens("attached", ref(f"sd{number}"), vm="work")
    assert len(desktop.plan._held) <= HELD_MAX
    desktop.wait(100)
    assert len(desktop.told) <= 2 * len(KINDS)
    assert f"{devices} devices attached" in desktop.titles
    for number in range(2 * IDS_MAX):
        desktop.plan.posted(number, number + 1, desktop.plan.generation)
    assert len(desktop.plan._ids) <= IDS_MAX
