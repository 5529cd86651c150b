"""What a VM's programs take for their microphone while they have one of their own or a lent one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_dom0.local.sound_server import MICROPHONE

from tests.sound.hearing import Recorder, has_tone, is_silent, playing
from tests.sound.house import House, ear, lender
from tests.sound.servers import each_kind


@pytest.mark.parametrize("target", each_kind)
def test_the_only_microphone_is_the_default_until_it_is_taken_back(
    house: House, target: str, tmp_path: Path
) -> None:
    hears = house.server(ear(target))
    before = hears.default_source()
    microphone = house.lend("pw", ear(target))
    hears.wait_until(lambda: hears.default_source() == microphone, "it is the default")
    with playing(house.server("pw"), tmp_path), Recorder(hears, "@DEFAULT_SOURCE@") as recorder:
        recorder.until("a program that names none hears it", has_tone)
    house.take_back("pw", ear(target))
    hears.wait_until(lambda: hears.default_source() == before, "the default is what it was")


@pytest.mark.parametrize("target", each_kind)
def test_a_microphone_of_the_vms_own_stays_its_default(
    house: House, target: str, tmp_path: Path
) -> None:
    vm = lender(target)
    other = "pa" if vm == "pw" else "pw"
    hears = house.server(vm)
    assert hears.default_source() == MICROPHONE
    with playing(hears, tmp_path), Recorder(hears, "@DEFAULT_SOURCE@") as recorder:
        recorder.until("its own microphone is heard", has_tone)
        microphone = house.lend(other, vm)
        hears.wait_until(lambda: microphone in hears.sources(), "the lent one is there")
        recorder.until("a program that records goes on with its own", has_tone)
        assert hears.default_source() == MICROPHONE
        with Recorder(hears, microphone) as lent:
            lent.until("the lent one is another, and nobody speaks into it", is_silent)
        house.take_back(other, vm)
        hears.wait_until(lambda: microphone not in hears.sources(), "the lent one is gone")
        recorder.until("a program that records goes on with its own", has_tone)
        assert hears.default_source() == MICROPHONE


@pytest.mark.parametrize("source", each_kind)
def test_the_user_of_the_source_may_choose_another_microphone_meanwhile(
    house: House, source: str, tmp_path: Path
) -> None:
    """`mic` is what the user there has chosen, and follows the choice; it never becomes the sound
    of the desktop, which a server would take instead of a device that is gone."""
    vm = lender(source)
    speaks, hears = house.server(vm), house.server("pw-ear")
    other = ("module-null-sink", "sink_name=into_other", "rate=48000", "channels=1")
    own = [speaks.pactl("load-module", *other).strip()]
    remap = ("module-remap-source", "source_name=other", "master=into_other.monitor", "channels=1")
    own.append(speaks.pactl("load-module", *remap).strip())
    try:
        microphone = house.lend(vm, "pw-ear")
        with playing(speaks, tmp_path, sink="into_other"), Recorder(hears, microphone) as recorder:
            recorder.until("nobody speaks into the first one", is_silent)
            speaks.pactl("set-default-source", "other")
            recorder.until("the chosen one is heard", has_tone)
            assert speaks.recording(MICROPHONE) == []
            speaks.pactl("set-default-source", MICROPHONE)
            recorder.until("and the first one again", is_silent)
    finally:
        for module in reversed(own):
            speaks.pactl("unload-module", module)
        speaks.pactl("set-default-source", MICROPHONE)
