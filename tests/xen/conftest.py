"""One booted bench for all tests here. They run with PEDOS_XEN=1 alone: `make test-xen`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from . import image
from .bench import Bench, BenchError, show_times
from .driving import (
    DISK,
    POLICY,
    START_LIMIT,
    STICK,
    insert_disk,
    is_there,
    plug,
    reboot,
    run_personal,
    wait_for,
)
from .figures import tell, told

GUESTS = ("sys-usb", "work")

#: What the toolstack and the guests' kernels said, without the harness's own lines.
XEN_LOGS = (
    "for log in /var/log/xen/xl-*.log /var/log/xen/console/guest-*.log; do "
    "echo \"$log:\"; grep -av -e '^@@ ' -e '^.\\?$' $log | tail -n 20; done"
)

# Lines of a journal; with more of them below each failure one does not see what has failed.
LINES_KEPT, LINES_SHOWN = 1000, 20

LOG_LIMIT = 30.0  # seconds that each of these may take of a run: a domain may be what hangs

# The end of a failure's text, which says what was expected; all of it follows when the run ends.
LINES_AT_ONCE = 15

#: What is lent beside disks, and calls of services; the rest is the base. Each half can run alone.
DEVICE_TESTS = (
    "test_calls.py",
    "test_mic.py",
    "test_pci*.py",
    "test_qemu_devices.py",
    "test_usb*.py",
)


def left_out(part: str, here: Path) -> list[str]:
    """The files here that a run of this part leaves out: "1" is all of it, "" nothing."""
    if part == "base":
        return list(DEVICE_TESTS)
    tests = sorted(path.name for path in here.glob("test_*.py"))
    if part == "devices":
        return [name for name in tests if not any(fnmatch(name, glob) for glob in DEVICE_TESTS)]
    assert part in ("", "1"), f"PART={part}: there are base and devices"
    return [] if part else tests


# Booting takes minutes: `make test` leaves all this out.
collect_ignore_glob = left_out(os.environ.get("PEDOS_XEN", ""), Path(__file__).parent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for figure in told():
        terminalreporter.write_line(f"bench: {figure}")


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Xen with dom0, a driver domain and a work VM. Its logs stay when a test has failed."""
    with booted_bench() as booted:
        yield booted
    if request.session.testsfailed:
        print(f"\nbench: its logs are in {booted.folder}")
    else:
        (booted.folder / "commands.log").rename(image.CACHE / "commands.log")  # where the time goes
        shutil.rmtree(booted.folder)


@contextlib.contextmanager
def booted_bench() -> Iterator[Bench]:
    """A bench whose guests have booted. A dom0 that ends before it has said a word is told of and
    booted once more: its kernel has panicked so in one boot of some fifty, before anything of ours
    ran there, and that is no finding about us."""
    for last in (False, True):
        with Bench(image.build()) as booting:
            try:
                booting.boot(*GUESTS)
            except BenchError as error:
                if last or booting.times:
                    raise
                tell(f"dom0 did not boot, and was booted again; its logs are in {booting.folder}")
                print(error)
                continue
            tell(show_times(booting))
            yield booting
            return


@pytest.fixture(scope="module")
def driver_domain(bench: Bench) -> None:
    run_driver_domain(bench)


def run_driver_domain(bench: Bench) -> None:
    """It runs, and its agent is connected; another test may have destroyed it."""
    if not is_there(bench, "sys-usb"):
        bench.start("sys-usb")
        wait_for(bench, "agent sys-usb")


@pytest.fixture
def stick(bench: Bench) -> str:
    """The stick, plugged into the driver domain. Nobody has it: whatever the test before left."""
    give_stick(bench)
    return STICK


def give_stick(bench: Bench) -> None:
    listed = json.loads(bench.run("dom0", f"rm -f {POLICY}; bench-look devices").check())
    parts = {name: part for name, part in listed.items() if name.startswith(STICK)}
    for name, part in parts.items():
        for vm in {use["vm"] for use in part["attachments"] + part["assignments"]}:
            bench.run("dom0", f"qvm-block detach --force {vm} {name}").check()
    if not any(part["present"] for part in parts.values()):
        run_driver_domain(bench)
        plug(bench)


@pytest.fixture(scope="session")
def started(bench: Bench) -> Iterator[Callable[[], str]]:
    """A start of "personal" by the service, with DISK assigned to it and to "vault". Call what this
    gives to wait for its end: the VM boots beside tests that need neither."""
    insert_disk(bench)
    for vm in ("personal", "vault"):
        said = bench.run("dom0", f"qvm-block attach --persistent {vm} {DISK}").check()
        assert f"assigned to {vm}" in said
    with concurrent.futures.ThreadPoolExecutor() as threads:
        start = threads.submit(bench.run, "dom0", "qvm-start personal", limit=START_LIMIT)
        yield lambda: start.result().check()


@pytest.fixture(scope="session")
def rebooted(bench: Bench) -> Iterator[Callable[[], None]]:
    """A reboot of "personal", which has the stick. Call what this gives to wait for its end.

    It takes a minute in which dom0 has little to do, so it begins with the first test that may run
    beside it.
    """
    give_stick(bench)
    run_personal(bench)
    bench.run("dom0", f"qvm-block attach personal {STICK}1").check()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        yield threads.submit(reboot, bench, "personal").result


def running(bench: Bench) -> list[str]:
    """dom0, and the guests that run; all that there can be if dom0 does not say."""
    try:
        return ["dom0", *(each for each in image.GUESTS if is_there(bench, each, limit=LOG_LIMIT))]
    except BenchError:
        return ["dom0", *image.GUESTS]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """What the domains logged stands below a failure, and more of their journals in the folder. Its
    end is shown at once: a run whose time is over shows no more."""
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    terminal = item.config.pluginmanager.get_plugin("terminalreporter")
    terminal.ensure_newline()
    for line in [
        f"{item.nodeid}, {report.when}:",
        *report.longreprtext.splitlines()[-LINES_AT_ONCE:],
    ]:
        terminal.write_line(line)
    terminal.flush()
    booted = getattr(item, "funcargs", {}).get("bench")
    if not isinstance(booted, Bench):
        return
    journal = f"journalctl -b --no-pager -n {LINES_KEPT}"
    asked = {f"journal of {name}": (name, journal) for name in running(booted)}
    for title, (name, script) in {**asked, "logs of Xen's tools": ("dom0", XEN_LOGS)}.items():
        try:
            said = booted.run(name, script, limit=LOG_LIMIT).out
            if script is journal:
                log = f"{item.name}-{report.when}-{name}.log"
                (booted.folder / log).write_text(said)
                said = "\n".join(said.splitlines()[-LINES_SHOWN:])
        except Exception as error:  # the bench may be what failed
            said = str(error)
        report.sections.append((title, said))
    report.sections.append(("console", booted.console()))
