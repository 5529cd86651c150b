from __future__ import annotations

import itertools

from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.events import Closed

from . import fuzz_connection


def test_a_short_run_of_the_fuzzer_finds_nothing() -> None:
    for data in itertools.islice(fuzz_connection.inputs(seed=1), 500):
        fuzz_connection.check(data)


def test_the_fuzzers_inputs_reach_both_ends_of_the_grammar() -> None:
    ends = [
        fuzz_connection.heard([data])[-1]
        for data in itertools.islice(fuzz_connection.inputs(seed=2), 200)
    ]
    assert any(isinstance(end, Closed) for end in ends)
    assert len({end for end in ends if isinstance(end, str)}) > 10


def test_an_input_of_many_frames_is_no_error_of_this_side() -> None:
    fuzz_connection.check(fuzz_connection.SEEDS[0] + fuzz_connection.SEEDS[4] * (FRAME_MAX // 40))
