"""Calls of random sizes, orders of closing, slow readers, signals and aborts, over channels that
are used again: every byte and every status is what it should be.

    python -m tests.native.random_calls [CALLS [SEED]]     10,000 calls

A plan is drawn from a seed, and says for each stream how much is written, in which pieces, and what
its reader does: all of it, slowly, after the other streams, or only the beginning.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio
from pedos_vchan.call_pump import CallEnd, EventKind

from .calling_pair import Call, Plumbing, without_overrides
from .conftest import Pairs

SIZES = (0, 1, 7, 100, 4096, 65_535, 65_536, 65_537, 150_000, 400_000, 900_000)
PIECES = (1000, 4096, 65_536, 300_000)
STREAMS = ("stdin", "stdout", "stderr")
AT_ONCE = 4


@dataclass(frozen=True)
class Flow:
    """One stream. `wanted`: the reader closes after so many bytes; None: it reads to the end."""

    data: bytes
    written: int  # bytes a write
    read: int  # bytes a read
    wanted: int | None
    is_late: bool  # stdin alone: its reader begins when the other streams are over


@dataclass(frozen=True)
class Plan:
    """One call."""

    call: bytes
    kind: Plumbing
    flows: dict[str, Flow]
    end: tuple[str, int]
    exits_first: bool  # the exit is known before the streams end
    signals: list[int]
    aborts: str | None  # the side that ends it all in the middle


def drawn(seed: int) -> Plan:
    dice = random.Random(seed)
    flows = {}
    for name in STREAMS:
        size = dice.choice(SIZES)
        read = dice.choice(PIECES)
        flows[name] = Flow(
            dice.randbytes(size),
            dice.choice(PIECES) if size < 100_000 else dice.choice(PIECES[1:]),
            read,
            dice.randrange(size + 1) if dice.random() < 0.2 else None,
            name == "stdin" and dice.random() < 0.3,
        )
    return Plan(
        dice.randbytes(16),
        dice.choice(["sockets", "pipes", "foreign"]),
        flows,
        dice.choice([("exited", 0), ("exited", dice.randrange(256)), ("signalled", 9)]),
        dice.random() < 0.5,
        dice.sample(range(1, 65), dice.choice([0, 0, 0, 1, 3])),
        dice.choice([None] * 12 + ["caller", "service"]),
    )


class Trial:
    """One plan, carried out."""

    def __init__(self, plan: Plan, call: Call) -> None:
        self._plan = plan
        self._call = call
        ends = call.ends
        self._fds = {
            "stdin": (ends.stdin, ends.service_stdin),
            "stdout": (ends.service_stdout, ends.stdout),
            "stderr": (ends.service_stderr, ends.stderr),
        }
        self.got: dict[str, bytes] = {}
        self._others_over = trio.Event()

    async def run(self) -> tuple[CallEnd, CallEnd]:
        plan, call = self._plan, self._call
        if plan.exits_first:
            call.service.exit(*plan.end)
        async with trio.open_nursery() as nursery:
            for name in STREAMS:
                nursery.start_soon(self._write, name)
                nursery.start_soon(self._read, name)
            for number in plan.signals:
                call.caller.signal(number)
            if plan.aborts:
                for _ in range(plan.call[0]):
                    await trio.lowlevel.checkpoint()
                (call.caller if plan.aborts == "caller" else call.service).abort("enough")
        call.service.exit(*plan.end)
        return await call.over()

    async def _write(self, name: str) -> None:
        flow, fd = self._plan.flows[name], self._fds[name][0]
        view = memoryview(flow.data)
        try:
            while view:
                try:
                    view = view[os.write(fd, view[: flow.written]) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(fd)
        except (BrokenPipeError, ConnectionResetError):
            pass
        self._call.ends.close(fd)

    async def _read(self, name: str) -> None:
        flow, fd = self._plan.flows[name], self._fds[name][1]
        if flow.is_late:
            await self._others_over.wait()
        got = bytearray()
        most = sys.maxsize if flow.wanted is None else flow.wanted
        while len(got) < most:
            try:
                part = os.read(fd, min(flow.read, most - len(got)))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(fd)
                continue
            except ConnectionResetError:
                break
            if not part:
                break
            got += part
            await trio.lowlevel.checkpoint()
        self.got[name] = bytes(got)
        self._call.ends.close(fd)
        if {"stdout", "stderr"} <= set(self.got):
            self._others_over.set()


def judge(plan: Plan, trial: Trial, ends: tuple[CallEnd, CallEnd], call: Call) -> None:
    """AssertionError if a byte or a status is wrong."""
    caller, service = ends
    assert caller.is_reusable and service.is_reusable, (caller, service)
    for name, flow in plan.flows.items():
        got = trial.got[name]
        assert got == flow.data[: len(got)], f"{name} has other bytes"
    if (caller.kind, caller.status) != plan.end:
        assert plan.aborts, (caller, service)
        kinds = {"caller": {"aborted"}, "service": {"problem"}}
        assert caller.kind in kinds[plan.aborts], (caller, service)
        assert caller.status == 125
        return
    assert (service.kind, service.status) in (plan.end, ("aborted", 125)), (caller, service)
    if plan.aborts:
        return
    for name, flow in plan.flows.items():
        wanted = len(flow.data) if flow.wanted is None else flow.wanted
        # stdin of a service that has closed both outputs ends with its exit.
        if name != "stdin" or not (plan.exits_first or flow.is_late):
            assert len(trial.got[name]) == wanted, f"{name} is not complete"
    told = [event.number for side, event in call.events if event.kind is EventKind.SIGNAL]
    assert set(told) <= set(plan.signals)


async def calls(pairs: Pairs, seeds: range, limit: float) -> None:
    """All of them, one after the other, over one pair of channels as long as it is reusable."""
    channels = await pairs.channels(17, 17)
    for seed in seeds:
        plan = drawn(seed)
        with trio.fail_after(limit):
            async with trio.open_nursery() as nursery:
                call = Call(nursery, channels, plan.kind, plan.call)
                trial = Trial(plan, call)
                ends = await trial.run()
        try:
            judge(plan, trial, ends, call)
        except AssertionError as error:
            raise AssertionError(f"the call of seed {seed}: {error}") from error


async def many(count: int, first: int, limit: float, at_once: int = AT_ONCE) -> None:
    each = -(-count // at_once)
    with tempfile.TemporaryDirectory(prefix="pedos-calls-") as folder, without_overrides():
        pairs = Pairs(Path(folder))
        run: Callable[..., Awaitable[None]] = calls
        try:
            async with trio.open_nursery() as nursery:
                for number in range(at_once):
                    start = first + number * each
                    nursery.start_soon(run, pairs, range(start, start + each), limit)
        finally:
            pairs.close()


def main(count: str = "10000", seed: str = "1") -> None:
    start = time.monotonic()
    trio.run(many, int(count), int(seed), 120.0)
    print(f"{count} calls, no wrong byte or status, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
