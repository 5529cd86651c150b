"""What policy, facts and questions survive: `kill -9` of the service, and users who give up."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pedos_cli.client import Unreachable

from .conftest import needs_fuse
from .prompter import Prompter
from .system import PATIENCE_S, LocalSystem

pytestmark = needs_fuse

DEVICE = "sys-usb:stick.img"
ATTACH = ("qvm-block", "attach", "work", DEVICE)
DENIED = 3


@pytest.fixture(autouse=True)
def disk(system: LocalSystem) -> Path:
    return system.plugged("sys-usb", "stick.img", 1 << 16)


@pytest.fixture(autouse=True)
def as_it_was(system: LocalSystem) -> Iterator[None]:
    """The module's system is left as it was found, whatever a test has made of its files."""
    folders = [system.folder / name for name in ("policy.d", "vms.d")]
    before = {path: path.read_bytes() for folder in folders for path in files(folder)}
    yield
    for folder in folders:
        for path in files(folder):
            if path not in before:
                path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
    system.wait_until(lambda: is_own_policy(system), "the policy is as it was")
    system.detach_all("work")


def files(folder: Path) -> list[Path]:
    """Without the folder that qvm-policy locks."""
    return [path for path in folder.iterdir() if path.is_file() or path.is_symlink()]


def status(system: LocalSystem) -> dict[str, Any]:
    try:
        return system.policy_status()
    except Unreachable:
        return {"ok": None, "errors": []}


def is_own_policy(system: LocalSystem) -> bool:
    """Are the rules of the system's own file in force, and no others? That all is well is not
    enough: so it is before the service has noticed that a test's file has gone."""
    now = status(system)
    return now["ok"] is True and now["rules"] == before_rules(system)


