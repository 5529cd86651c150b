"""Channels between domains of a real Xen: our own at both ends, and Debian's library at one."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import statistics
from typing import TYPE_CHECKING, Any

import pytest

from .driving import domid, wait_until

if TYPE_CHECKING:
    from .bench import Bench

pytestmark = pytest.mark.usefixtures("driver_domain")

ports = itertools.count(200)

TRIPS, BYTES = 300, 32_000_000
# Under emulation only ratios mean anything: ours against the library's own C loop in the same boot,
# the medians of several rounds in turn, for the machine beneath has other things to do, too.
ROUNDS = 3
BULK_AT_LEAST = 0.9
TRIP_AT_MOST = 3.0
SOAK_SECONDS = 5
CHURN = 40  # of 33 pages; gntalloc gives a domain 1024
DEATH_WITHIN = 1.0  # seconds
REBOOT_LIMIT = 180.0


def facts(text: str) -> dict[str, Any]:
    """All that the lines of JSON say."""
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


def measure(
    bench: Bench,
    server: str,
    client: str,
    ours: tuple[bool, bool],
    trips: int = TRIPS,
    count: int = BYTES,
) -> dict[str, float]:
    """Round trip and bulk; ours: whether server and client are our stream and pump."""
    port = next(ports)
    numbers = (domid(bench, server), domid(bench, client))
    path = f"/local/domain/{numbers[0]}/data/vchan/{numbers[1]}/{port}"
    commands = [
        f"bench-peer pingpong {role} {peer} {port} {trips} {count}"
        if mine
        else f"bench-pingpong {role} {peer} {path} {trips} {count}"
        for role, peer, mine in zip(("server", "client"), numbers[::-1], ours, strict=True)
    ]
    served, connected = both(bench, server, commands[0], client, commands[1])
    return served | connected


PAIRS = [("dom0", "work"), ("sys-usb", "work")]


WHOSE = {"library": (False, False), "client": (False, True), "server": (True, False)}
WHOSE["both"] = (True, True)


@pytest.mark.parametrize("whose", ["client", "server"])
@pytest.mark.parametrize(("server", "client"), [("sys-usb", "dom0"), ("dom0", "work")])
def test_we_speak_with_the_plain_library_in_both_roles(
    bench: Bench, server: str, client: str, whose: str
) -> None:
    said = measure(bench, server, client, WHOSE[whose], 20, 1_000_000)
    assert set(said) == {"round_trip_us", "bulk_mb_s"}


@pytest.fixture(scope="module")
def speeds(bench: Bench) -> dict[str, dict[str, float]]:
    """The medians of several rounds, by who has our stream and pump: one end, the other, both."""
    bench.run("work", "systemctl stop pedos-agent")  # nothing else shall run meanwhile
    found: dict[str, list[dict[str, float]]] = {whose: [] for whose in WHOSE}
    for _ in range(ROUNDS):
        for whose, ours in WHOSE.items():
            found[whose].append(measure(bench, "work", "dom0", ours))
    bench.run("work", "systemctl start --no-block pedos-agent")
    middle = {
        whose: {name: statistics.median(one[name] for one in several) for name in several[0]}
        for whose, several in found.items()
    }
    print(middle)
    return middle


@pytest.mark.parametrize("whose", ["client", "server", "both"])
def test_a_round_trip_is_about_as_fast_as_the_librarys(
    speeds: dict[str, dict[str, float]], whose: str
) -> None:
    library = speeds["library"]["round_trip_us"]
    assert speeds[whose]["round_trip_us"] <= TRIP_AT_MOST * library, speeds


@pytest.mark.parametrize("whose", ["client", "server", "both"])
def test_bulk_is_about_as_fast_as_the_librarys(
    speeds: dict[str, dict[str, float]], whose: str
) -> None:
    library = speeds["library"]["bulk_mb_s"]
    assert speeds[whose]["bulk_mb_s"] >= BULK_AT_LEAST * library, speeds


@pytest.mark.parametrize("far_serves", [1, 0])
def test_a_stream_between_domains_is_a_two_way_stream(bench: Bench, far_serves: int) -> None:
    near, far = domid(bench, "work"), domid(bench, "sys-usb")
    _, said = both(
        bench,
        "sys-usb",
        f"bench-peer stream server {near}",
        "work",
        f"bench-peer stream client {far} {far_serves}",
    )
    assert said["streams"] > 0


@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_a_soak_loses_nothing(bench: Bench, server: str, client: str) -> None:
    port = next(ports)
    one, two = domid(bench, server), domid(bench, client)
    served, connected = both(
        bench,
        server,
        f"bench-peer soak server {two} {port} {SOAK_SECONDS}",
        client,
        f"bench-peer soak client {one} {port} {SOAK_SECONDS}",
    )
    assert served["received"] == connected["sent"] > 0
    assert connected["received"] > 0  # the client closes first, with more on its way


def test_many_channels_on_one_port_leave_nothing_behind(bench: Bench) -> None:
    """Not in xenstore, and no grants: those of all these channels at once would be too many."""
    one, two, port = domid(bench, "sys-usb"), domid(bench, "work"), next(ports)

    def churn(rounds: int) -> list[str]:
        server = f"bench-peer churn server {two} {port} {rounds}"
        client = f"bench-peer churn client {one} {port} {rounds}"
        both(bench, "sys-usb", server, "work", client)
        listed = "xenstore-ls -f /local/domain/{}/data/vchan | sort"
        return [bench.run("dom0", listed.format(domain)).check() for domain in (one, two)]

    before = churn(1)
    assert churn(CHURN) == before
    assert str(port) not in "".join(before)


def test_xens_own_proxy_speaks_with_us(bench: Bench) -> None:
    work, size = domid(bench, "work"), 100_000
    for ours in ("client", "server"):
        port = next(ports)
        path = f"/local/domain/{work}/data/vchan/0/{port}"
        if ours == "client":
            commands = (
                f"bench-proxied server 0 {path}",
                f"bench-peer verify client {work} {port} {size}",
            )
        else:
            commands = (
                f"bench-peer echo server 0 {port}",
                f"bench-proxied client {work} {path} {size}",
            )
        served, connected = both(bench, "work", commands[0], "dom0", commands[1])
        assert size in (connected.get("verified"), connected.get("proxied")), (served, connected)


# The end in "personal", where the other one is, and whether that one is a pump.
ENDS = [("server", "dom0", 0), ("server", "work", 1), ("client", "work", 0), ("client", "dom0", 1)]
OPPOSITE = {"server": "client", "client": "server"}


def ended(bench: Bench, end_it: str, where: str) -> list[tuple[str, float]]:
    """Opens the channels of ENDS, has their ends in "personal" ended, and says for each of the
    others how that looked, and after how many seconds."""
    victim, ours = domid(bench, "personal"), [next(ports) for _ in ENDS]
    echoes = " ".join(
        f"bench-peer echo {role} {domid(bench, survivor)} {port} &"
        for (role, survivor, _), port in zip(ENDS, ours, strict=True)
    )
    with concurrent.futures.ThreadPoolExecutor() as threads:
        bench.run("personal", f"({echoes}) >/dev/null 2>&1").check()
        waiting = [
            threads.submit(
                bench.run,
                survivor,
                f"bench-peer death {OPPOSITE[role]} {victim} {port} {pumped}",
            )
            for (role, survivor, pumped), port in zip(ENDS, ours, strict=True)
        ]
        for (_, survivor, _), port in zip(ENDS, ours, strict=True):
            opened = f"until [ -e /run/bench-open-{port} ]; do sleep 0.1; done"
            bench.run(survivor, opened).check()
        bench.run("dom0", "sleep 1")  # the ends look for each other five times a second
        # The domains' clocks follow the same hardware.
        gone = float(bench.run(where, end_it).check().split()[-1])
        said = [facts(one.result().check()) for one in waiting]
    return [(one["ended"], one["at"] - gone) for one in said]


def test_every_end_of_a_peer_is_noticed_within_a_second(bench: Bench) -> None:
    """Of a process by the kernel's last word; of a domain in dom0 by a hypercall, in a guest by
    xenstore. A domain that was rebooted is a new one, and can be spoken with."""
    if bench.run("dom0", "xl domid personal").status != 0:
        bench.start("personal")
    killed = ended(bench, "pkill -9 -f '[b]ench-peer echo'; date +%s.%N", "personal")
    print("killed:", killed)
    assert all("closed" in how and after < DEATH_WITHIN for how, after in killed), killed

    before = domid(bench, "personal")
    bench.run("dom0", "xl reboot personal").check()
    # Its console, over which the bench speaks with it, comes a moment after its number.
    again = (
        f'd=$(xl domid personal 2>/dev/null) && [ "$d" -gt {before} ] '
        "&& xenstore-read /local/domain/$d/console/tty >/dev/null 2>&1"
    )
    wait_until(bench, "dom0", again, REBOOT_LIMIT)
    bench.wait_for_boot("personal")

    destroyed = ended(bench, "xl destroy personal && date +%s.%N", "dom0")
    print("destroyed:", destroyed)
    assert all(
        ("gone without closing" in how or "died" in how) and after < DEATH_WITHIN
        for how, after in destroyed
    ), destroyed
