"""An end of a call against a hostile process, under the sanitizers: every call ends, in order."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE

from . import build

ROUNDS = 15


@pytest.fixture(scope="module", params=build.SANITIZERS)
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.call_victim(tmp_path_factory.mktemp("calls"), request.param)


@pytest.mark.parametrize("side", ["caller", "service"])
def test_whatever_a_hostile_process_writes_every_call_ends(victim: Path, side: str) -> None:
    command = [victim, side, str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    ends = {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert ends.pop("rounds") == ROUNDS == sum(ends.values())
    assert ends["breach"] > 0
    assert ends["no_end"] == 0
