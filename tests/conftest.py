"""What all tests have in common."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How fast the machine is just now says nothing about the code.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")


@pytest.fixture(autouse=True)
def _nothing_beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """While a test runs that is marked `alone`, pytest-xdist's other workers wait between tests:
    two programs that share a core take more processor time, too."""
    if not hasattr(request.config, "workerinput"):
        yield
        return
    alone = request.node.get_closest_marker("alone") is not None
    with (tmp_path_factory.getbasetemp().parent / "alone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
