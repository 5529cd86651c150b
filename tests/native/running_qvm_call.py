"""qvm-call, built with sanitizers, and an agent that does what the test says."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.call_agent import FakeAgent
from tests.compiled import sanitized
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PIPE = subprocess.PIPE
SH = ["--", "/bin/sh", "-c"]
ESCAPES = b"a\x1b[31mb\xc3\xa4\t\a\b\r\n"
HARMLESS = b"a_[31mb__\t\a\b\r\n"
BULK = bytes(range(256)) * 8192  # 2 MiB: more than any pipe or socket holds


@pytest.fixture(scope="module")
def program() -> Path:
    return sanitized("call") / "qvm-call"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    made = FakeAgent(tmp_path / "calls")
    yield made
    made.close()


Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run(program: Path, agent: FakeAgent) -> Iterator[Run]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PEDOS_CALL_SOCKET": str(agent.path)}
        environment.update(options.pop("env", {}))
        streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **options}
        process = subprocess.Popen([program, *arguments], env=environment, **streams)
        started.append(process)
        return process

    yield start
    for each in started:
        each.kill()
        each.wait()
        for stream in (each.stdin, each.stdout, each.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Its exit status, and what else it has written."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out or b"", err or b""


def is_same(descriptor: int, file: Any) -> bool:
    ours, theirs = os.fstat(descriptor), os.fstat(file.fileno())
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
