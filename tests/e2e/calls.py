"""Calls of services in a running system of local mode: services, and programs that call them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .system import BIN, PATIENCE_S, LocalSystem

Done = subprocess.CompletedProcess[bytes]


def serve(folder: Path, vm: str, name: str, text: str) -> Path:
    """Writes a service of a VM: a program, as its text says."""
    path = folder / "vms" / vm / "services.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def shell(*lines: str) -> str:
    """A program of these lines."""
    return "\n".join(("#!/bin/sh", *lines, ""))


def configure(folder: Path, vm: str, name: str, text: str) -> None:
    """Writes the configuration of a VM's service."""
    path = folder / "vms" / vm / "services.conf.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def call(
    system: LocalSystem, *words: str, vm: str = "work", send: bytes = b"", program: str = "qvm-call"
) -> Done:
    """What a call came to, by its caller's program in a VM."""
    return subprocess.run(
        [BIN / program, *words],
        env=system.environment(vm),
        input=send,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )


@contextlib.contextmanager
def calling(
    system: LocalSystem, *words: str, vm: str = "work", program: str = "qvm-call"
) -> Iterator[subprocess.Popen[bytes]]:
    """A call that goes on meanwhile, with pipes; it ends with the block at the latest."""
    command = subprocess.Popen(
        [BIN / program, *words],
        env=system.environment(vm),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    with command:
        try:
            yield command
        finally:
            command.kill()


def running(system: LocalSystem) -> list[dict[str, Any]]:
    """The calls that `qvm-calls` lists."""
    with system.client() as dom0:
        calls: list[dict[str, Any]] = dom0.call("call.list", {"after": None}, PATIENCE_S)["calls"]
    return calls


def told(system: LocalSystem, request: str) -> list[dict[str, Any]]:
    """All lines of the audit log with this request's, or call's, id."""
    records: list[dict[str, Any]] = json.loads(system.ok("qvm-audit", "show", "--json", request))[
        "records"
    ]
    return records
