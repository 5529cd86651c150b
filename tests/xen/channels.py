"""Channels between two domains of the bench: `bench-peer` at an end of each, or at both."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from .driving import domid, wait_until

if TYPE_CHECKING:
    from .bench import Bench

ports = itertools.count(200)

DEATH_WITHIN = 1.0  # seconds, from a peer's death until its other end knows
CLOCKS_AGREE = 0.5  # seconds; within the minute that a test takes, as Clock compares them

# The end in "personal", where the other one is, and whether that one is a pump.
ENDS = [("server", "dom0", 0), ("server", "work", 1), ("client", "work", 0), ("client", "dom0", 1)]
OPPOSITE = {"server": "client", "client": "server"}


def facts(text: str) -> dict[str, Any]:
    """All lines of JSON in the output."""
    merged: dict[str, Any] = {}
    for line in text.splitlines():
        merged |= json.loads(line)
    return merged


def both(bench: Bench, server: str, serve: str, client: str, connect: str) -> list[dict[str, Any]]:
    """Runs a program at each end, at the same time."""
    with concurrent.futures.ThreadPoolExecutor() as threads:
        ends = [
            threads.submit(bench.run, server, serve),
            threads.submit(bench.run, client, connect),
        ]
        return [facts(end.result().check()) for end in ends]


class Ended(NamedTuple):
    """How the end of a channel looked to the other one, and when, in seconds."""

    how: str
    after_begin: float
    after_end: float

    @property
    def in_time(self) -> bool:
        """Not before it was begun, and soon after it was done."""
        return self.after_begin > -CLOCKS_AGREE and self.after_end < DEATH_WITHIN


def ended(bench: Bench, end_it: str, where: str) -> list[Ended]:
    """Opens the channels of ENDS, has their ends in "personal" ended, and says how that looked to
    each of the others. end_it prints the time before it begins, and when it is done."""
    clocks = {name: Clock.of(bench, name) for name in ("dom0", "work", "personal")}
    victim = domid(bench, "personal")
    channels = [(*end, next(ports)) for end in ENDS]
    echoes = " + ".join(
        f"echo {role} {domid(bench, survivor)} {port}" for role, survivor, _, port in channels
    )
    bench.run("personal", f"bench-peer {echoes} >/dev/null 2>&1 &").check()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        waiting, opened = {}, {}
        for survivor in ("dom0", "work"):
            ours = [channel for channel in channels if channel[1] == survivor]
            deaths = " + ".join(
                f"death {OPPOSITE[role]} {victim} {port} {pumped}" for role, _, pumped, port in ours
            )
            waiting[survivor] = threads.submit(bench.run, survivor, f"bench-peer {deaths}")
            there = " && ".join(f"[ -e /run/bench-open-{port} ]" for *_, port in ours)
            opened[survivor] = f"{there} && sleep 1"  # they look for each other five times a second
        for survivor, condition in opened.items():
            wait_until(bench, survivor, condition)
        times = [float(word) for word in bench.run(where, end_it).check().split()]
        said = [
            (survivor, json.loads(line))
            for survivor, one in waiting.items()
            for line in one.result().check().splitlines()
        ]
    speed = Clock.of(bench, "dom0").speed_since(clocks["dom0"])
    begin, end = (clocks[where].seconds(time, speed) for time in (times[0], times[-1]))
    return [
        Ended(each["ended"], at - begin, at - end)
        for survivor, each in said
        for at in [clocks[survivor].seconds(each["at"], speed)]
    ]


class Clock(NamedTuple):
    """A domain's clock at some moment: see inside/clock.c."""

    epoch: float  # seconds
    ticks: int

    @classmethod
    def of(cls, bench: Bench, where: str) -> Clock:
        return cls(**facts(bench.run(where, "bench-clock").check()))

    def speed_since(self, earlier: Clock) -> float:
        """Ticks in a second."""
        return (self.ticks - earlier.ticks) / (self.epoch - earlier.epoch)

    def seconds(self, epoch: float, speed: float) -> float:
        """When this clock showed `epoch`, in a time that all domains have in common."""
        return self.ticks / speed + epoch - self.epoch
