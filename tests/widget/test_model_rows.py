"""The texts of the rows, for what people meet and what others make up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol.messages import Target, TargetsTold
from pedos_widget.model import composing
from pedos_widget.model.composing import Composer, Known, compose
from pedos_widget.model.device_rows import device_row
from pedos_widget.model.families import in_order
from pedos_widget.model.looks import LOOK_S, LOOKS_MAX, Look, Looks
from pedos_widget.model.pairs import Pairs
from pedos_widget.model.picture import Picture
from pedos_widget.model.view import Action, DeviceRef, DeviceRow, View, VmRow
from pedos_widget.model.work import OWN_S, Work, Works, key_of

from tests.widget.fake_service import device, vm
from tests.widget.test_model_picture import answer

VMS = (vm("dom0"), vm("src"), vm("work"), vm("work10"), vm("work2"), vm("off", runs=False))
IDENTITY = "0781:5567:4C53{}:u080650"


def known_of(*devices: dict[str, Any], vms: tuple[dict[str, Any], ...] = VMS) -> Known:
    known = Known(Picture(), Looks(), Works(), Pairs())
    known.picture.take(answer(list(devices), list(vms)))
    known.why = ""
    return known


def rows_of(view: View) -> dict[str, DeviceRow]:
    return {row.ref.device: row for section in view.sections for row in section.rows}


def texts(*devices: dict[str, Any]) -> list[str]:
    return [row.text for row in rows_of(compose(known_of(*devices), 1)).values()]


def target(name: str, verdict: str = "allow", **fields: Any) -> Target:
    told: dict[str, Any] = {
        "vm": name, "state": "Running", "verdict": verdict, "reason": f"a rule for {name}",
        "rule": None, "read_only": False, "target": None,
    }  # fmt: skip
    return Target(**(told | fields))


def vms_of(
    known: Known, *targets: Target, unfit: tuple[str, ...] = (), left_out: int = 0
) -> DeviceRow:
    """The one device's row after a look that was answered like this."""
    row = next(iter(rows_of(compose(known, 1)).values()))
    told = TargetsTold(row.ref.identity, unfit, targets, left_out)
    known.looks.put(row.ref, Look(told))
    return next(iter(rows_of(compose(known, 2)).values()))


def test_a_stick_its_disk_and_its_partition_are_one_family() -> None:
    found = compose(
        known_of(
            device("src:2-1", "usb", identity=IDENTITY.format("01"), description="Ultra Fit"),
            device(
                "src:sda", parent="2-1", parent_class="usb", size=31 * 2**30, description="Ultra"
            ),
            device("src:sda1", parent="sda", size=2**30, description="backup", read_only=True),
            device("dom0:mic", "mic", description="Headset"),
        ),
        1,
    )
    assert [section.device_class for section in found.sections] == ["block", "mic", "usb"]
    rows = rows_of(found)
    assert [(row.text, row.indent, row.icon) for row in rows.values()] == [
        ("src:sda · Ultra · 31.0 GiB · on the USB device 2-1", 0, "disk"),
        ("src:sda1 · backup · 1.0 GiB · read-only", 1, "partition"),
        ("dom0:mic · Headset", 0, "mic"),
        ("src:2-1 · Ultra Fit · has the disk sda", 0, "usb"),
    ]
    assert "mass storage" in rows["2-1"].detail
    assert "4c5301" in rows["2-1"].search


def test_two_that_look_the_same_show_what_tells_them_apart() -> None:
    same = [
        device(f"src:{name}", "usb", identity=IDENTITY.format(serial), description="Ultra")
        for name, serial in (("1-1", "0001234"), ("1-2", "0021234"), ("1-3", "0009999"))
    ]
    assert texts(*same) == [
        "src:1-1 · Ultra · …01234",
        "src:1-2 · Ultra · …21234",
        "src:1-3 · Ultra · …09999",
    ]
    assert texts(*(
        device(f"src:{name}", "usb", identity=IDENTITY.format("0001234"), description="Ultra")
        for name in ("1-1", "1-2")
    )) == ["src:1-1 · Ultra", "src:1-2 · Ultra"]  # fmt: skip
    # What has no identity, or the same, cannot be told apart by it.
    assert texts(
        device("src:a", identity="", description=""), device("src:b", identity="", description="")
    ) == [
        "src:a",
        "src:b",
    ]


