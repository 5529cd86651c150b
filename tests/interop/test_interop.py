"""Debian's unmodified libxenvchan and our ring understand each other, in both roles.

The library runs on stand-ins for Xen (standin.c) in the same process; interop.c says what is played
and which known faults of the library its user has to work round. The same for longer, and with
little patience: `python -m tests.interop.soak`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import program

# A wait this long (ms) fails. Nothing takes a hundredth of it, but a machine can be busy.
PATIENCE = 5000
ORDERS = range(10, 21)

reason = program.missing()
pytestmark = pytest.mark.skipif(bool(reason), reason=reason)


@pytest.fixture(scope="module")
def interop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program.build(tmp_path_factory.mktemp("interop"))


def made_by_the_library(left: int, right: int) -> tuple[int, int]:
    """What its server makes of two wishes: small rings go into the page, once each."""
    if left <= 10 and right <= 11:
        return 10, 11
    if left <= 11 and right <= 10:
        return 11, 10
    if left <= 11:
        return 11, max(right, 12)
    if right <= 11:
        return left, 11
    return left, right


def test_every_pair_of_orders_in_both_roles(interop: Path) -> None:
    wishes = [(left, right) for left in ORDERS for right in ORDERS]
    # Two rings of one in-page size do not exist; 10 and 20 would put grants into the ring.
    ours = [pair for pair in wishes if pair not in ((10, 10), (11, 11), (10, 20), (20, 10))]
    said = program.run(interop, "orders", 1, seed=1, patience=PATIENCE)
    assert said["order_pairs_as_server"] == len(ours)
    assert said["order_pairs_as_client"] == len({made_by_the_library(*pair) for pair in wishes})
    assert said["channels"] == 3 * (len(ours) + len(wishes))  # three ways to use the library


def test_thousands_of_channels_lose_nothing_and_never_stall(interop: Path) -> None:
    said = program.run(interop, "churn", 4000, seed=1, patience=PATIENCE)
    assert said["channels"] == 4000
    # The library's recv(n) ends with an error when fewer than n bytes are left. They are all read.
    assert said["short_packets"] > 0


def test_bytes_written_just_before_the_close_arrive_on_both_sides(interop: Path) -> None:
    program.run(interop, "ends", 3000, seed=1, patience=PATIENCE)


def test_a_peer_that_waits_for_a_little_room_gets_it_before_we_sleep(interop: Path) -> None:
    program.run(interop, "crossed", 10, seed=1, patience=PATIENCE)
