"""Samples from one thread to another: in order, none twice, and none from before a flush."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiled import compile_c

from .c_library import SOUND, library

Built = tuple[FFI, SimpleNamespace]


class Fifo:
    def __init__(self, built: Built) -> None:
        self._ffi, self._c = built
        self._memory = self._ffi.new("int64_t[]", int(self._c.FIFO_SAMPLES))
        self._fifo = self._ffi.cast("struct fifo *", self._memory)
        self._c.fifo_init(self._fifo)

    def write(self, samples: list[int]) -> int:
        wanted = self._ffi.new("int16_t[]", samples)
        return int(self._c.fifo_write(self._fifo, wanted, len(samples), 1))

    def silence(self, n: int) -> int:
        return int(self._c.fifo_write(self._fifo, self._ffi.NULL, n, 1))

    def flush(self) -> None:
        self._c.fifo_flush(self._fifo)

    def ready(self) -> int:
        return int(self._c.fifo_ready(self._fifo))

    def drop(self, n: int) -> None:
        self._c.fifo_drop(self._fifo, n)

    def take(self, n: int) -> list[int]:
        to: Any = self._ffi.new("float[]", max(n, 1))
        self._c.fifo_take(self._fifo, to, n)
        return [round(each * 32768) for each in to[0:n]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return library(tmp_path_factory.mktemp("fifo"), "fifo")


@pytest.fixture
def fifo(built: Built) -> Fifo:
    return Fifo(built)


def test_samples_come_out_as_they_went_in(fifo: Fifo) -> None:
    assert fifo.write([0, 1, -1, 32767, -32768]) == 5
    assert fifo.silence(2) == 2
    assert fifo.ready() == 7
    assert fifo.take(7) == [0, 1, -1, 32767, -32768, 0, 0]
    assert fifo.ready() == 0


def test_what_does_not_fit_is_not_written(fifo: Fifo, built: Built) -> None:
    size = int(built[1].FIFO_SAMPLES)
    assert fifo.silence(size - 1) == size - 1
    assert fifo.write([1, 2, 3]) == 1
    assert fifo.write([4]) == 0
    fifo.drop(size - 1)
    assert fifo.take(1) == [1]


def test_a_flush_leaves_what_comes_after_it_alone(fifo: Fifo) -> None:
    fifo.write([1, 2, 3])
    fifo.flush()
    fifo.write([4, 5])
    assert fifo.ready() == 2
    fifo.flush()
    assert fifo.ready() == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 9000)),
            st.tuples(st.just("take"), st.integers(0, 9000)),
            st.tuples(st.just("drop"), st.integers(0, 9000)),
            st.tuples(st.just("flush"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_it_is_a_bounded_queue(built: Built, steps: list[tuple[str, int]]) -> None:
    fifo, queue, next_one = Fifo(built), [], 0
    size, stale = int(built[1].FIFO_SAMPLES), 0
    for what, n in steps:
        if what == "write":
            samples = [(next_one + i) % 30_000 for i in range(n)]
            written = fifo.write(samples)
            # What was flushed keeps its room until the other side looks.
            assert written == min(n, size - len(queue) - stale)
            queue += samples[:written]
            next_one += written
        elif what == "flush":
            fifo.flush()
            stale, queue = stale + len(queue), []
        else:
            assert fifo.ready() == len(queue)
            stale, least = 0, min(n, len(queue))
            if what == "take":
                assert fifo.take(least) == queue[:least]
            else:
                fifo.drop(least)
            queue = queue[least:]


def test_two_threads_share_it_without_a_race(tmp_path: Path) -> None:
    program = tmp_path / "fifo_threads"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread"]
    source = Path(__file__).with_name("fifo_threads.c")
    sources = [source, SOUND / "fifo.c"]
    compile_c(["clang", *flags, f"-I{SOUND}", "-o", program, *sources, "-pthread"])
    # Without random places of memory: the sanitizer of older releases cannot cope with many bits.
    done = subprocess.run(["setarch", "-R", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
