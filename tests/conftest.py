"""Shared by all tests."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO

import pytest
import trio
from hypothesis import HealthCheck, settings

from tests import rewriting

# The machine's present speed says nothing about the code.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")


# Shells ignore SIGINT for programs that they start in the background, nohup ignores SIGHUP; child
# processes inherit that, and the tests cover the effect of these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def run_strictly(*arguments: Any, **options: Any) -> Any:
    """trio.run like in later versions: every error that passes through a nursery comes in a
    group."""
    return trio.run(*arguments, strict_exception_groups=True, **options)


#: Folders whose tests build and start programs. Their files take longest, so they begin first: the
#: last ones of a run are then short, and no processor waits for one that still has a long file.
FIRST = ("e2e", "hostile", "native", "interleave", "local", "sound")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With every trio, tests run like the programs: otherwise a helper that raises through its
    nursery would work with Debian 12's trio alone."""
    for item in items:
        # One marker is pytest-trio's own; with one more the test itself says how it is run.
        if len(list(item.iter_markers("trio"))) == 1:
            item.add_marker(pytest.mark.trio(run=run_strictly), append=False)
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Workers of pytest-xdist that collect everything share the work."""
    worker = getattr(session.config, "workerinput", None)
    if worker is not None and session.config.args == session.config.getini("testpaths"):
        number = int(worker["workerid"].removeprefix("gw"))
        rewriting.rewrite_share(session.config, number, worker["workercount"])


ALONE = pytest.StashKey[TextIO]()  # the lock of a run, in a worker of pytest-xdist


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """While a test runs that is marked `alone`, pytest-xdist's other workers wait between tests:
    programs that share a core take more processor time, too."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    # Of a worker, and within the run's own.
    with (Path(item.config.option.basetemp).parent / "alone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        item.stash[ALONE] = lock
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Only this part is `alone`: what fixtures build before takes all processors' time."""
    lock = item.stash.get(ALONE, None)
    if lock is None or item.get_closest_marker("alone") is None:
        return (yield)
    # Gives up its share first (flock(2)), so two that want to be alone do not wait for each other.
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        return (yield)
    finally:
        fcntl.flock(lock, fcntl.LOCK_SH)