def test_why_a_device_cannot_be_attached_stands_in_its_row() -> None:
    rows = rows_of(
        compose(
            known_of(
                device("src:a", busy="mounted on / and " + "x" * 90),
                device("src:b", stale="no answer"),
                device("src:c", present=False, assignments=[{"vm": "work", "options": {}}]),
                device("src:m", "mic", busy="no sound server"),
                device("src:d", busy="exported", attachments=[{"vm": "work", "options": {}}]),
            ),
            1,
        )
    )
    assert not any(rows[name].enabled for name in "abcm")
    assert rows["a"].text.startswith("src:a · device a · in use in src: mounted on / and xxx")
    assert rows["a"].text.endswith("…")
    assert "x" * 90 in rows["a"].detail
    assert rows["b"].text.endswith("src cannot look at it now: no answer")
    assert rows["c"].text.endswith("not there now; assigned to work")
    assert rows["m"].text.endswith("src cannot record it: no sound server")
    assert rows["d"].enabled
    assert rows["d"].text == "src:d · device d · attached to work"


def test_no_text_of_a_device_looks_like_a_phrase_of_ours() -> None:
    row = rows_of(
        compose(known_of(device("src:sda", description="Disk · attached to vault“\u202e<b>&")), 1)
    )["sda"]
    assert row.text == "src:sda · Disk _ attached to vault___b__"
    assert row.text.count("·") == 1


def test_vms_are_in_natural_order_with_their_reasons() -> None:
    known = known_of(device("src:sda", assignments=[
        {"vm": "off", "options": {}}, {"vm": "work", "options": {}, "mode": "auto-attach"},
    ]))  # fmt: skip
    row = vms_of(
        known,
        target("work", "deny", reason="10-user.policy:3 denies it"),
        target("work2", "ask", read_only=True),
        target("work10", target="dvm"),
        left_out=2,
    )
    assert row.vms == (
        VmRow("off", Action.NONE, "off · not running; starts with it", False,
              detail="not running; starts with it"),
        VmRow("work", Action.NONE, "work · 10-user.policy:3 denies it", False,
              detail="10-user.policy:3 denies it"),
        VmRow("work2", Action.ATTACH, "work2 · you are asked first · read-only", True,
              detail="a rule for work2", is_ask=True),
        VmRow("work10", Action.ATTACH, "work10 · policy sends it to dvm", True,
              detail="a rule for work10"),
    )  # fmt: skip
    assert row.note == "2 more VMs are not listed."


def test_attached_elsewhere_is_the_reason_even_if_the_answer_is_older() -> None:
    known = known_of(device("src:sda", attachments=[{"vm": "work2", "options": {}}]))
    row = vms_of(known, target("work"), target("work2"), target("work10"))
    assert [(each.vm, each.action, each.enabled, each.bold) for each in row.vms or ()] == [
        ("work", Action.NONE, False, False),
        ("work2", Action.EJECT, True, True),
        ("work10", Action.NONE, False, False),
    ]
    assert (row.vms or ())[0].text == "work · work2 has it; detach it there first"


def test_a_microphone_may_be_had_by_several_and_says_who_listens() -> None:
    known = known_of(
        device("src:mic", "mic", attachments=[
            {"vm": "work", "options": {}, "listening": True},
            {"vm": "work2", "options": {}, "muted": True, "unconfirmed": "no answer"},
        ])
    )  # fmt: skip
    row = vms_of(known, target("work10"))
    assert [(each.text, each.action) for each in row.vms or ()] == [
        ("work · attached · listening now", Action.EJECT),
        ("work2 · attached · to be muted, may still hear: no answer", Action.EJECT),
        ("work10", Action.ATTACH),
    ]


