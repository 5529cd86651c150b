"""Runs `xl`, Xen's toolstack: an argument list, a deadline, bounded output, its errors in words.

xl's output may repeat text of a VM's configuration or of a driver domain, so it is made harmless
before any use. xl's own words are always passed on: only they tell the cause.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from typing import TYPE_CHECKING

import trio
from pedos_host.children import describe_exit, start_child
from pedos_protocol.frozen import frozen
from pedos_protocol.names import harmless_text, is_vm_name

from pedos_dom0.drivers.base import DriverError

if TYPE_CHECKING:
    from pedos_host.children import Child

logger = logging.getLogger(__name__)

# Bytes of xl's output that are kept; `xl list` of a thousand domains has 80 KiB. The rest is read
# and dropped, so that xl never blocks.
OUTPUT_MAX = 256 * 1024
# Characters of its errors that an answer repeats: two or three of its lines.
WORDS_MAX = 300
# xl has ended, but a process that it leaves behind (which waits for a VM's end) may hold the pipes
# for a moment, until it writes to its log file.
LAST_WORDS = 0.5
# Between SIGTERM, at which xl takes back what it was making, and SIGKILL.
TERM_SECONDS = 5.0
# After SIGKILL, which takes effect at once unless the kernel or the hypervisor holds xl up.
KILL_SECONDS = 5.0

# "libxl: error: libxl_device.c:1111:device_backend_callback: Domain 5:unable to ..."
_PLACE = re.compile(r"^(?:lib)?xl: (?:error|critical): (?:[\w./-]+:\d+:[\w.]+: )?")
_LEVEL = re.compile(r"^(?:lib)?xl: (debug|detail|verbose|progress|info|notice|warning):")
_STATE = re.compile(r"[a-z-]{6}")

# Letters of the column "State" of a domain that will never run again: it has shut down, crashed or
# is dying, and waits to be cleared away (xl(1), list).
OVER = frozenset("scd")
# The letter after that of a shutdown tells why. A suspended domain continues one day (xl resume, or
# xl save --checkpoint), with everything that it has mounted: it is paused, and has not ended.
_SUSPENDED = re.compile(r"...ss-")

# "virt_caps              : pv hvm hvm_directio pv_directio hap shadow": the two are there when Xen
# has enabled an IOMMU, for either kind of guest.
_CAPABILITIES = re.compile(r"^virt_caps\s*:(.*)$", re.MULTILINE)
_DIRECT_IO = frozenset(("pv_directio", "hvm_directio"))


class Unfinished(DriverError):  # noqa: N818 - says what happened
    """xl was killed before it had ended: what it has done is not known. `still_runs`: the kernel
    holds it up, and it may still do something."""

    still_runs = False


@frozen
class ListedDomain:
    """A line of `xl list`."""

    name: str
    domid: int
    state: str  # six letters, of which `-` stands for one that does not apply

    @property
    def over(self) -> bool:
        """Whether it has ended and only its remains are listed."""
        return not OVER.isdisjoint(self.state) and not _SUSPENDED.fullmatch(self.state)


class Xl:
    """The program `xl`, by name or path."""

    def __init__(self, program: str = "xl") -> None:
        self._program = program

    async def run(self, *arguments: str, seconds: float, what: str) -> str:
        """Runs it and returns its output.

        `what` is the sentence that an error begins with, such as "work was not started". Raises
        DriverError: `timeout` when it did not end within `seconds` and was killed (Unfinished),
        `unavailable` when there is no xl, `failed` when it failed, or somebody killed it
        (Unfinished).
        """
        argv = [self._program, *arguments]
        out_reader, out_writer = os.pipe2(os.O_CLOEXEC)
        err_reader, err_writer = os.pipe2(os.O_CLOEXEC)
        out, err = trio.lowlevel.FdStream(out_reader), trio.lowlevel.FdStream(err_reader)
        try:
            try:
                environment = {**os.environ, "LC_ALL": "C"}
                child = start_child(argv, stdout=out_writer, stderr=err_writer, env=environment)
            finally:
                os.close(out_writer)
                os.close(err_writer)
        except OSError as error:
            await trio.aclose_forcefully(out)
            await trio.aclose_forcefully(err)
            raise DriverError(
                f"{what}: xl cannot be run ({error.strerror or error})",
                code="unavailable",
                hint="apt install xen-utils, in dom0 of a machine that Xen has booted",
            ) from error
        logger.debug("xl %s", " ".join(arguments))
        printed, said = bytearray(), bytearray()
        ended = False
        async with trio.open_nursery() as nursery:
            silent = [trio.Event(), trio.Event()]
            nursery.start_soon(_gather, out, printed, silent[0])
            nursery.start_soon(_gather, err, said, silent[1])
            try:
                with trio.move_on_after(seconds):
                    await child.wait()
                    ended = True
            finally:
                await _finish(child)
            with trio.move_on_after(LAST_WORDS):
                for each in silent:
                    await each.wait()
            nursery.cancel_scope.cancel()
        words = xl_words(said.decode("utf-8", "replace"))
        if not ended:
            still = ", and cannot be killed" if child.returncode is None else ""
            unfinished = Unfinished(
                f"{what}: xl {arguments[0]} did not end within {seconds:g} s{still}{quoted(words)}",
                code="timeout",
            )
            unfinished.still_runs = child.returncode is None
            raise unfinished
        if child.returncode != 0:
            how = describe_exit(child.returncode or 0)
            logger.info("xl %s %s: %s", arguments[0], how, words)
            kind = DriverError if (child.returncode or 0) > 0 else Unfinished
            raise kind(f"{what}: xl {arguments[0]} {how}{quoted(words)}")
        return printed.decode("utf-8", "replace")


async def _gather(stream: trio.lowlevel.FdStream, into: bytearray, silent: trio.Event) -> None:
    async with stream:
        try:
            while chunk := await stream.receive_some(65536):
                into += chunk[: OUTPUT_MAX - len(into)]
        finally:
            # xl's complete output is there when xl has ended, also if there was no time to read it:
            # a part of a list would pass for all of it.
            with contextlib.suppress(BlockingIOError):
                while len(into) < OUTPUT_MAX and (chunk := os.read(stream.fileno(), 65536)):
                    into += chunk[: OUTPUT_MAX - len(into)]
    silent.set()


async def _finish(child: Child) -> None:
    """Ends it if it has not ended, so that it never keeps running unnoticed. One that the kernel
    holds up is not waited for, or a device that hangs would hold up all others."""
    if child.returncode is not None:
        return
    with trio.CancelScope(shield=True):
        child.send_signal(signal.SIGTERM)
        with trio.move_on_after(TERM_SECONDS):
            await child.wait()
        child.kill()
        with trio.move_on_after(KILL_SECONDS):
            await child.wait()
    if child.returncode is None:
        logger.warning(
            "%s %d has not ended %g s after SIGKILL", child.name, child.pid, KILL_SECONDS
        )
        trio.lowlevel.spawn_system_task(child.wait, name=f"reap {child.pid}")


def quoted(words: str) -> str:
    """The end of a sentence that quotes a program's message, if there is one."""
    return f"; it says: {words}" if words else ""


