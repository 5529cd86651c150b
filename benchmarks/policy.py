"""P1: the cost of a policy decision, and the delay of a call during a reload of the policy.

The policies mix all kinds of rules, as an administrator's would, in an order that leaves the
matching one anywhere; requests use the same VMs and devices, so that some match early, some late
and some not at all. Each uncached request is asked only once.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio
from pedos_dom0.policy.decide import Decider
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts
from pedos_host.unix import connect_unix
from pedos_vchan.peer import Peer, open_peer

from . import scale
from .row import ROUNDS, Row, median_of_rounds, medians_in_turn

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
PATIENCE = 60.0  # seconds, for one call
PAUSE = 0.001  # seconds between two calls: a faster caller is taken for a flood


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
    """So many rules, about calls and devices, with all kinds of words."""
    rnd = random.Random(SEED)
    # With more rules, they name more VMs, tags and services: no administrator writes thousands of
    # rules about the same few.
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


def dense(rules: int) -> str:
    """So many rules for one service, about the same few VMs, with all kinds of words."""
    rnd = random.Random(SEED)
    lines = []
    for _ in range(rules):
        argument = rnd.choice(("*", f"+{rnd.randrange(50)}"))
        source, target = _word(rnd, VMS, False), _word(rnd, VMS, True)
        lines.append(f"s.S0 {argument} {source} {target} {rnd.choice(('allow', 'deny'))}")
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
    """Without requests whose candidates have to be gathered, which are measured separately."""
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


async def _slowest(peer: Peer, seconds: float, rules: int = 0) -> float:
    """Seconds of the slowest call within `seconds`, and until that many rules are in force."""
    slowest, end = 0.0, trio.current_time() + seconds
    while True:
        start = trio.current_time()
        status = await peer.call("service.status", {}, timeout=PATIENCE)
        now = trio.current_time()
        slowest = max(slowest, now - start)
        if now >= end and status["policy"]["rules"] >= rules:
            return slowest
        await trio.sleep(PAUSE)


async def _reloaded(peer: Peer, file: Path, turn: int) -> tuple[float, float, float]:
    """Seconds of the slowest call while a large policy is read, and during an equal time without
    work; and the seconds until the change was in force."""
    text = scale.POLICY + policy(MANY) + "\nturn.S * * * allow" * turn
    rules = MANY + turn + 1
    file.write_text(text)
    start = trio.current_time()
    busy = await _slowest(peer, 0, rules)
    seconds = trio.current_time() - start
    busy = max(busy, await _slowest(peer, AFTER))  # the replaced policy is freed
    return busy, await _slowest(peer, seconds + AFTER), seconds


async def _delays(folder: Path) -> tuple[float, ...]:
    """The medians of the results of `_reloaded`, for a service whose folders are in `folder`."""
    file = folder / "policy" / "bench.policy"
    stream = await connect_unix(folder / "dom0.sock")
    async with open_peer(stream, program="bench", handlers={}) as peer:
        await _reloaded(peer, file, 0)  # the first large policy, for which it allocates memory
        turns = [await _reloaded(peer, file, turn + 1) for turn in range(ROUNDS)]
    return tuple(statistics.median(values) for values in zip(*turns, strict=True))


def _uncached(policies: Callable[[int], str], asked: list[Request]) -> dict[str, float]:
    """Microseconds of a decision with few and with many rules, and how many times as long."""
    facts = system()
    few, many = _snapshot(policies(FEW)), _snapshot(policies(MANY))
    plain = _no_asks(few, facts, _no_asks(many, facts, asked))
    found = medians_in_turn(
        {"few": _per_call(plain, few, facts), "many": _per_call(plain, many, facts)}
    )
    return {f"us_{FEW}": found["few"], f"us_{MANY}": found["many"]}


def measure() -> list[Row]:
    with scale.system(1) as (running, _):
        gc.disable()  # the client's own garbage collection is no delay of the service
        try:
            busy, idle, seconds = trio.run(_delays, running.folder)
        finally:
            gc.enable()
    facts, asked = system(), requests()
    many = _snapshot(policy(MANY))
    mixed = _uncached(policy, asked)
    one_service = _uncached(dense, [attrs.evolve(r, service="s.S0") for r in asked])
    asks = [r for r in asked if evaluate(r, many, facts).verdict == "ask"]
    ask_us = _per_call(asks, many, facts)()
    decider = Decider(many, facts)
    plain = _no_asks(many, facts, asked)
    cached = median_of_rounds(lambda: _cached(decider, plain))
    late = {"busy_ms": busy * 1e3, "idle_ms": idle * 1e3, "in_force_ms": seconds * 1e3}
    delay = max(0.0, busy - idle) * 1e3
    few_us, many_us = f"us_{FEW}", f"us_{MANY}"
    growth = mixed[many_us] / mixed[few_us]
    return [
        Row("P1", "a decision that was made before", cached, CACHED_US, "us"),
        Row("P1", f"a new decision, {FEW} rules", mixed[few_us], UNCACHED_US, "us", mixed),
        Row("P1", f"a new decision, {MANY:,} rules against {FEW}", growth, GROWTH, "x", mixed),
        Row(
            "P1",
            f"a new decision, {MANY:,} rules all for one service",
            one_service[many_us],
            UNCACHED_US * GROWTH,  # what both gates above allow together
            "us",
            one_service,
        ),
        Row("P1", f"the candidates of an ask, {MANY:,} rules", ask_us, None, "us"),
        Row(
            "P1",
            f"a call's delay while {MANY:,} rules are read",
            delay,
            LATE_MS,
            "ms",
            late,
        ),
        Row("P1", f"from a change to {MANY:,} new rules in force", seconds * 1e3, None, "ms"),
    ]
