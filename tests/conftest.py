"""Shared by all tests."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With every trio, tests run like the programs: otherwise a helper that raises through its
    nursery would work with Debian 12's trio alone."""
    for item in items:
        # One marker is pytest-trio's own; with one more the test itself says how it is run.
        if len(list(item.iter_markers("trio"))) == 1:
            item.add_marker(pytest.mark.trio(run=run_strictly), append=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """While a test runs that is marked `alone`, pytest-xdist's other workers wait between tests,
    each with the fixtures that are made for it: programs that share a core take more processor
    time, too."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    # Of a worker, and within the run's own.
    with (Path(item.config.option.basetemp).parent / "alone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
