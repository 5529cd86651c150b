"""One running system per module: starting it takes longer than a test, and it must recover right
after every test anyway."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pedos_dom0.local.layout import Layout, sweep

from .faults import FaultController
from .system import LocalSystem, wait_until

Prepare = Callable[[LocalSystem], dict[str, str]]

# Their systems start each program by exec(2), as users have it. What all others show does not
# depend on that (see tests/warm.py), and a fifth of the time of all tests went there.
COLD = ("test_calls.py", "test_desktop.py", "test_policy.py", "test_scenarios.py", "test_watch.py")

FAILED = pytest.StashKey[bool]()

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


class KeptSystem:
    """The module's system, and a fresh one after it was lost or a test has failed: leftovers of
    that test must not fail another one."""

    def __init__(self, faults: FaultController, prepare: Prepare, *, is_warm: bool) -> None:
        self._faults = faults
        self._prepare = prepare
        self._is_warm = is_warm
        self._folders = contextlib.ExitStack()
        self._local: LocalSystem | None = None

    def get(self) -> LocalSystem:
        if self._local is None:
            folder = self._folders.enter_context(
                tempfile.TemporaryDirectory(prefix="pedos-e2e-", ignore_cleanup_errors=True)
            )
            self._faults.disarm()
            self._local = LocalSystem(Path(folder) / "system", is_warm=self._is_warm)
            self._local.init()
            more = self._prepare(self._local)
            try:
                self._local.up({"PEDOS_FAULTPOINTS": str(self._faults.path), **more})
            except BaseException:
                self.drop()
                raise
        return self._local

    def drop(self) -> None:
        """It may be in any state: nothing is expected of its end, but that nothing stays."""
        local, self._local = self._local, None
        if local is not None:
            local.kill()
            wait_until(lambda: local.processes() == [], "the killed system's programs are gone")
            sweep(Layout.of(local.folder))

    def end(self) -> None:
        """The end that a user makes, if it is still well."""
        with self._folders:
            local, self._local = self._local, None
            if local is None:
                return
            status = local.down()
            assert status == 0, local.log()
            assert local.processes() == [], "something outlived the machine"


@pytest.fixture(scope="module")
def prepare() -> Prepare:
    """What is done with each system before it is brought up, and the environment that it gets. A
    module that has something to prepare has such a fixture of its own."""
    return lambda _system: {}


@pytest.fixture(scope="module")
def kept_system(
    faults: FaultController, prepare: Prepare, request: pytest.FixtureRequest
) -> Iterator[KeptSystem]:
    kept = KeptSystem(faults, prepare, is_warm=request.path.name not in COLD)
    yield kept
    kept.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        kept = getattr(item, "funcargs", {}).get("kept_system")
        if report.when == "teardown" and isinstance(kept, KeptSystem):
            kept.drop()
    return report


@pytest.fixture
def system(request: pytest.FixtureRequest, kept_system: KeptSystem) -> Iterator[LocalSystem]:
    local = kept_system.get()
    yield local
    lost = local.lost()
    if lost is not None or request.node.stash.get(FAILED, False):
        kept_system.drop()
    assert lost is None, lost
