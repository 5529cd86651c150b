"""What a Tab offers to `qvm-policy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pedos_cli.completion import candidates
from pedos_cli.qvm_policy import MODULES, build_parser

if TYPE_CHECKING:
    from conftest import FakeService


@pytest.fixture
def files(tmp_path: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    (tmp_path / "p").mkdir()
    for name in ("90-b.policy", "30-a.policy", ".hidden.policy", "notes", "$(x).policy"):
        (tmp_path / "p" / name).write_text("")
    monkeypatch.setenv("PEDOS_POLICY_PATH", f"{tmp_path / 'none'}:{tmp_path / 'p'}")
    service.replies["vm.list"] = {
        "vms": [{"name": n, "state": "Halted", "domid": None, "agent": False} for n in ("work",)]
    }
    return service


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("", list(MODULES)),
        ("edit", ["30-a.policy", "90-b.policy"]),
        ("fmt --check 30-a.policy", ["30-a.policy", "90-b.policy"]),
        ("replace 30-a.policy", ["new", "any"]),
        ("explain device.attach.block +x", ["dom0", "work"]),
        ("suggest --vm", ["work"]),
        ("status", []),
    ],
)
def test_what_could_come_next_is_offered(files: FakeService, line: str, offered: list[str]) -> None:
    assert candidates(build_parser(), line.split(), "") == offered


def test_services_are_those_of_devices() -> None:
    assert "device.attach.block" in candidates(build_parser(), ["explain"], "")


def test_options_are_offered_after_a_hyphen() -> None:
    assert "--policy-dir" in candidates(build_parser(), ["check"], "-")