def test_the_vm_that_had_it_last_comes_first_if_it_can_have_it() -> None:
    known = known_of(device("src:sda"))
    known.pairs.put("block", "id-sda", "work2")
    row = vms_of(known, target("work"), target("work2", "ask"), target("work10"))
    first, *others = row.vms or ()
    assert (first.text, first.is_again, first.is_ask) == (
        "Attach to work2 again · you are asked first", True, True,
    )  # fmt: skip
    assert [each.vm for each in others] == ["work", "work2", "work10"]
    row = vms_of(known, target("work"), target("work2", "deny"), target("work10"))
    assert not any(each.is_again for each in row.vms or ())


def test_what_is_not_current_is_shown_as_it_was_and_cannot_be_chosen() -> None:
    known = known_of(device("src:sda", attachments=[{"vm": "work", "options": {}}]))
    vms_of(known, target("work2"))
    known.why = "dom0's service does not run."
    view = compose(known, 3)
    row = rows_of(view)["sda"]
    assert not view.connected
    assert view.status == "dom0's service does not run. This is how it was before."
    assert not row.enabled
    assert row.vms
    assert not any(each.enabled for each in row.vms)


def test_an_empty_section_says_why() -> None:
    sections = compose(known_of(), 1).sections
    assert sections[0].empty == "No VM that runs has a block device to lend."
    silent = vm("sys-usb") | {"agent": False}
    sections = compose(known_of(vms=(*VMS, silent)), 1).sections
    assert sections[2].empty.endswith(
        "sys-usb runs without an agent, so its devices are not known."
    )


def test_a_thousand_devices_are_cut_and_counted() -> None:
    many = [device(f"src:d{n}", identity=f"{n}{'x' * 250}") for n in range(503)]
    section = compose(known_of(*many), 1).sections[0]
    assert len(section.rows) == 500
    assert section.title == "Block devices (3 more are not shown)"


def test_strange_ones_and_a_broken_policy_are_in_the_status() -> None:
    known = known_of(device("src:sda", size="big"))
    assert compose(known, 1).status.startswith("1 device or VM is left out")
    known = known_of()
    known.policy_ok = False
    status = compose(known, 1).status
    assert status.startswith("The policy has errors")
    assert "of the Devices widget" in status  # it is also shown where there is no such button
    assert len(status) < 64  # a longer one loses its middle in a menu


def test_what_is_done_already_is_not_being_done() -> None:
    """The change comes a moment before the result."""
    known = known_of(device("src:sda"))
    work = Work(DeviceRef("block", "src", "sda", "id-sda"), "work", "attach")
    known.works.begin(work, known.picture)
    assert rows_of(compose(known, 1))["sda"].text == "src:sda · device sda · attaching to work …"
    done = device("src:sda", attachments=[{"vm": "work", "options": {}}])
    known.picture.take(answer([done]))
    assert rows_of(compose(known, 1))["sda"].text == "src:sda · device sda · attached to work"


LINES = st.text(max_size=30)
IDENTITIES = st.text("abu0123456789:-", max_size=40)
USES = st.lists(
    st.fixed_dictionaries(
        {"vm": st.sampled_from(["work", "work2", "gone"]), "options": st.just({})},
        optional={
            "left_over": st.none() | LINES, "unconfirmed": st.none() | LINES,
            "listening": st.none() | st.booleans(), "muted": st.booleans(),
        },
    ),
    max_size=3,
)  # fmt: skip


