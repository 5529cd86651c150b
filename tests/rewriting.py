"""pytest rewrites the assertions of a test file before it runs it, and keeps the result beside the
file. That is most of what collecting takes, and each worker of pytest-xdist collects all files in
the same order: in a fresh checkout, each would rewrite all of them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from _pytest.assertion import rewrite  # of the version that tools/requirements-run.txt names

TESTS = Path(__file__).parent


def rewrite_share(config: pytest.Config, worker: int, workers: int) -> None:
    """Rewrites this worker's share of the test files, of which the others then find the result.
    None waits for another: what is not there yet is rewritten when it is collected, as ever."""
    # The programs' own are written as well, by tools/setup.
    sys.dont_write_bytecode = False
    state = config.stash[rewrite.assertstate_key]
    for path in sorted(TESTS.rglob("test_*.py"))[worker::workers]:
        folder = rewrite.get_cache_dir(path)
        kept = folder / (path.name.removesuffix(".py") + rewrite.PYC_TAIL)
        if rewrite._read_pyc(path, kept) is None and rewrite.try_makedirs(folder):
            with contextlib.suppress(Exception):  # is told when the file is collected
                stat, code = rewrite._rewrite_test(path, config)
                rewrite._write_pyc(state, code, stat, kept)
