"""qvm-audit finds the log of the system that PEDOS_SOCKET names, and qvm-policy its policy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from pedos_cli import place, policy_files, qvm_audit, qvm_policy
from pedos_cli.completion import _policy_files
from pedos_dom0.local.init import init
from pedos_dom0.local.layout import Layout

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for name in ("PEDOS_AUDIT", "PEDOS_POLICY_PATH", "PEDOS_VM"):
        monkeypatch.delenv(name, raising=False)
    layout = init(str(tmp_path / "lab"))
    layout.audit.write_text('{"time":"2026-01-31T14:05:00.000Z","event":"service","what":"up"}\n')
    monkeypatch.setenv("PEDOS_SOCKET", str(layout.dom0_socket))
    return layout


def folders() -> list[str]:
    return policy_files.folders(argparse.Namespace(folders=None))


def test_the_log_and_the_policy_are_those_of_the_socket(layout: Layout, capsys: Captured) -> None:
    assert qvm_audit.main([]) == 0
    assert capsys.readouterr().out.endswith("  -  service  -  up\n")
    assert folders() == [str(layout.policy)]
    assert _policy_files(None) == ["50-local.policy"]  # type: ignore[arg-type]


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_to_the_socket_will_do(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    run = tmp_path / "elsewhere"
    if link == "folder":
        run.symlink_to(layout.run)
    else:
        run.mkdir()
        (run / "dom0.sock").symlink_to(layout.dom0_socket)
    monkeypatch.setenv("PEDOS_SOCKET", str(run / "dom0.sock"))
    assert folders() == [str(layout.policy)]


def test_a_relative_path_will_do(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layout.root)
    monkeypatch.setenv("PEDOS_SOCKET", "run/dom0.sock")
    assert place.audit_file() == str(layout.audit)


def test_what_is_named_itself_counts(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEDOS_AUDIT", "/a")
    monkeypatch.setenv("PEDOS_POLICY_PATH", "/p:/q")
    assert (place.audit_file(), folders()) == ("/a", ["/p", "/q"])


def test_the_socket_of_this_host_names_its_log_and_its_policy(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for socket in ("/run/pedos/pedos.sock", ""):
        monkeypatch.setenv("PEDOS_SOCKET", socket)
        assert place.audit_file() == place.DEFAULT_AUDIT
        assert place.policy_path() == place.DEFAULT_POLICY


def test_a_socket_of_an_unknown_system_shows_neither_the_log_nor_the_policy_of_another(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    here = tmp_path / "audit.jsonl"
    here.write_bytes(layout.audit.read_bytes())
    monkeypatch.setattr(place, "DEFAULT_AUDIT", str(here))
    monkeypatch.setattr(place, "DEFAULT_POLICY", str(layout.policy))
    for socket in (layout.client_socket("work"), "/dom0.sock", tmp_path, "/dev/null"):
        monkeypatch.setenv("PEDOS_SOCKET", str(socket))
        assert qvm_audit.main([]) == 4
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            f"qvm-audit: not found: where the system of PEDOS_SOCKET={socket} has its audit log is "
            "not known\n  try:  PEDOS_AUDIT=FILE (in local mode: DIR/state/audit.jsonl)\n"
        )
        assert qvm_audit.main(["--file", str(here)]) == 0
        assert capsys.readouterr().out.endswith("  -  service  -  up\n")
        assert qvm_policy.main(["check"]) == 4
        assert "has its policy is not known\n  try:  --policy-dir DIR" in capsys.readouterr().err
        assert qvm_policy.main(["check", "--policy-dir", str(layout.policy)]) == 0
        assert _policy_files(None) == []  # type: ignore[arg-type]
        capsys.readouterr()


def test_a_vm_is_shown_no_log_that_this_host_has(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(place, "DEFAULT_AUDIT", str(layout.audit))
    monkeypatch.setenv("PEDOS_VM", "work")
    monkeypatch.setenv("PEDOS_SOCKET", str(layout.client_socket("work")))
    assert qvm_audit.main([]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "qvm-audit: failed: only dom0 has the audit log, and here is work\n")


def test_the_names_are_those_of_the_layout() -> None:
    layout = Layout(Path("/lab"))
    assert layout.dom0_socket.name == place.SOCKET
    assert layout.dom0_socket.parents[1] == layout.root
    assert layout.desktop_socket.name == place.SOCKET
    assert layout.desktop_socket.parent == layout.dom0_socket.parent / place.DESKTOP
    assert layout.config == layout.root / place.MARK
    assert os.fspath(layout.audit) == f"/lab/{place.AUDIT}"
    assert os.fspath(layout.policy) == f"/lab/{place.POLICY}"


def test_the_socket_of_the_desktop_leads_to_the_same_system(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_SOCKET", str(layout.desktop_socket))
    assert place.audit_file() == str(layout.audit)
    assert folders() == [str(layout.policy)]