@st.composite
def any_device(draw: st.DrawFn) -> dict[str, Any]:
    """One that can be read, and says whatever a VM may say."""
    device_class = draw(st.sampled_from(["block", "mic", "usb", "pci", "novel"]))
    ids = st.sampled_from(["a", "b", "c", "1-1"])
    return device(
        f"src:{draw(ids)}",
        device_class,
        identity=draw(IDENTITIES),
        description=draw(LINES),
        busy=draw(st.none() | LINES),
        stale=draw(st.none() | LINES),
        size=draw(st.none() | st.integers(0, 2**63 - 1)),
        parent=draw(st.none() | ids),
        parent_class=draw(st.none() | st.sampled_from(["block", "usb", "mic"])),
        present=draw(st.booleans()),
        attachments=draw(USES),
        assignments=[{"vm": "off", "options": {}}] if draw(st.booleans()) else [],
        conflict=draw(st.none() | LINES),
    )


@given(st.lists(any_device(), max_size=6))
def test_whatever_a_device_says_each_has_a_row_of_one_line(devices: list[dict[str, Any]]) -> None:
    known = known_of(*devices)
    assert known.picture.strange == 0
    told = TargetsTold("", (), (target("work"), target("work2", "ask")), 1)
    for key, each in known.picture.devices.items():
        known.looks.put(DeviceRef(*key, each.identity), Look(told))
    view = compose(known, 1)
    rows = [row for section in view.sections for row in section.rows]
    shown = {(each.ref.device_class, each.ref.device) for each in rows}
    assert len(rows) == len(shown)
    assert shown == {
        (each["device_class"], each["device"])
        for each in devices
        if each["device_class"] in ("block", "mic", "usb")
    }
    for row in rows:
        texts = [row.text, row.spoken, row.note, *row.detail.split("\n")]
        texts += [text for each in row.vms or () for text in (each.text, each.detail)]
        assert all(text.isprintable() for text in texts)
        assert row.text.startswith(f"src:{row.ref.device}")
        assert row.bold == ("attached to" in row.spoken)


def ref(number: int) -> DeviceRef:
    return DeviceRef("block", "src", f"d{number}", "i")


def test_looks_are_few_and_only_the_latest_survives_a_change() -> None:
    looks = Looks()
    for number in range(2 * LOOKS_MAX):
        looks.begin(ref(number), now=1.0)
        looks.put(ref(number), Look(None, "why"))
    assert len(looks) == LOOKS_MAX
    latest = ref(2 * LOOKS_MAX - 1)
    assert looks.changed(2.0) == latest
    assert len(looks) == 1
    assert looks.changed(2.0 + LOOK_S) is None
    assert len(looks) == 0


def test_a_change_is_this_users_own_once_and_for_a_while() -> None:
    works, known = Works(), known_of(device("src:sda"))
    work = Work(DeviceRef("block", "src", "sda", "id-sda"), "work", "attach")
    key = key_of(work.ref)
    assert works.begin(work, known.picture) is None
    assert not works.is_own(key, "vault", "attach", now=1.0)
    works.end(work, 2.0, is_done=True)
    assert works.is_own(key, "work", "attach", now=2.0)
    assert not works.is_own(key, "work", "attach", now=2.0)
    works.begin(work, known.picture)
    works.end(work, 3.0, is_done=True)
    assert not works.is_own(key, "work", "attach", now=3.0 + OWN_S)
    works.begin(work, known.picture)
    works.end(work, 4.0, is_done=False)
    assert not works.is_own(key, "work", "attach", now=4.0)


def test_what_a_failure_undoes_is_no_news_beside_it() -> None:
    works, known = Works(), known_of(device("src:sda"))
    work = Work(DeviceRef("block", "src", "sda", "id-sda"), "work", "attach")
    key = key_of(work.ref)
    for is_undone_first in (True, False):
        works.begin(work, known.picture)
        assert works.is_own(key, "work", "attach", now=1.0)
        if is_undone_first:
            assert works.is_own(key, "work", "detach", now=1.0)
        works.end(work, 2.0, is_done=False)
        assert works.is_own(key, "work", "detach", now=2.0) is not is_undone_first
    works.begin(work, known.picture)
    works.end(work, 3.0, is_done=True)
    assert not works.is_own(key, "work", "detach", now=3.0)