def records(system: LocalSystem, event: str) -> list[dict[str, Any]]:
    lines = (system.folder / "state" / "audit.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["event"] == event]


def kill_service(system: LocalSystem, meanwhile: Callable[[], object] = lambda: None) -> None:
    """`kill -9`; returns when the next one serves, and knows all agents."""
    (pid,) = system.victim("dom0")
    os.kill(pid, signal.SIGKILL)
    meanwhile()
    system.wait_until(lambda: system.victim("dom0") not in ([], [pid]), "the service is back")
    system.wait_until(
        lambda: system.agents() >= {"sys-usb", "work", "vault"}, "the agents are back"
    )


class Pending:
    """A prompter's user who has been asked and does not answer before `release`."""

    def __init__(self, system: LocalSystem) -> None:
        self.asked = threading.Event()
        self.release = threading.Event()
        self.prompter = Prompter(system.environment()["PEDOS_SOCKET"], self._answer)

    def _answer(self, _question: dict[str, Any]) -> dict[str, Any]:
        self.asked.set()
        assert self.release.wait(PATIENCE_S)
        return {"verdict": "allow", "target": "work"}


def ask_rule(system: LocalSystem, source: str) -> None:
    path = system.folder / "policy.d" / "10-test.policy"
    path.write_text(f"device.attach.block +{DEVICE} {source} work ask\n")
    system.wait_until(
        lambda: status(system)["rules"] > before_rules(system), "the rule is in force"
    )


def before_rules(system: LocalSystem) -> int:
    """How many rules the system's own file has."""
    lines = (system.folder / "policy.d" / "50-local.policy").read_text().splitlines()
    return sum(bool(line.strip()) and not line.startswith("#") for line in lines)


def test_a_user_in_a_vm_who_gives_up_takes_the_question_back(system: LocalSystem) -> None:
    ask_rule(system, "work")
    user = Pending(system)
    with user.prompter, system.started(*ATTACH, vm="work") as asking:
        try:
            assert user.asked.wait(PATIENCE_S)
            asking.send_signal(signal.SIGINT)
            asking.communicate(timeout=PATIENCE_S)
            system.wait_until(lambda: records(system, "answered"), "the question has an end")
            answered = records(system, "answered")[-1]
            assert (answered["verdict"], answered["seconds"] < 30) == ("deny", True)
            assert "has ended" in answered["reason"]
        finally:
            user.release.set()
    assert system.attached_to(DEVICE) == []


@pytest.mark.parametrize("source", ["@adminvm", "work"])
def test_a_service_that_is_killed_while_it_asks_has_attached_nothing(
    system: LocalSystem, source: str
) -> None:
    ask_rule(system, source)
    user = Pending(system)
    vm = "dom0" if source == "@adminvm" else "work"
    with user.prompter, system.started(*ATTACH, vm=vm) as asking:
        try:
            assert user.asked.wait(PATIENCE_S)
            kill_service(system)
            _, said = asking.communicate(timeout=PATIENCE_S)
            assert asking.returncode not in (0, DENIED), said
        finally:
            user.release.set()  # this yes comes too late for any question
    assert system.attached_to(DEVICE) == []
    assert system.frontends("work") == [] and system.helpers() == []
    # Nothing of it is left over: the same can be asked again, and be granted.
    granted = Prompter(
        system.environment()["PEDOS_SOCKET"], lambda _: {"verdict": "allow", "target": "work"}
    )
    with granted:
        system.ok(*ATTACH, vm=vm)
    assert system.attached_to(DEVICE) == ["work"]


def test_a_service_that_is_killed_while_it_reads_a_policy_comes_back_with_the_new_one(
    system: LocalSystem,
) -> None:
    big = "".join(f"device.attach.block +sys-usb:d{n} work vault deny\n" for n in range(10_000))
    file = system.folder / "policy.d" / "10-test.policy"
    system.ok(*ATTACH, vm="work")

    def change() -> None:
        file.write_text(big + f"device.detach.block +{DEVICE} work work deny\n")

    change()
    kill_service(system)
    system.wait_until(lambda: status(system).get("rules", 0) > 10_000, "all its rules are in force")
    assert system.attached_to(DEVICE) == ["work"]
    assert system.run("qvm-block", "detach", "work", DEVICE, vm="work").returncode == DENIED
    file.unlink()
    system.wait_until(lambda: is_own_policy(system), "they are gone")
    system.ok("qvm-block", "detach", "work", DEVICE, vm="work")


def test_a_service_that_comes_back_to_broken_files_denies_everything_until_they_are_mended(
    system: LocalSystem,
) -> None:
    system.ok(*ATTACH, vm="work")
    broken = [system.folder / name for name in ("policy.d/10-test.policy", "vms.d/10-test.toml")]

    def smash() -> None:
        for path in broken:
            path.write_text("nonsense [\n")

    kill_service(system, smash)
    for path in broken:
        now = status(system)
        assert (now["ok"], now["loaded_at"], now["rules"]) == (False, "", 0)
        assert now["errors"][0]["file"].endswith(path.name)
        assert system.run("qvm-block", "detach", "work", DEVICE).returncode == DENIED
        path.unlink()
        system.wait_until(
            lambda name=path.name: not any(
                error["file"].endswith(name) for error in status(system)["errors"]
            ),
            "it is mended",
        )
    refused = [line for line in records(system, "policy") if line["outcome"] == "refused"]
    assert [line["what"] for line in refused[-2:]] == ["rules", "facts"]
    assert {line["in_force"] for line in refused[-2:]} == {"nothing; everything is denied"}
    assert system.attached_to(DEVICE) == ["work"]
    system.ok("qvm-block", "detach", "work", DEVICE, vm="work")


def test_facts_that_change_while_the_service_is_away_are_what_it_comes_back_with(
    system: LocalSystem,
) -> None:
    (system.folder / "policy.d" / "10-test.policy").write_text(
        "device.attach.block * @tag:guest @anyvm deny\n"
    )
    facts = system.folder / "vms.d" / "10-test.toml"
    kill_service(system, lambda: facts.write_text('[vm.work]\ntags = ["guest"]\n'))
    assert system.run(*ATTACH, vm="work").returncode == DENIED
    facts.unlink()
    system.wait_until(lambda: system.run(*ATTACH, vm="work").returncode == 0, "the tag is gone")
