"""Shared by all tests."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import re
import signal
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

from tests import rewriting
from tests.alone import Turns
from tests.lingering import Lingering, closing, until
from tests.schedule import SHARE, WAITING, Scheduling, say_less, share_of

ROOT = Path(__file__).parents[1]

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


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Each worker of pytest-xdist learns what is its own to collect."""
    config = node.config
    # For --last-failed, pytest runs all of a share that has nothing of what failed.
    if is_of_all(config) and config.getvalue("dist") == "loadfile" and not config.option.lf:
        share = share_of(number_of(node.workerinput), len(config.getvalue("tx")))
        node.workerinput[SHARE] = share
    # What asks for each part of a test gets it.
    asks = config.option.verbose > 0 or config.option.durations or config.option.xmlpath
    node.workerinput[SAYS_LESS] = not asks


SAYS_LESS = "pedos-says-less"


def is_of_all(config: pytest.Config) -> bool:
    return config.args == config.getini("testpaths")


def number_of(worker: Mapping[str, Any]) -> int:
    return int(worker["workerid"].removeprefix("gw"))


def sends(plugin: object) -> bool:
    """Whether it is pytest-xdist's, by which a worker speaks: it has no name."""
    return hasattr(plugin, "sendevent")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Workers of pytest-xdist that collect everything share the work."""
    gc.disable()  # until that is over: nothing of what it brings is garbage
    config = session.config
    worker = getattr(config, "workerinput", None)
    if worker is None:
        return
    if worker[SAYS_LESS]:
        say_less(next(each for each in config.pluginmanager.get_plugins() if sends(each)))
    if is_of_all(config):
        rewriting.rewrite_share(config, number_of(worker), worker["workercount"])
        if worker.get(SHARE):
            config.args[:] = [WAITING]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What waits is the share of other workers (tests/schedule.py)."""
    waits = f"{collection_path.relative_to(ROOT)}/" == WAITING
    share = getattr(config, "workerinput", {}).get(SHARE)
    return True if waits and share is False else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """What thousands of tests have brought stays to the end: Python's collector need not look at
    it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def leaks_are_told_here() -> Iterator[None]:
    """A socket, process or coroutine that nobody closed is told of by Python's collector, as an
    error (filterwarnings): in the file that left it, and not in an innocent one that comes later in
    the same process."""
    yield
    gc.collect()


NUMBERS = itertools.count()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """As pytest's own, which for its number reads the names of all folders that other tests have
    had: with thousands of tests these are seconds."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder = tmp_path_factory.getbasetemp() / f"{name}{next(NUMBERS)}"
    folder.mkdir(mode=0o700)
    return folder


TURNS = pytest.StashKey[Turns | None]()


def turns_of(config: pytest.Config) -> Turns | None:
    """How a worker of pytest-xdist takes turns with the others; None where there are none."""
    if TURNS not in config.stash:
        # A worker's own folder is within the run's.
        run = Path(config.option.basetemp).parent if hasattr(config, "workerinput") else None
        config.stash[TURNS] = turns = None if run is None else Turns(run)
        if turns is not None:
            config.add_cleanup(turns.close)
    return config.stash[TURNS]


def is_alone(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """While a test runs that is marked `alone`, pytest-xdist's other workers wait between tests:
    programs that share a core take more processor time, too. They wait once for all such tests
    that follow each other."""
    with log_as_before():
        turns = turns_of(item.config)
        if turns is None:
            return (yield)
        if not turns.is_alone:
            turns.share()
        try:
            return (yield)
        finally:
            if not (turns.is_alone and is_alone(nextitem)):
                turns.leave()


@contextlib.contextmanager
def log_as_before() -> Iterator[None]:
    """Some tests call a program's own main function, which sends all of the log to where the
    program's goes: that lasts no longer than the test."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Only from here on the test is `alone`: what its fixtures have built before takes all
    processors' time."""
    turns = turns_of(item.config)
    if turns is not None and is_alone(item) and not turns.is_alone:
        turns.have_it_alone()
    return (yield)


@pytest.fixture
async def lingering() -> AsyncIterator[Lingering]:
    """A descriptor whose close(2) waits until the test ends, or releases it."""
    made = Lingering()
    yield made
    made.close()
    made.release()
    await until(lambda: not closing())