def test_the_details_name_all_that_a_narrow_row_elides() -> None:
    uses = [
        {"vm": "work", "options": {}, "listening": True},
        {"vm": "home", "options": {}, "muted": True},
    ]
    row = rows_of(compose(known_of(device("src:mic", "mic", attachments=uses)), 1))["mic"]
    assert row.detail.splitlines()[-2:] == [
        "attached to home (muted)", "attached to work (listening now)",
    ]  # fmt: skip


IDS = ("sda", "sda1", "sda2", "sdb", "1-2")
STEP = st.one_of(
    st.tuples(
        st.just("put"), st.sampled_from(IDS), st.sampled_from((None, "sda", "1-2")),
        st.sampled_from((None, "usb")), st.sampled_from(("Stick", "Disk")), st.booleans(),
    ),
    st.tuples(st.just("take"), st.sampled_from(IDS)),
    st.tuples(st.just("vm"), st.booleans()),
    st.tuples(st.just("look"), st.sampled_from(IDS)),
    st.tuples(st.just("work"), st.sampled_from(IDS)),
    st.tuples(st.just("why"), st.sampled_from(("", "It broke."))),
)  # fmt: skip


def class_of(name: str) -> str:
    return "usb" if name == "1-2" else "block"


def do(known: Known, step: tuple[Any, ...]) -> None:
    """One change of what is known."""
    kind, *what = step
    if kind == "put":
        name, parent, parent_class, description, is_used = what
        uses = [{"vm": "work", "options": {}}] if is_used else []
        told = device(
            f"src:{name}", class_of(name), parent=parent, parent_class=parent and parent_class,
            description=description, attachments=uses,
        )  # fmt: skip
        known.picture.take(answer([told]))
    elif kind == "take":
        key = {"device_class": class_of(what[0]), "backend": "src", "device": what[0]}
        gone = {"number": 1, "now": None, **key}
        known.picture.take(answer() | {"devices": [gone]})
    elif kind == "vm":
        known.picture.take(answer(vms=[vm("work", runs=what[0])]))
    elif kind == "why":
        known.why = what[0]
    else:
        ref = DeviceRef(class_of(what[0]), "src", what[0], f"id-{what[0]}")
        if kind == "look":
            known.looks.put(ref, Look(TargetsTold(ref.identity, (), (target("work"),), 0)))
        else:
            known.works.begin(Work(ref, "work", "attach"), known.picture)


@given(st.lists(STEP, max_size=12))
def test_a_view_after_a_change_is_as_one_that_is_made_anew(steps: list[tuple[Any, ...]]) -> None:
    known = known_of()
    composer = Composer(known)
    for step in steps:
        do(known, step)
        assert composer.compose(1) == compose(known, 1)


def test_a_change_of_one_device_among_thousands_is_a_change_of_one_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = known_of(*(device(f"src:sd{number}") for number in range(4096)))
    composer = Composer(known)
    composer.compose(1)
    written: list[str] = []
    sorted_anew: list[str] = []

    def write(member: Any, listed: Any, **parts: Any) -> DeviceRow:
        written.append(member.key.device)
        return device_row(member, listed, **parts)

    def order(devices: Any, device_class: str, *others: Any) -> Any:
        sorted_anew.append(device_class)
        return in_order(devices, device_class, *others)

    monkeypatch.setattr(composing, "device_row", write)
    monkeypatch.setattr(composing, "in_order", order)
    known.picture.take(answer([device("src:sd7", description="another")]))
    rows = rows_of(composer.compose(2))
    assert rows["sd7"].text.startswith("src:sd7 · another")
    assert written == ["sd7"]
    assert sorted_anew == []
