"""Where programs of a local system call services."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_dom0.local.bringup import LocalPrograms, client_environment
from pedos_dom0.local.config import Config, VmConfig
from pedos_dom0.local.layout import Layout
from pedos_protocol.sockets import call_socket_beside

CONFIG = Config(vms=(VmConfig("work"),))


@pytest.mark.parametrize("vm", ["work", "dom0"])
def test_a_program_finds_the_socket_of_its_vms_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vm: str
) -> None:
    monkeypatch.setenv("PEDOS_CALL_SOCKET", "/of/another/system")
    layout = Layout.of(tmp_path)
    programs = LocalPrograms(layout, CONFIG, verbose=False)
    argv = programs.dom0_agent().argv if vm == "dom0" else programs.agent(vm, 1).argv
    environment = client_environment(layout, CONFIG, vm)
    assert "PEDOS_CALL_SOCKET" not in environment
    assert argv[argv.index("--call-socket") + 1] == call_socket_beside(environment["PEDOS_SOCKET"])
