"""Policy in a whole system: requests from inside VMs, redirects, tags, and questions."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import needs_fuse
from .prompter import Prompter
from .system import BIN, PATIENCE_S, LocalSystem

pytestmark = needs_fuse

DEVICE = "sys-usb:stick.img"
DENIED, NOT_FOUND = 3, 4


@pytest.fixture(autouse=True)
def disk(system: LocalSystem) -> Path:
    return system.plugged("sys-usb", "stick.img", 1 << 16)


@pytest.fixture(autouse=True)
def nothing_attached(system: LocalSystem) -> Iterator[None]:
    yield
    system.detach_all("work", "vault")


@contextmanager
def file(system: LocalSystem, name: str, text: str) -> Iterator[None]:
    """The file is there, and taken, for as long as the block lasts."""
    path = system.folder / name
    before = taken(system)
    path.write_text(text)
    system.wait_until(lambda: taken(system) > before, f"{name} is in force")
    try:
        yield
    finally:
        before = taken(system)
        path.unlink()
        system.wait_until(lambda: taken(system) > before, f"{name} is no longer in force")


def taken(system: LocalSystem) -> int:
    """How often rules and facts were."""
    audit = (system.folder / "state" / "audit.jsonl").read_text()
    return sum('"outcome": "taken"' in line for line in audit.splitlines())


def audit(system: LocalSystem, request: str) -> list[dict[str, Any]]:
    lines = (system.folder / "state" / "audit.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line)).get("request") == request]


def prompter(system: LocalSystem, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Prompter:
    return Prompter(system.environment()["PEDOS_SOCKET"], answer)


def test_a_user_in_a_vm_gets_what_the_policy_grants_that_vm(
    system: LocalSystem, disk: Path
) -> None:
    assert "stick.img" not in system.ok("qvm-block", vm="work")
    assert "attached to work as xvdi" in system.ok("qvm-block", "attach", "work", DEVICE, vm="work")
    frontend = system.folder / "vms" / "work" / "dev" / "xvdi"
    assert frontend.read_bytes() == disk.read_bytes()
    assert DEVICE in system.ok("qvm-block", "list", vm="work")
    assert DEVICE not in system.ok("qvm-block", "list", vm="vault")
    system.ok("qvm-block", "detach", "work", DEVICE, vm="work")
    assert system.frontends("work") == []


def test_a_denial_tells_the_vm_its_request_and_dom0_the_rest(system: LocalSystem) -> None:
    refused = system.run("qvm-block", "attach", "vault", DEVICE, vm="vault")
    assert refused.returncode == DENIED
    first, second = refused.stderr.splitlines()
    assert first == f"qvm-block: denied: {DEVICE} -> vault"
    (request,) = re.findall(r"request: ([0-9a-f]{12})$", second)
    decision, attach = audit(system, request)
    assert (decision["event"], decision["verdict"]) == ("decision", "deny")
    assert decision["rule"].startswith("50-local.policy:")
    assert attach["outcome"].startswith("denied")
    # Its log is written beside the answer.
    system.wait_until(lambda: request in system.log(), f"{request} is logged")


def test_a_user_in_a_vm_may_ask_for_that_vm_s_verdict_and_no_other(system: LocalSystem) -> None:
    explain = ("qvm-policy", "explain", "--mine", "device.attach.block")
    assert "allow" in system.ok(*explain, f"+{DEVICE}", vm="work")
    answers = [
        system.run(*explain, f"+{device}", vm="vault")
        for device in (DEVICE, "sys-usb:nothing", "nobody:stick.img")
    ]
    assert all("deny" in answer.stdout for answer in answers), answers
    assert len({answer.stdout.replace("nothing", "stick.img") for answer in answers[:2]}) == 1
    for command in (("status",), ("explain", "device.attach.block", "+x", "work", "work")):
        refused = system.run("qvm-policy", *command, vm="work")
        assert refused.returncode != 0
        assert "50-local" not in refused.stdout + refused.stderr


def test_of_a_device_everybody_is_told_what_may_be_known(system: LocalSystem, disk: Path) -> None:
    told = system.ok("qvm-block", "info", DEVICE)
    assert f"  in rules:        +{DEVICE}:" in told
    assert "    deny   vault\n           50-local.policy:" in told
    assert system.run("qvm-block", "info", DEVICE, vm="work").returncode == NOT_FOUND
    system.ok("qvm-block", "attach", "work", DEVICE)
    seen = system.ok("qvm-block", "info", DEVICE, vm="work")
    assert "  used by:         work (attached: frontend-dev=xvdi" in seen
    assert "50-local" not in seen + system.ok("qvm-block", "info", vm="sys-usb")
    assert "work" not in system.ok("qvm-block", "info", DEVICE, vm="sys-usb")


def test_a_rule_can_send_a_device_to_another_vm(system: LocalSystem, disk: Path) -> None:
    rules = f"device.attach.block +{DEVICE} * work allow target=vault read-only=yes\n"
    with file(system, "policy.d/10-test.policy", rules):
        said = system.ok("qvm-block", "attach", "work", DEVICE)
        assert "attached to vault as xvdi" in said and "not to work" in said
        assert system.frontends("work") == []
        frontend = system.folder / "vms" / "vault" / "dev" / "xvdi"
        assert frontend.read_bytes() == disk.read_bytes()
        with pytest.raises(OSError), frontend.open("r+b", buffering=0) as target:
            target.write(b"no")
        system.ok("qvm-block", "detach", "vault", DEVICE)
        # The VM that asks learns that it is done, and not where the device went.
        said = system.ok("qvm-block", "attach", "work", DEVICE, vm="work")
        assert "another VM" in said and "vault" not in said
        assert system.attached_to(DEVICE) == ["vault"]
        system.ok("qvm-block", "detach", "vault", DEVICE)


def test_rules_follow_the_tags_that_vms_d_gives(system: LocalSystem) -> None:
    rules = "device.attach.block * @tag:guest @anyvm deny\n"
    attach = ("qvm-block", "attach", "work", DEVICE)
    with file(system, "policy.d/10-test.policy", rules):
        system.ok(*attach, vm="work")
        system.ok("qvm-block", "detach", "work", DEVICE)
        with file(system, "vms.d/10-test.toml", '[vm.work]\ntags = ["guest"]\n'):
            assert system.run(*attach, vm="work").returncode == DENIED
            broken = system.folder / "vms.d" / "20-broken.toml"
            broken.write_text("[vm.vault]\ntags = 5\n")
            system.wait_until(lambda: not system.policy_status()["ok"], "the mistake is shown")
            (error,) = system.policy_status()["errors"]
            assert (error["file"], error["line"]) == ("vms.d/20-broken.toml", 2)
            assert system.run(*attach, vm="work").returncode == DENIED
            before = taken(system)
            broken.unlink()
            system.wait_until(lambda: taken(system) > before, "the mistake is gone")
            assert system.policy_status()["ok"]
        system.ok(*attach, vm="work")


def test_a_question_is_put_to_dom0_s_user_who_decides(system: LocalSystem, disk: Path) -> None:
    rules = f"device.attach.block +{DEVICE} work work ask read-only=yes\n"
    attach = ("qvm-block", "attach", "work", DEVICE)
    with file(system, "policy.d/10-test.policy", rules):
        refused = system.run(*attach, vm="work")
        assert refused.returncode == DENIED
        (request,) = re.findall(r"request: ([0-9a-f]{12})", refused.stderr)
        assert "no prompter" in [r for r in audit(system, request) if r.get("reason")][-1]["reason"]

        with prompter(system, lambda _: {"verdict": "allow", "target": "work"}) as user:
            system.ok(*attach, vm="work")
            (question,) = user.asked
        assert (question["source"], question["candidates"]) == ("work", ["work"])
        assert (question["device"], question["read_only"]) == ("stick.img", True)
        frontend = system.folder / "vms" / "work" / "dev" / "xvdi"
        assert frontend.read_bytes() == disk.read_bytes()
        system.ok("qvm-block", "detach", "work", DEVICE)

        with prompter(system, lambda _: {"verdict": "deny", "target": None}):
            assert system.run(*attach, vm="work").returncode == DENIED
        events = [record["event"] for record in audit(system, question["request"])]
        assert events == ["decision", "asked", "answered", "attach"]


def test_a_stick_that_is_swapped_while_dom0_s_user_thinks_is_not_attached(
    system: LocalSystem, disk: Path
) -> None:
    content = disk.read_bytes()

    def swap(_question: dict[str, Any]) -> dict[str, Any]:
        disk.unlink()
        system.wait_until(lambda: DEVICE not in system.devices(), "the stick is out")
        system.plug("sys-usb", "stick.img", bytes(len(content)))
        return {"verdict": "allow", "target": "work"}

    rules = f"device.attach.block +{DEVICE} @adminvm work ask\n"
    with file(system, "policy.d/10-test.policy", rules), prompter(system, swap):
        refused = system.run("qvm-block", "attach", "work", DEVICE)
    assert refused.returncode == DENIED
    assert "another device now" in refused.stderr
    assert system.frontends("work") == []
    disk.unlink()
    system.wait_until(lambda: DEVICE not in system.devices(), "the other stick is out")
    system.plug("sys-usb", "stick.img", content)


@pytest.mark.parametrize("vm", ["dom0", "work"])
def test_programs_in_dom0_find_its_files_and_those_in_vms_do_not(
    system: LocalSystem, vm: str
) -> None:
    done = subprocess.run(
        [BIN / "pedos-local", "run", system.folder, "--vm", vm, "--", "env"],
        env={**os.environ, "PEDOS_AUDIT": "inherited", "PEDOS_POLICY_PATH": "inherited"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    wanted = {
        "PEDOS_POLICY_PATH": str(system.folder / "policy.d"),
        "PEDOS_AUDIT": str(system.folder / "state" / "audit.jsonl"),
    }
    assert {name: found.get(name) for name in wanted} == (
        wanted if vm == "dom0" else dict.fromkeys(wanted)
    )
