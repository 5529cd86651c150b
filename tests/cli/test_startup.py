"""A command line has to start fast: this lists what it must not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import FakeService

#: Each costs several milliseconds, against the ten that an empty Python takes.
HEAVY = {
    "trio", "attr", "typing", "dataclasses", "subprocess", "json", "shutil", "asyncio", "cffi",
    "socket", "selectors", "logging", "traceback", "inspect", "argcomplete", "pathlib",
    "pedos_protocol.messages", "pedos_host", "pedos_vchan",
}  # fmt: skip

# Without site: what a virtual environment's .pth files import is not ours.
RUN = """
import sys
sys.path[:0] = {path!r}
before = set(sys.modules)
from pedos_cli import {module}
status = {module}.main({argv!r})
sys.stdout.flush()
print("\\n" + " ".join(set(sys.modules) - before), status, file=sys.stderr)
"""


def imported(module: str, *argv: str) -> set[str]:
    # An editable install is found by a finder of its own; its answer is where the code stands.
    import pedos_cli
    import pedos_protocol

    path = [str(Path(each.__file__).parents[1]) for each in (pedos_cli, pedos_protocol)]
    path += [entry for entry in sys.path if entry.endswith("site-packages")]
    code = RUN.format(path=path, module=module, argv=list(argv))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    *modules, status = done.stderr.splitlines()[-1].split()
    assert status == "0", done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "module",
    [
        "qvm_device", "qvm_ls", "qvm_start", "qvm_shutdown", "qvm_sleep", "qvm_policy",
        "qvm_prompt", "qvm_audit",
    ],
)  # fmt: skip
def test_help_imports_nothing_heavy(module: str) -> None:
    modules = imported(module, "--help")
    assert "pedos_cli.run" in modules
    assert not modules & HEAVY


def test_list_imports_nothing_heavy(service: FakeService) -> None:
    service.replies["device.list"] = {"devices": [], "policy": None}
    modules = imported("qvm_device", "block", "list")
    assert service.asked("device.list")["device_class"] == "block"
    assert not modules & HEAVY


def test_json_is_imported_by_who_asks_for_it(service: FakeService) -> None:
    service.replies["device.list"] = {"devices": [], "policy": None}
    done = subprocess.run(
        [sys.executable, "-m", "pedos_cli.qvm_device", "block", "--json"],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        timeout=20,
        check=True,
    )
    assert json.loads(done.stdout) == {"devices": [], "policy": None}
