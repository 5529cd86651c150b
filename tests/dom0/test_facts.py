"""Facts about VMs: what vms.d may say, its errors, and what stays in force then."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_dom0.access.audited import AuditedPolicy
from pedos_dom0.audit.log import Audit
from pedos_dom0.drivers.base import DomainInfo
from pedos_dom0.vms.facts import RELOAD_RATE, Facts
from pedos_dom0.vms.facts_file import ERRORS_MAX, FILE_MAX, parse
from pedos_dom0.vms.toml_lines import Lines
from pedos_protocol.fields import TAGS_MAX
from trio.abc import Clock

from tests.dom0.fakes import FakeDriver
from tests.patience import PATIENCE


@pytest.fixture
def driver() -> FakeDriver:
    driver = FakeDriver()
    driver.add("work")
    driver.add("vault", running=False)
    return driver


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "vms.d"
    folder.mkdir()
    return folder


def test_a_vm_may_be_described_in_every_way_that_rules_can_name() -> None:
    said, errors = parse(
        "vms.d/10-x.toml",
        b"""
[vm.work]
type = "StandaloneVM"
tags = ["office", "trusted", "office"]
default-dispvm = "browsing"
internal = false
uuid = "6B9F3E0A-0000-4000-8000-000000000001"

[browsing]
template-for-dispvms = true

[vm.vm]
internal = true

