"""trio as Qt's guest, in processes of their own: with each binding to Qt that is installed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

BINDINGS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("PySide6", "PyQt6")
]
BEGIN = """\
import sys
if "{binding}" == "PyQt6":
    sys.modules["PySide6"] = None  # not to be imported
import trio
from pedos_widget import guest, qt
assert qt.BINDING == "{binding}", qt.BINDING
"""
APPLICATION = "application = qt.QtCore.QCoreApplication(sys.argv)\n"


@pytest.fixture(params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


def start(binding: str, script: str, application: str = APPLICATION) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", BEGIN.format(binding=binding) + application + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
    )


def output_of(binding: str, script: str) -> str:
    process = start(binding, script)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    return out


def test_the_program_ends_when_its_main_task_does(binding: str) -> None:
    script = """
async def main():
    with trio.move_on_after(0.01):
        await trio.sleep_forever()
    await trio.to_thread.run_sync(print, "a thread")
    print("over")
guest.run(application, main)
print("run returned")
"""
    assert output_of(binding, script) == "a thread\nover\nrun returned\n"


def test_an_error_of_the_main_task_is_raised_as_it_is(binding: str) -> None:
    script = """
async def main():
    await trio.lowlevel.checkpoint()
    raise KeyError("lost")
try:
    guest.run(application, main)
except KeyError as error:
    print("raised", error)
"""
    assert output_of(binding, script) == "raised 'lost'\n"


def test_what_a_slot_raises_is_logged_and_ends_nothing(binding: str) -> None:
    script = """
import logging
logging.basicConfig(format="%(name)s %(levelname)s", stream=sys.stdout, level=logging.ERROR)
async def main():
    raised = trio.Event()
    def slot():
        raised.set()
        raise KeyError("lost")
    qt.QtCore.QTimer.singleShot(0, slot)
    await raised.wait()
    await trio.sleep(0)
    print("goes on")
hook = sys.excepthook
guest.run(application, main)
assert sys.excepthook is hook
"""
    out = output_of(binding, script)
    assert out.startswith("pedos_widget.guest ERROR\nTraceback")
    assert out.endswith("KeyError: 'lost'\ngoes on\n")


UNTIL_CANCELLED = """
async def main():
    try:
        print("ready", flush=True)
        {began}
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(print, "cleaned up")
guest.run(application, main)
print("run returned")
"""


def test_tasks_clean_up_when_qt_is_asked_to_quit(binding: str) -> None:
    script = UNTIL_CANCELLED.format(began="qt.QtCore.QTimer.singleShot(0, application.quit)")
    assert output_of(binding, script) == "ready\ncleaned up\nrun returned\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_in_order(binding: str, number: signal.Signals) -> None:
    process = start(binding, UNTIL_CANCELLED.format(began="pass"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "cleaned up\nrun returned\n", "")


@pytest.mark.parametrize(
    "how", ["qt.QtCore.QTimer.singleShot(0, application.quit)", "os.kill(os.getpid(), 15)"]
)
def test_a_task_that_does_not_end_does_not_keep_the_session(binding: str, how: str) -> None:
    script = f"""
import os
guest.END_S = 0.05
async def main():
    {how}
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
guest.run(application, main)
print("run returned", flush=True)
os._exit(0)  # the task would be destroyed while it waits, of which Python complains
"""
    process = start(binding, script)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "run returned\n")
    assert "have not ended" in err


def test_nothing_wakes_a_program_that_waits(binding: str) -> None:
    """Before trio waits it says for how long at most: here, until a day is over."""
    script = """
class Waits(trio.abc.Instrument):
    def before_io_wait(self, timeout):
        waits.append(timeout)
waits = []
def look():
    print(waits[-1] > 3600, len(waits) < 20)
    application.quit()
async def main():
    trio.lowlevel.add_instrument(Waits())
    await trio.to_thread.run_sync(print, "ready")
    qt.QtCore.QTimer.singleShot(200, look)
    await trio.sleep_forever()
guest.run(application, main)
"""
    assert output_of(binding, script) == "ready\nTrue True\n"


def test_a_hundred_thousand_events_do_no_harm(binding: str) -> None:
    """Some versions of PySide6 abort after so many, others leak what an event carried."""
    script = """
import tracemalloc
ROUNDS, EVENTS = 100, 1_000
async def main():
    run = 0
    def step():
        nonlocal run
        run += 1
        if run % EVENTS == 0:
            token.run_sync_soon(all_run[0].set)
    token = trio.lowlevel.current_trio_token()
    all_run = [None]
    def post():
        for _ in range(EVENTS):
            posts[0](step)
    for number in range(ROUNDS):
        all_run[0] = trio.Event()
        if number % 2:
            await trio.to_thread.run_sync(post)
        else:
            post()
        await all_run[0].wait()
        if number == 9:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
        elif number == 29:
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
    print(run, grown < 200_000 or grown)
posts = []
class Steps(guest._Steps):
    def __init__(self):
        super().__init__()
        posts.append(self.post)
guest._Steps = Steps
guest.run(application, main)
"""
    assert output_of(binding, script) == "100000 True\n"


def test_no_module_starts_a_loop_of_qts_own() -> None:
    """`exec()` within a task stops trio until it returns; guest.py alone runs the application."""
    import pedos_widget

    folder = Path(str(pedos_widget.__file__)).parent
    found = {
        path.name: line.strip()
        for path in sorted(folder.rglob("*.py"))
        for line in path.read_text().splitlines()
        if ".exec(" in line or ".exec_(" in line or "processEvents(" in line
    }
    assert set(found) <= {"guest.py"}, found
