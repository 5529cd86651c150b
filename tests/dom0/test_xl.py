"""The program xl: how it is run, and how its words are passed on."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest
import trio
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.xen import xl as xl_module
from pedos_dom0.drivers.xen.xl import (
    OUTPUT_MAX,
    WORDS_MAX,
    Unfinished,
    Xl,
    _gather,
    parse_list,
    xl_words,
)
from pedos_host.children import Child

from tests.patience import PATIENCE


def make_xl(folder: Path, body: str) -> Xl:
    program = folder / "xl"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o700)
    return Xl(str(program))


async def run(xl: Xl, *arguments: str, seconds: float = PATIENCE) -> str:
    return await xl.run(*arguments, seconds=seconds, what="it was not done")


async def test_arguments_reach_it_as_they_are(tmp_path: Path) -> None:
    xl = make_xl(tmp_path, 'printf "%s|" "$@"')
    assert await run(xl, "create", "a b; touch $(id)", "*") == "create|a b; touch $(id)|*|"


async def test_its_own_words_are_passed_on(tmp_path: Path) -> None:
    said = "libxl: error: libxl_device.c:1111:device_callback: Domain 5:no such disk"
    xl = make_xl(tmp_path, f"echo '{said}' >&2; exit 3")
    with pytest.raises(DriverError) as caught:
        await run(xl, "create")
    assert str(caught.value) == (
        "it was not done: xl create exited with status 3; it says: Domain 5:no such disk"
    )
    assert caught.value.code == "failed"


async def test_one_that_says_nothing_is_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match=r"it was not done: xl list exited with status 1$"):
        await run(make_xl(tmp_path, "exit 1"), "list")


async def test_it_is_killed_at_its_deadline(tmp_path: Path) -> None:
    xl = make_xl(tmp_path, f"echo $$ > {tmp_path}/pid; echo waiting >&2; exec sleep 60")
    with pytest.raises(DriverError, match=r"within 0\.5 s; it says: waiting") as caught:
        await run(xl, "destroy", seconds=0.5)
    assert caught.value.code == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_one_that_somebody_kills_has_done_nobody_knows_what(tmp_path: Path) -> None:
    xl = make_xl(tmp_path, "echo half >&2; kill -KILL $$")
    with pytest.raises(Unfinished, match="was killed by SIGKILL; it says: half") as caught:
        await run(xl, "create")
    assert caught.value.code == "failed"


async def test_it_does_not_outlive_who_cancels_it(tmp_path: Path) -> None:
    xl = make_xl(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with trio.move_on_after(0.5):
        await run(xl, "create")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_one_that_no_signal_ends_is_not_waited_for_and_reaped_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that the kernel holds up: whoever waits for it would hold up all others."""
    monkeypatch.setattr(xl_module, "TERM_SECONDS", 0.01)
    monkeypatch.setattr(xl_module, "KILL_SECONDS", 0.01)
    monkeypatch.setattr(Child, "send_signal", lambda _child, _number: None)
    xl = make_xl(tmp_path, f"echo $$ > {tmp_path}/pid; exec 3< {tmp_path}/fifo")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Unfinished, match="did not end within") as caught:
        await run(xl, "pci-attach", seconds=0.5)
    assert caught.value.still_runs and "and cannot be killed" in str(caught.value)
    with (tmp_path / "fifo").open("w"):  # once it has opened that, too
        pid = int((tmp_path / "pid").read_text())
    with trio.fail_after(PATIENCE):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)


async def test_what_it_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    # `xl create` leaves a process that waits for the VM's end.
    xl = make_xl(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid; echo made")
    with trio.fail_after(PATIENCE):
        assert await run(xl, "create") == "made\n"
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # an error if it had ended


async def test_its_output_is_bounded_and_yet_read(tmp_path: Path) -> None:
    xl = make_xl(tmp_path, "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2")
    assert len(await run(xl, "list")) == OUTPUT_MAX


async def test_what_it_has_written_is_read_also_if_there_is_no_time_left() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 18)
    os.write(writer, bytes(200_000))  # in the pipe of one that has ended; another holds it open
    into = bytearray()
    with trio.CancelScope() as scope:
        scope.cancel()
        await _gather(trio.lowlevel.FdStream(reader), into, trio.Event())
    os.close(writer)
    assert len(into) == 200_000


async def test_no_xl_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="xl cannot be run") as caught:
        await run(Xl(str(tmp_path / "none")), "list")
    assert caught.value.code == "unavailable"
    assert "xen-utils" in (caught.value.hint or "")


def test_words_are_errors_without_their_places() -> None:
    said = (
        "Parsing config from /etc/xen/work.cfg\n"
        "libxl: debug: libxl_create.c:1:do: ao 0x55: create\n"
        "libxl: error: libxl_dm.c:2:x: Domain 7:cannot open \x1b[31m/dev/nix\n"
        "libxl: error: libxl_dm.c:3:y: Domain 7:cannot open \x1b[31m/dev/nix\n"
        "libxl_device_disk_add failed.\n"
    )
    assert xl_words(said) == (
        "Parsing config from /etc/xen/work.cfg; Domain 7:cannot open _[31m/dev/nix; "
        "libxl_device_disk_add failed."
    )


def test_words_are_bounded_and_chatter_is_better_than_nothing() -> None:
    assert len(xl_words("error " * 1000)) == WORDS_MAX
    assert xl_words("libxl: debug: only this\n") == "libxl: debug: only this"
    assert xl_words("") == ""


def test_a_list_of_domains_is_read() -> None:
    printed = (
        "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
        "Domain-0                                     0  1024     1     r-----      34.5\n"
        "work                                        12   256     1     -b----       3.1\n"
        "(null)                                      13     0     1     --ps-d       0.0\n"
        "gone                                        14   256     1     ---s--       3.1\n"
        "nonsense\n"
        "bad-state                                   15   256     1     whatever     1.0\n"
    )
    listed = {each.name: each for each in parse_list(printed)}
    assert listed.keys() == {"Domain-0", "work", "gone"}
    assert (listed["work"].domid, listed["work"].over) == (12, False)
    assert listed["gone"].over


@pytest.mark.parametrize(
    ("state", "over"),
    [
        ("r-----", False), ("--p---", False), ("---s--", True), ("---sr-", True), ("---sc-", True),
        ("---ss-", False), ("---ssd", True), ("-----d", True),
    ],
)  # fmt: skip
def test_a_domain_that_is_suspended_is_not_over(state: str, over: bool) -> None:
    (listed,) = parse_list(f"work 12 256 1 {state} 1.0\n")
    assert listed.over == over


def test_a_list_that_may_be_cut_is_none() -> None:
    line = "work 12 256 1 r----- 1.0\n"
    with pytest.raises(DriverError, match="printed 262144 bytes or more"):
        parse_list(line * (OUTPUT_MAX // len(line) + 1))