def xl_words(untrusted_said: str) -> str:
    """xl's messages in one line: its errors without the places in its source.

    The first ones name the cause, and later ones its consequences; so a long text is cut at the
    end. Progress messages are left out unless there is nothing else.
    """
    lines = [line.strip() for line in untrusted_said.splitlines() if line.strip()]
    errors = [line for line in lines if not _LEVEL.match(line)]
    told = dict.fromkeys(_PLACE.sub("", line).strip() for line in errors or lines)
    return harmless_text("; ".join(told), WORDS_MAX)


def can_pass_through(printed: str) -> bool:
    """Whether the hypervisor uses an IOMMU, as `xl info` says."""
    found = _CAPABILITIES.search(printed)
    return found is not None and not _DIRECT_IO.isdisjoint(found[1].split())


def parse_list(printed: str) -> list[ListedDomain]:
    """The lines of `xl list`: Name, ID, Mem, VCPUs, State, Time(s). Other lines, and those whose
    name no VM of ours can have, are left out. DriverError if the output may be incomplete."""
    if len(printed) >= OUTPUT_MAX:
        raise DriverError(f"xl list printed {OUTPUT_MAX} bytes or more, which are not read")
    found = []
    for line in printed.splitlines():
        words = line.split()
        if len(words) == 6 and is_vm_name(words[0]) and words[1].isdecimal():
            if not _STATE.fullmatch(words[4]):
                continue
            found.append(ListedDomain(words[0], int(words[1]), words[4]))
    return found
