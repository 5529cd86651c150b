"""COMMAND of `pedos-local run`: exit status, signals, and what cannot be run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from pedos_dom0.local.command import CannotRun, run_command

from .conftest import PATIENCE

ENV = {**os.environ}
PYTHON = [sys.executable, "-S", "-E", "-c"]


def no_signals() -> trio.MemoryReceiveChannel[int]:
    return trio.open_memory_channel[int](0)[1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(42)", 42),
        ("import os; os.kill(os.getpid(), 9)", 128 + 9),
        ("import os; os.kill(os.getpid(), 15)", 128 + 15),
    ],
)
async def test_the_status_is_the_commands_own(body: str, status: int) -> None:
    with trio.fail_after(PATIENCE):
        assert await run_command([*PYTHON, body], ENV, no_signals()) == status


async def test_the_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    body = "import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]))"
    awkward = ["--", "-h", "", "a b", "$HOME", "*", "\n"]
    out = tmp_path / "out"
    with trio.fail_after(PATIENCE):
        assert await run_command([*PYTHON, body, str(out), *awkward], ENV, no_signals()) == 0
    assert out.read_text() == repr(awkward)


async def test_sigterm_is_passed_on_and_ctrl_c_is_not(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    body = (
        "import signal, sys\n"
        "numbers = [signal.SIGINT, signal.SIGTERM]\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, numbers)\n"
        "open(sys.argv[1], 'w').write('ready')\n"
        "sys.exit(40 + signal.sigwait(numbers))\n"
    )
    send, receive = trio.open_memory_channel[int](2)

    async def when_it_is_ready() -> None:
        await trio.lowlevel.wait_readable(fd)
        await send.send(signal.SIGINT)
        await send.send(signal.SIGTERM)

    nursery.start_soon(when_it_is_ready)
    try:
        with trio.fail_after(PATIENCE):
            assert (
                await run_command([*PYTHON, body, str(fifo)], ENV, receive) == 40 + signal.SIGTERM
            )
    finally:
        os.close(fd)


async def test_what_cannot_be_run_gets_a_shells_status_and_a_reason(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    for command, status, words in [
        ("no-such-command-here", 127, "no-such-command-here: command not found"),
        (str(tmp_path / "nothing"), 127, "no such file"),
        (str(plain), 126, "not executable; try: chmod"),
        (str(tmp_path), 126, "is a folder"),
    ]:
        with pytest.raises(CannotRun, match=words) as caught:
            await run_command([command], ENV, no_signals())
        assert caught.value.status == status