[dom0]
tags = ["admin"]
""",
    )
    assert errors == []
    work = said["work"].facts
    assert (work.type, work.tags) == ("StandaloneVM", {"office", "trusted"})
    assert (work.default_dispvm, work.internal) == ("browsing", False)
    assert work.uuid == "6b9f3e0a-0000-4000-8000-000000000001"
    assert said["browsing"].facts.template_for_dispvms
    assert said["vm"].facts.internal
    assert said["dom0"].facts.type == "AdminVM"
    assert said["browsing"].line == 9


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[vm.work\n", 1, "not valid TOML"),
        ("[vm.work]\ntags = [1]\n", 2, "vm.work.tags: cannot be a number; a list of strings"),
        ("[work]\ntags = 'office'\n", 2, "work.tags: cannot be 'office'"),
        ("[work]\ntags = ['a b']\n", 2, "work.tags: cannot be 'a b'"),
        ("[work]\ntags = ['']\n", 2, "work.tags: cannot be ''"),
        ("[work]\n\ntype = 'appvm'\n", 3, "work.type: cannot be 'appvm'; it is one of AppVM"),
        ("[work]\ntype = ['AppVM']\n", 2, "work.type: cannot be a list"),
        ("[work]\ninternal = 'yes'\n", 2, "work.internal: cannot be 'yes'; it is true or false"),
        ("[work]\ndefault-dispvm = '@x'\n", 2, "work.default-dispvm: cannot be '@x'"),
        ("[work]\ndefault_dispvm = 'x'\n", 2, "work.default_dispvm: unknown key; known here: type"),
        ("[work]\nuuid = 'x'\n", 2, "work.uuid: cannot be 'x'; 32 hexadecimal digits"),
        ("[work]\nuuid = 5\n", 2, "work.uuid: cannot be a number"),
        ("['no/vm']\n", 1, "is not a VM name"),
        ("[Dom0]\n", 1, "dom0 is written dom0"),
        ("[dom0]\ntype = 'AppVM'\n", 2, "dom0.type: unknown key; known here: tags"),
        ("work = 5\n", 1, "work: is a number; a VM is a table"),
        ("[vm]\ntags = ['x']\n", 2, "a VM that is called vm is written [vm.vm]"),
        ("[work]\n[vm.work]\n", 2, "vm.work: work is described twice"),
    ],
)
def test_a_mistake_is_shown_with_its_line_and_key(text: str, line: int, words: str) -> None:
    _, (error,) = parse("vms.d/10-x.toml", text.encode())
    assert error.line == line
    assert words in str(error)
    assert str(error).startswith(f"vms.d/10-x.toml:{line}: ")
    assert error.text == text.splitlines()[line - 1]


def test_all_mistakes_of_a_file_are_found_up_to_a_bound() -> None:
    many = "".join(f"[vm{number}]\ntype = 5\n" for number in range(ERRORS_MAX + 5))
    _, errors = parse("x.toml", many.encode())
    assert [error.line for error in errors] == [*(2 * n + 2 for n in range(ERRORS_MAX)), 0]
    assert errors[-1].message == "5 errors more"


@pytest.mark.parametrize(
    "data",
    [b"\xff", b"a = " + b"[" * 5000, b"x" * (FILE_MAX + 1), b"\0", b"[a]\n[a]\n"],
    ids=["not UTF-8", "nested", "too large", "NUL", "one table twice"],
)
def test_what_is_no_file_of_facts_is_an_error(data: bytes) -> None:
    said, errors = parse("x.toml", data)
    assert said == {} and errors


def test_too_many_tags_are_refused() -> None:
    tags = ", ".join(f'"t{number}"' for number in range(TAGS_MAX + 1))
    _, (error,) = parse("x.toml", f"[work]\ntags = [{tags}]\n".encode())
    assert f"at most {TAGS_MAX} tags" in str(error)


def test_the_system_is_what_the_driver_has_with_what_the_files_say(
    driver: FakeDriver, folder: Path
) -> None:
    (folder / "10-x.toml").write_text('[work]\ntags = ["office"]\n[not-there]\ntags = ["x"]\n')
    facts = Facts(driver, folder)
    assert not facts.known
    assert facts.reload() and facts.known
    domains = facts.system.domains
    assert set(domains) == {"dom0", "work", "vault"}
    assert (domains["dom0"].type, domains["dom0"].power_state) == ("AdminVM", "Running")
    assert (domains["work"].tags, domains["work"].power_state) == ({"office"}, "Running")
    assert (domains["vault"].type, domains["vault"].power_state) == ("AppVM", "Halted")


def test_the_system_is_the_same_object_until_something_changes(driver: FakeDriver) -> None:
    facts = Facts(driver)
    assert facts.known
    before = facts.system
    assert facts.system is before
    driver.infos["vault"] = DomainInfo("vault", 7, "Running")
    now = facts.system
    assert now is not before
    assert now.domains["vault"].power_state == "Running"
    assert before.domains["vault"].power_state == "Halted"
    driver.infos["vault"] = DomainInfo("vault", None, "Halted")
    facts.starting.add("vault")
    assert facts.system.domains["vault"].power_state == "Running"


def test_a_broken_file_leaves_in_force_what_was_known(
    driver: FakeDriver, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "10-x.toml"
    file.write_text('[work]\ntags = ["office"]\n')
    facts = Facts(driver, folder)
    facts.reload()
    file.write_text("[work]\ntags = 5\n")
    for _ in range(2):
        assert not facts.reload()
    assert facts.system.domains["work"].tags == {"office"}
    (said,) = [message for message in caplog.messages if "vms.d/10-x.toml:2" in message]
    assert "stay in force" in said
    (error,) = facts.errors_for_status()
    assert (error.file, error.line, error.text) == ("vms.d/10-x.toml", 2, "tags = 5")
    file.write_text("")
    assert facts.reload()
    assert (facts.errors, facts.system.domains["work"].tags) == ((), frozenset())


def test_a_first_start_with_a_broken_file_knows_nothing(
    driver: FakeDriver, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "10-x.toml").write_text("[work")
    facts = Facts(driver, folder)
    assert not facts.reload()
    assert not facts.known
    assert "everything is denied" in caplog.messages[-1]


def test_a_folder_that_is_missing_is_a_mistake_and_takes_nothing_away(
    driver: FakeDriver, folder: Path
) -> None:
    facts = Facts(driver, folder.with_name("nowhere"))
    assert not facts.reload() and not facts.known
    assert "nowhere: the folder of VMs' facts cannot be read" in str(facts.errors[0])
    assert "make one" in str(facts.errors[0])

    (folder / "10-x.toml").write_text('[work]\ntags = ["office"]\n')
    facts = Facts(driver, folder)
    assert facts.reload()
    folder.rename(folder.with_name("away"))
    assert not facts.reload()
    assert facts.system.domains["work"].tags == {"office"}
    folder.with_name("away").rename(folder)
    assert facts.reload()


def test_files_that_are_not_meant_are_left_alone_and_misnamed_ones_are_errors(
    driver: FakeDriver, folder: Path
) -> None:
    for name in (".10-x.toml", "10-x.toml~", "notes.txt"):
        (folder / name).write_text("[[[")
    facts = Facts(driver, folder)
    assert facts.reload()
    (folder / "Work.toml").write_text("")
    (folder / "20-folder.toml").mkdir()
    os.mkfifo(folder / "30-fifo.toml")
    (folder / "40-link.toml").symlink_to("nowhere")
    assert not facts.reload()
    said = [str(error) for error in facts.errors]
    assert len(said) == 4, said
    assert "its name has only 0-9 a-z" in said[-1] or "its name has only 0-9 a-z" in said[0]
    assert any("20-folder.toml" in each for each in said)
    assert any("30-fifo.toml: is not a regular file" in each for each in said)
    assert any("40-link.toml: cannot be read: No such file" in each for each in said)


def test_more_mistakes_of_all_files_than_the_bound_are_counted(
    driver: FakeDriver, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_dom0.vms.facts.ERRORS_MAX", 3)
    for number in range(5):
        (folder / f"{number}.toml").write_text("[[[")
    facts = Facts(driver, folder)
    assert not facts.reload()
    assert len(facts.errors) == 4
    assert str(facts.errors[-1]) == "vms.d: 2 errors more"


def test_one_vm_in_two_files_is_a_mistake(driver: FakeDriver, folder: Path) -> None:
    (folder / "10-x.toml").write_text("[work]\n")
    (folder / "20-y.toml").write_text("\n[vm.work]\n")
    facts = Facts(driver, folder)
    assert not facts.reload()
    assert str(facts.errors[0]).startswith(
        "vms.d/20-y.toml:2: work is described in vms.d/10-x.toml:1 already"
    )


@pytest.mark.parametrize("what", ["rules", "facts"])
async def test_files_that_change_without_end_are_read_at_a_pace(
    driver: FakeDriver, folder: Path, what: str, autojump_clock: Clock
) -> None:
    with contextlib.closing(Audit(folder / "audit.jsonl")) as audit:
        reads: Callable[[], Awaitable[None]] = {
            "rules": AuditedPolicy([folder], audit)._reload_in_thread,
            "facts": partial(Facts(driver, folder)._reload_in_thread, folder),
        }[what]
        at_once, per_second = RELOAD_RATE
        for _ in range(at_once):
            await reads()
        assert trio.current_time() == pytest.approx(0, abs=0.1)
        for _ in range(10):
            await reads()
        assert trio.current_time() == pytest.approx(10 / per_second)


def test_a_line_is_found_however_its_key_is_written() -> None:
    lines = Lines("\n[ vm . 'work' ]\n\"tags\" = []\na.b.c = 1\n\n[[x]]\n= 5\n[vm.vault.tags]\n")
    assert lines.of(("vm", "work")) == 2
    assert lines.of(("vm", "work", "tags")) == 3
    assert lines.of(("vm", "work", "type")) == 2
    assert lines.of(("vm", "work", "a")) == lines.of(("vm", "work", "a", "b")) == 4
    assert lines.of(("x",)) == 6
    assert lines.of(("vm", "vault")) == lines.of(("vm", "vault", "tags", "more")) == 8
    assert lines.of(("vm", "none")) is None
    assert lines.of(()) is None
    assert (lines.text(3), lines.text(0), lines.text(99), lines.text(None)) == (
        '"tags" = []',
        *3 * [""],
    )


@pytest.mark.parametrize("place", ["vms.d", "elsewhere"])
async def test_a_file_that_is_saved_takes_effect_also_behind_a_link(
    driver: FakeDriver, folder: Path, nursery: trio.Nursery, place: str
) -> None:
    if place != "vms.d":
        folder.with_name(place).mkdir()
        (folder.with_name(place) / "10-x.toml").write_text("")
        (folder / "10-x.toml").symlink_to(f"../{place}/10-x.toml")
    facts = Facts(driver, folder)
    taken = trio.Event()

    def read(_read: object, was_taken: bool) -> None:
        if was_taken:
            taken.set()

    await nursery.start(facts.run)
    facts.on_read = read
    await trio.testing.wait_all_tasks_blocked(0.1)  # it watches
    (folder.with_name(place) / "10-x.toml").write_text('[work]\ntags = ["office"]\n')
    with trio.fail_after(PATIENCE):
        while facts.system.domains["work"].tags != {"office"}:
            await taken.wait()
            taken = trio.Event()
