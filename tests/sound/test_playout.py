"""What a borrowed microphone sounds like in its target: what was said, in order, once, and silence
where there is nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st

from .c_library import constants, library

Built = tuple[FFI, SimpleNamespace]

RATE = constants("rate.h")
FIFO_SAMPLES = int(constants("fifo.h")["FIFO_SAMPLES"])
MS = 1_000_000
PACKET, CYCLE = 480, 256  # 10 ms of a source, and what a server wants at a time
HZ = int(RATE["RATE_HZ"])


class Playout:
    """One, with a source that counts its samples: each is heard as its number."""

    def __init__(self, built: Built) -> None:
        self._ffi, self._c = built
        # Opaque to cffi: the buffer, and far less than as much again for all the rest.
        self._memory = self._ffi.new("int64_t[]", FIFO_SAMPLES // 2)
        self._playout = self._ffi.cast("struct playout *", self._memory)
        self._c.playout_init(self._playout)
        self.fed = 0
        self.correction = 1.0

    def feed(self, count: int, now: int) -> None:
        """The next samples. Silence is 0, so no sample is."""
        samples = [1 + (self.fed + i) % 32767 for i in range(count)]
        self.fed += count
        self._c.playout_feed(self._playout, self._ffi.new("int16_t[]", samples), count, now)

    def fill(self, wanted: int, now: int) -> list[int]:
        """What is heard in a cycle; behind it nothing is written."""
        to: Any = self._ffi.new("float[]", [7.0] * (wanted + 1))
        self.correction = self._c.playout_fill(self._playout, to, wanted, now)
        assert to[wanted] == 7.0
        return [round(each * 32768) for each in to[0:wanted]]

    def forget(self, *, is_new: bool) -> None:
        self._c.playout_forget(self._playout, is_new)

    def until_heard(self, now: int = 0) -> tuple[list[int], int]:
        """Feeds and plays in step, until something is heard: that cycle, and the time."""
        for _ in range(100):
            self.feed(PACKET, now)
            heard = self.fill(PACKET, now)
            now += 10 * MS
            if any(heard):
                return heard, now
        raise AssertionError("nothing is heard")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return library(tmp_path_factory.mktemp("playout"), "playout", "fifo", "rate")


@pytest.fixture
def playout(built: Built) -> Playout:
    return Playout(built)


def test_before_anything_has_come_there_is_silence(playout: Playout) -> None:
    assert playout.fill(CYCLE, 0) == [0] * CYCLE
    assert playout.correction == 1.0


def test_it_begins_with_the_first_sample_once_there_is_enough(playout: Playout) -> None:
    heard, now = playout.until_heard()
    assert heard == list(range(1, PACKET + 1))
    # What stands in the buffer then is the delay that is kept: a cycle and what may come late.
    assert playout.fed == RATE["RATE_BASE"] + PACKET
    playout.feed(PACKET, now)
    assert playout.fill(PACKET, now) == list(range(PACKET + 1, 2 * PACKET + 1))


def test_what_is_lacking_is_silence_behind_what_there_is(playout: Playout) -> None:
    _, now = playout.until_heard()
    heard: list[int] = []
    while 0 not in heard:
        heard = playout.fill(PACKET + 10, now)
    there = [each for each in heard if each]
    assert heard == there + [0] * (len(heard) - len(there))
    assert there[-1] == playout.fed
    # It begins anew only with enough, and not with what comes next.
    playout.feed(PACKET, now)
    assert playout.fill(PACKET, now) == [0] * PACKET


@pytest.mark.parametrize("is_new", [False, True])
def test_what_was_forgotten_is_never_heard(playout: Playout, is_new: bool) -> None:
    _, now = playout.until_heard()
    playout.forget(is_new=is_new)
    forgotten = playout.fed
    assert playout.fill(PACKET, now) == [0] * PACKET
    heard, _ = playout.until_heard(now)
    assert min(heard) > forgotten


def test_a_new_recording_is_no_lateness_of_the_old_one(built: Built) -> None:
    """What comes late makes the delay longer; a recording that begins anew does not."""
    fed = []
    for is_new in (False, True):
        playout = Playout(built)
        _, now = playout.until_heard()
        playout.forget(is_new=is_new)
        playout.fill(PACKET, now)
        before = playout.fed
        playout.until_heard(now)
        fed.append(playout.fed - before)
    assert fed[0] > fed[1] == RATE["RATE_BASE"] + PACKET


@pytest.mark.parametrize(
    ("fed_at", "played_at"),
    [(0, 10**18), (10**18, 0), (0, 2**63 - 1), (-(2**62), 2**62 - 1)],
    ids=["long ago", "in the future", "at the end of time", "from one end to the other"],
)
def test_no_clock_makes_it_play_what_is_not_there(
    playout: Playout, fed_at: int, played_at: int
) -> None:
    playout.feed(PACKET, fed_at)
    heard = playout.fill(PACKET, played_at)
    assert heard in ([0] * PACKET, list(range(1, PACKET + 1)))
    assert playout.fill(PACKET, played_at) == [0] * PACKET


def test_samples_under_way_count_as_buffered(playout: Playout) -> None:
    """A source that has said nothing for 10 ms has collected them; one that was asked at once has
    not."""
    enough = int(RATE["RATE_BASE"]) + PACKET
    playout.feed(enough - PACKET, 0)
    assert playout.fill(PACKET, 9 * MS) == [0] * PACKET
    assert any(playout.fill(PACKET, 10 * MS))


def test_what_does_not_fit_is_not_heard_and_what_does_is_whole(playout: Playout) -> None:
    playout.feed(FIFO_SAMPLES + 1000, 0)
    heard = playout.fill(PACKET, 0)
    first = heard[0]
    assert 1 < first <= FIFO_SAMPLES, "what stands too long is dropped"
    assert heard == list(range(first, first + PACKET))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(0, 3000)),
        st.tuples(st.just("fill"), st.integers(0, 2 * int(RATE["RATE_CYCLE_MAX"]))),
        st.tuples(st.just("forget"), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.integers(-5, 400)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_each_sample_is_heard_once_at_most_and_in_order(
    built: Built, steps: list[tuple[str, int]]
) -> None:
    playout, now, last = Playout(built), 0, 0
    for what, number in steps:
        if what == "feed":
            # All of it fits, so that the number of a sample says which one it is.
            playout.feed(min(number, FIFO_SAMPLES - (playout.fed - last)), now)
        elif what == "wait":
            now += number * MS
        elif what == "forget":
            playout.forget(is_new=bool(number))
            last = playout.fed
        else:
            heard = playout.fill(number, now)
            there = [each for each in heard if each]
            assert heard[: len(there)] == there, "what is lacking is at the end"
            for each in there:
                last += 1 + (each - 1 - last) % 32767
                assert last <= playout.fed
            assert abs(playout.correction - 1) <= RATE["RATE_CORRECTION_MAX"] + 1e-9
