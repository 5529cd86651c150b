"""A tone that is played into one VM's microphone is heard in another, with each pair of servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_dom0.local.sound_server import MICROPHONE

from tests.sound.hearing import (
    LEVEL,
    SILENT,
    Recorder,
    blocks,
    has_tone,
    is_silent,
    playing,
    record,
)
from tests.sound.house import House, ear, lender
from tests.sound.servers import each_kind, each_pair


@pytest.mark.parametrize(("source", "target"), each_pair)
def test_a_tone_goes_in_and_comes_out_only_while_it_is_lent(
    house: House, source: str, target: str, tmp_path: Path
) -> None:
    speaks, hears = house.server(lender(source)), house.server(ear(target))
    assert hears.sources() == []
    microphone = house.lend(lender(source), ear(target))
    hears.wait_until(lambda: hears.sources() == [microphone], "programs find the microphone")
    assert speaks.recording(MICROPHONE) == [], "nobody listens: nothing is open at the source"

    with playing(speaks, tmp_path):
        for _ in range(2):  # a second recording as the first
            with Recorder(hears, microphone) as recorder:
                recorder.until("the tone is heard", has_tone)
                (stream,) = speaks.recording(MICROPHONE)
                assert stream["program"] == "pedos-sound"
                assert ear(target) in stream["name"], "the user sees who listens"
            speaks.wait_until(lambda: not speaks.recording(MICROPHONE), "the source's stream ends")
            assert house.holders(f"{lender(source)}:mic") == [ear(target)], "it stays lent"

        with Recorder(hears, microphone) as recorder:
            recorder.until("the tone is heard again", has_tone)
            house.take_back(lender(source), ear(target))
            hears.wait_until(lambda: hears.sources() == [], "the microphone is gone")
            speaks.wait_until(lambda: not speaks.recording(MICROPHONE), "the source's stream ends")


@pytest.mark.parametrize("target", each_kind)
def test_what_was_said_before_a_recording_is_not_in_it(
    house: House, target: str, tmp_path: Path
) -> None:
    speaks, hears = house.server("pw"), house.server(ear(target))
    microphone = house.lend("pw", ear(target))
    with playing(speaks, tmp_path), Recorder(hears, microphone) as recorder:
        recorder.until("the tone is heard", has_tone)
    # Nothing is played any more; what the first recording left in any buffer must not come out.
    left = [level for level in blocks(record(hears, 0.5, microphone)) if level > SILENT]
    # PipeWire's resampler keeps less than a millisecond, of the 20 that a block has, and PulseAudio
    # some 6. They come out at once, wherever in the recording, and so in two blocks at most.
    assert len(left) <= 2
    assert sum(left) <= LEVEL / (10 if target == "pipewire" else 2)


@pytest.mark.parametrize(("source", "target"), each_pair)
def test_silence_comes_out_when_nobody_speaks(house: House, source: str, target: str) -> None:
    hears = house.server(ear(target))
    microphone = house.lend(lender(source), ear(target))
    assert is_silent(record(hears, 0.5, microphone))


def test_a_microphone_is_listed_at_the_vm_that_has_it(house: House) -> None:
    listed = house.devices("mic")
    assert {"pw:mic", "pa:mic"} <= set(listed)
    # Neither monitors, nor what is borrowed, nor anything of dom0's.
    house.lend("pw", "pa-ear")
    house.lend("pw", "pa")
    house.wait_until(
        lambda: "pedos_mic.pw" in house.server("pa").sources(), "the borrowed one is there"
    )
    after = house.devices("mic")
    assert set(after) == set(listed)
    assert not [name for name in after if "monitor" in name or "pedos_mic" in name]
    assert not [name for name in after if name.startswith("dom0:")]


@pytest.mark.parametrize("target", each_kind)
def test_programs_are_told_that_it_is_a_microphone(house: House, target: str) -> None:
    hears = house.server(ear(target))
    name = house.lend("pw", ear(target))
    hears.wait_until(lambda: hears.sources() == [name], "the microphone is there")
    (found,) = [each for each in hears.listed("sources") if each["name"] == name]
    assert found["description"] == "Microphone of pw"
    assert found["monitor_source"] in ("", "n/a", None), "browsers hide monitors"
    if target == "pipewire":
        assert found["properties"]["media.class"] == "Audio/Source"
        assert found["properties"]["node.latency"] == "480/48000", "no quantum that a VM misses"
