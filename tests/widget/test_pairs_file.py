"""The memory of pairs, and its file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol.fields import parse_message
from pedos_protocol.messages import Listed
from pedos_widget.model.pairs import FORMAT, PAIRS_MAX, TEXT_MAX, Pairs, parse
from pedos_widget.pairs_file import PairsFile, default_path

from tests.widget.fake_service import device


def listed(name: str = "src:sda", **fields: Any) -> Listed:
    return cast("Listed", parse_message(Listed, device(name, **fields)))


def some_pairs() -> Pairs:
    pairs = Pairs()
    pairs.put("block", "id-1", "work")
    pairs.put("usb", "0781:5567:x:u080650", "vault")
    return pairs


def test_the_latest_are_remembered_by_what_they_are() -> None:
    pairs = Pairs()
    for number in range(PAIRS_MAX + 2):
        pairs.note(listed(identity=f"id-{number}"), "work")
        pairs.note(listed(identity="id-1"), "vault")  # attached again and again
    assert len(pairs) == PAIRS_MAX
    assert pairs.vm_of(listed("other:sdb", identity="id-1")) == "vault"
    assert pairs.vm_of(listed(identity="id-0")) is None
    assert pairs.vm_of(listed(device_class="usb", identity="id-1")) is None
    assert not pairs.note(listed(identity="id-1"), "vault")
    assert pairs.note(listed(identity="id-1"), "work")


def test_what_has_no_identity_is_remembered_by_its_place_and_size() -> None:
    pairs = Pairs()
    file = listed(f"{'v' * 31}:{'d' * 64}", identity="", size=2**63 - 1)
    pairs.note(file, "work")
    assert parse(pairs.text()).vm_of(file) == "work"
    assert pairs.vm_of(listed(f"{'v' * 31}:{'d' * 64}", identity="", size=1)) is None


def test_a_full_memory_fits_into_its_bound_and_comes_back() -> None:
    pairs = Pairs()
    for number in range(PAIRS_MAX):
        pairs.put("a" * 16, f"{number:0256}", "v" * 31)
    assert len(pairs.text()) < TEXT_MAX
    assert parse(pairs.text()).text() == pairs.text()


PAIR = st.fixed_dictionaries({
    "class": st.sampled_from(["block", "", "B", 1]),
    "identity": st.sampled_from(["id", "", "a b", None]),
    "vm": st.sampled_from(["work", "-", ["work"]]),
})  # fmt: skip


@given(
    st.text(max_size=20)
    | st.just("[" * 100_000)
    | st.builds(json.dumps, st.recursive(st.none() | st.integers(), st.lists))
    | st.builds(lambda pairs: json.dumps({"format": FORMAT, "pairs": pairs}), st.lists(PAIR))
)
def test_any_text_is_a_memory_or_an_error_that_says_why(text: str) -> None:
    try:
        pairs = parse(text)
    except ValueError as error:
        assert str(error)
    else:
        assert parse(pairs.text()).text() == pairs.text()


async def test_the_file_is_private_and_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "state/pedos/widget.json"
    async with trio.open_nursery() as nursery:
        file = PairsFile(path)
        assert len(await file.read()) == 0
        nursery.start_soon(file.run)
        file.save(Pairs())
        file.save(some_pairs())
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()  # what is not written yet is written now
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["widget.json"]
    assert (await PairsFile(path).read()).text() == some_pairs().text()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"[" * 200_000, b"9" * 5000])
async def test_a_broken_file_is_set_aside(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "widget.json"
    path.write_bytes(content)
    assert len(await PairsFile(path).read()) == 0
    assert not path.exists()
    assert (tmp_path / "widget.broken").read_bytes() == content
    assert "set aside" in caplog.text


async def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pedos").write_text("a file")
    file = PairsFile(tmp_path / "pedos/widget.json")
    assert len(await file.read()) == 0
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.run)
            file.save(some_pairs())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert sum("cannot be written" in each.message for each in caplog.records) == 1


def test_where_it_is_by_the_xdg_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_path() == Path("/var/state/pedos/widget.json")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, the rules say
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/state/pedos/widget.json"


def test_a_user_without_a_home_remembers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert not default_path().parents[2].exists()
