"""One running system a module: bringing it up costs more than a test, and it must come back right
after every test anyway."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .faults import FaultController
from .system import LocalSystem

# A shell that runs the tests in the background has them ignore it, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("nbdfuse") is None,
    reason="an imported device is a FUSE file: this needs /dev/fuse and nbdfuse",
)


@pytest.fixture(scope="module")
def faults() -> Iterator[FaultController]:
    with tempfile.TemporaryDirectory(prefix="pedos-faults-") as folder:
        controller = FaultController(Path(folder) / "faults.sock")
        yield controller
        controller.close()


@pytest.fixture(scope="module")
def system(faults: FaultController) -> Iterator[LocalSystem]:
    with tempfile.TemporaryDirectory(prefix="pedos-e2e-") as folder:
        local = LocalSystem(Path(folder) / "system")
        local.init()
        local.up({"PEDOS_FAULTPOINTS": str(faults.path)})
        try:
            yield local
        finally:
            status = local.down()
        assert status == 0, local.log()
        assert local.processes() == [], "something outlived the machine"
