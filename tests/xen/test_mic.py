"""The microphone of a driver domain's user in another guest, heard over vchan."""

from __future__ import annotations

import concurrent.futures
import statistics
from typing import TYPE_CHECKING

import pytest

from . import sound
from .conftest import run_driver_domain
from .driving import holders, wait_for
from .figures import tell
from .sound import BORROWED, SOURCE, TARGET

if TYPE_CHECKING:
    from .bench import Bench

MICROPHONE = f"{SOURCE}:mic"
TONE, OTHER = 1000, 750  # Hz; OTHER is what is heard where there is no tone
RECORD_SECONDS = 20.0
#: How loud the tone is that goes in is LOUDNESS in inside/tone.py.
HEARD, SILENCE = 0.15, 0.003
#: Under emulation programs do not keep up with 48000 samples a second, and whole blocks are lost.
#: How much is lost is for the benchmarks to say, which have real processors: here so many blocks of
#: 20 ms with the tone are enough, and there is nothing else in them.
BLOCKS_AT_LEAST = 50


@pytest.fixture(scope="module")
def people(bench: Bench) -> None:
    """Somebody is logged in in both guests, and has a microphone in the driver domain."""
    run_driver_domain(bench)
    for guest in (SOURCE, TARGET):
        sound.log_in(bench, guest)
    sound.plug_microphone(bench)
    wait_for(bench, f"idle {MICROPHONE} mic")


def detach(bench: Bench) -> None:
    bench.run("dom0", f"qvm-device mic detach {TARGET} {MICROPHONE}").check()


@pytest.mark.usefixtures("people")
def test_a_tone_is_heard_in_the_other_guest_and_only_while_it_is_lent(bench: Bench) -> None:
    sound.attach(bench).check()
    assert holders(bench, MICROPHONE, "mic") == [TARGET]
    # Attached is not listened to: the microphone is not open before somebody records.
    assert sound.recorders(bench) == ""

    sound.speak(bench, TONE, 10 * RECORD_SECONDS)
    heard = sound.hear(bench, RECORD_SECONDS, TONE, OTHER)
    with_tone = [loud >= HEARD for loud in heard[TONE]]
    others = [loud for loud, there in zip(heard[OTHER], with_tone, strict=True) if there]
    tell(f"microphone: {sum(with_tone)} of {len(with_tone)} blocks of 20 ms had the tone")
    assert sum(with_tone) >= BLOCKS_AT_LEAST, str(heard)
    assert statistics.median(others) <= SILENCE, heard

    sound.when_nobody_records(bench)
    detach(bench)
    assert BORROWED not in sound.sources(bench)
    assert holders(bench, MICROPHONE, "mic") == []
    # What is recorded there now is something else, while the tone still goes into the microphone.
    rest = sound.hear(bench, RECORD_SECONDS / 4, TONE, device="@DEFAULT_SOURCE@")
    assert all(loud <= SILENCE for loud in rest[TONE]), rest


@pytest.mark.usefixtures("people")
def test_a_detach_closes_the_microphone_under_a_recorder(bench: Bench) -> None:
    sound.attach(bench).check()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        recording = threads.submit(sound.hear, bench, RECORD_SECONDS, TONE)
        sound.when_somebody_records(bench)
        detach(bench)
        sound.when_nobody_records(bench)
        assert not recording.done()
    assert BORROWED not in sound.sources(bench)


@pytest.mark.usefixtures("people")
def test_a_microphone_of_a_user_who_logs_out_is_not_there(bench: Bench) -> None:
    sound.attach(bench).check()
    sound.log_out(bench, SOURCE)
    wait_for(bench, f"gone {MICROPHONE} mic")
    sound.log_in(bench, SOURCE)
