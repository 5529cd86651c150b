"""The same systems as in tests/e2e."""

from tests.e2e.conftest import faults, kept_system, pytest_runtest_makereport, system

__all__ = ["faults", "kept_system", "pytest_runtest_makereport", "system"]
