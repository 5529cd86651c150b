"""P1: what a decision of the policy costs, and how long the event loop waits while it is reloaded.

The policies are of all kinds of rules mixed, as an administrator's would be, in an order that
leaves the matching one anywhere; requests are drawn from the same VMs and devices, so that some
match early, some late and some nothing. Each uncached request is asked once only.
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio
from pedos_dom0.policy.decide import Decider
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.loader import PolicyLoader
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts

from .row import ROUNDS, Row, medians_in_turn

FEW, MANY = 200, 10_000
VMS = 100
TAGS = 20
REQUESTS = 4000
CACHED = 200_000
SEED = 1

CACHED_US = 1.0
UNCACHED_US = 10.0
GROWTH = 1.5
LATE_MS = 5.0
AFTER = 0.1  # seconds


def system() -> System:
    """A machine with a hundred VMs, three tags each, some of them templates of disposables."""
    rnd = random.Random(SEED)
    domains = {}
    for n in range(VMS):
        name = f"vm{n}"
        domains[name] = VmFacts(
            name,
            type=rnd.choice(("AppVM", "AppVM", "AppVM", "TemplateVM", "DispVM")),
            tags=frozenset(f"t{t}" for t in rnd.sample(range(TAGS), 3)),
            uuid=f"00000000-0000-0000-0000-{n:012d}",
            default_dispvm=f"vm{n % 7}",
            template_for_dispvms=n % 7 == 0,
            power_state=rnd.choice(("Running", "Halted")),
        )
    return System(domains)


def _word(rnd: random.Random, many: int, target: bool) -> str:
    kinds: list[tuple[int, str]] = [
        (70, f"vm{rnd.randrange(many)}"),
        (15, f"@tag:t{rnd.randrange(TAGS)}"),
        (5, f"@tag:site{rnd.randrange(many)}"),
        (4, f"@type:{rnd.choice(('AppVM', 'TemplateVM', 'DispVM', 'StandaloneVM'))}"),
        (2, "@adminvm"),
    ]
    if target:
        kinds.append((2, f"@dispvm:@tag:t{rnd.randrange(TAGS)}"))
        kinds.append((2, rnd.choice(("@dispvm", "@dispvm:vm0", "@dispvm:vm7"))))
    weights = [weight for weight, _ in kinds]
    return rnd.choices(kinds, weights)[0][1]


def _argument(rnd: random.Random) -> str:
    port = f"{rnd.randrange(1, 5)}-{rnd.randrange(1, 9)}"
    vendor = f"{rnd.randrange(1 << 16):04x}"
    return rnd.choice(
        (
            f"+vm{rnd.randrange(VMS)}:{port}",
            f"+vm{rnd.randrange(VMS)}:{port[:2]}*",
            f"+*:*:{vendor}:*",
            f"+vm{rnd.randrange(VMS)}:*:{vendor}:*",
            f"+*:*:*:u{rnd.randrange(16):02x}{rnd.randrange(256):02x}*",
        )
    )


def policy(rules: int) -> str:
    """So many rules, of calls and of devices, by all kinds of words."""
    rnd = random.Random(SEED)
    # As there are more rules, there are more VMs, tags and services that they speak of: nobody
    # writes thousands of rules about the same few.
    many = max(VMS, rules // 2)
    lines = []
    for _ in range(rules):
        source, target = _word(rnd, many, False), _word(rnd, many, True)
        if rnd.random() < 0.5:
            argument = rnd.choice(("*", "*", f"+{rnd.randrange(50)}"))
            columns = [f"s.S{rnd.randrange(max(20, rules // 100))}", argument]
        else:
            verb = rnd.choice(("attach", "detach", "list", "assign", "*"))
            kind = rnd.choice(("block", "usb", "pci", "mic", "*"))
            columns = [f"device.{verb}.{kind}", rnd.choice(("*", _argument(rnd), _argument(rnd)))]
        action = rnd.choice(("allow", "allow", "deny", "ask"))
        lines.append(" ".join((*columns, source, target, action)))
    return "\n".join(lines)


def requests() -> list[Request]:
    rnd = random.Random(SEED + 1)
    found: set[tuple[str, str, str, str]] = set()
    while len(found) < REQUESTS:
        vms = [f"vm{rnd.randrange(VMS)}" for _ in range(3)]
        target = rnd.choice((vms[1], vms[1], vms[1], "@default", "@dispvm", "dom0"))
        if rnd.random() < 0.5:
            found.add((f"s.S{rnd.randrange(20)}", f"+{rnd.randrange(100)}", vms[0], target))
        else:
            verb = rnd.choice(("attach", "detach", "list", "assign"))
            identity = f"{rnd.randrange(1 << 16):04x}:{rnd.randrange(1 << 16):04x}:x:u080650"
            port = f"{rnd.randrange(1, 5)}-{rnd.randrange(1, 9)}"
            argument = f"+{vms[2]}:{port}:{identity}"
            source = rnd.choice(("dom0", vms[0]))
            found.add((f"device.{verb}.usb", argument, source, target))
    return [Request(*fields) for fields in sorted(found)]


def _snapshot(text: str) -> Snapshot:
    rules, errors = parse_file("bench.policy", text)
    if errors:
        raise RuntimeError(errors[0])
    return Snapshot(rules)


def _no_asks(snapshot: Snapshot, facts: System, asked: list[Request]) -> list[Request]:
    """Without those whose candidates have to be gathered, which is measured by itself."""
    return [r for r in asked if evaluate(r, snapshot, facts).verdict != "ask"]


def _per_call(asked: list[Request], snapshot: Snapshot, facts: System) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        for request in asked:
            evaluate(request, snapshot, facts)
        return (time.perf_counter() - start) / len(asked) * 1e6

    return measure


def _cached(decider: Decider, asked: list[Request]) -> float:
    keys = [(r.service, r.argument, r.source, r.target) for r in asked[:1000]]
    for key in keys:
        decider.decide(*key)
    rounds = CACHED // len(keys)
    start = time.perf_counter()
    for _ in range(rounds):
        for service, argument, source, target in keys:
            decider.decide(service, argument, source, target)
    return (time.perf_counter() - start) / (rounds * len(keys)) * 1e6


async def _worst(until: Callable[[], bool]) -> float:
    """The longest that a timer of 1 ms came late, in seconds, before `until` says true."""
    worst = 0.0
    while not until():
        due = trio.current_time() + 0.001
        await trio.sleep_until(due)
        worst = max(worst, trio.current_time() - due)
    return worst


async def _reloaded(loader: PolicyLoader, file: Path, turn: int) -> tuple[float, float, float]:
    """Seconds of lateness while a large policy is reloaded, and while nothing is done for as long;
    and the seconds until the change was in force."""
    before, text = loader.snapshot, f"{policy(MANY)}\nturn.S{turn} * * * allow\n"
    file.write_text(text)
    start = trio.current_time()
    busy = await _worst(lambda: loader.snapshot is not before)
    seconds = trio.current_time() - start
    # What follows belongs to it: what was replaced is let go of.
    end = trio.current_time() + AFTER
    busy = max(busy, await _worst(lambda: trio.current_time() >= end))
    end = trio.current_time() + seconds + AFTER
    idle = await _worst(lambda: trio.current_time() >= end)
    return busy, idle, seconds


async def _lateness(folder: Path) -> tuple[float, ...]:
    """The medians of what `_reloaded` gives."""
    file = folder / "30-user.policy"
    file.write_text(policy(MANY))
    loader = PolicyLoader([folder])
    gc.collect()
    gc.freeze()  # as the service does when it starts
    async with trio.open_nursery() as nursery:
        await nursery.start(loader.run)
        await trio.sleep(1)
        turns = [await _reloaded(loader, file, turn) for turn in range(ROUNDS)]
        nursery.cancel_scope.cancel()
    gc.unfreeze()
    return tuple(statistics.median(values) for values in zip(*turns, strict=True))


def measure() -> list[Row]:
    facts, asked = system(), requests()
    few, many = _snapshot(policy(FEW)), _snapshot(policy(MANY))
    plain = _no_asks(few, facts, _no_asks(many, facts, asked))
    uncached = medians_in_turn(
        {"few": _per_call(plain, few, facts), "many": _per_call(plain, many, facts)}
    )
    asks = [r for r in asked if evaluate(r, many, facts).verdict == "ask"]
    ask_us = _per_call(asks, many, facts)()
    decider = Decider(many, facts)
    cached = medians_in_turn({"cached": lambda: _cached(decider, plain)})["cached"]
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        busy, idle, seconds = trio.run(_lateness, Path(folder))
    late = {"busy_ms": busy * 1e3, "idle_ms": idle * 1e3, "in_force_ms": seconds * 1e3}
    delay = max(0.0, busy - idle) * 1e3
    detail = {f"uncached_us_{FEW}": uncached["few"], f"uncached_us_{MANY}": uncached["many"]}
    growth = uncached["many"] / uncached["few"]
    return [
        Row("P1", "a decision that was made before", cached, CACHED_US, "us"),
        Row("P1", f"a new decision, {FEW} rules", uncached["few"], UNCACHED_US, "us", detail),
        Row("P1", f"a new decision, {MANY:,} rules against {FEW}", growth, GROWTH, "x", detail),
        Row("P1", f"the candidates of an ask, {MANY:,} rules", ask_us, None, "us"),
        Row("P1", f"the loop's delay while {MANY:,} rules are read", delay, LATE_MS, "ms", late),
        Row("P1", f"from a change to {MANY:,} new rules in force", seconds * 1e3, None, "ms"),
    ]
