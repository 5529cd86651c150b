"""Several VMs that listen to one microphone, and dom0's user who mutes one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_dom0.local.sound_server import MICROPHONE

from tests.sound.hearing import Recorder, has_tone, is_silent, playing
from tests.sound.house import House, ear, lender, stopped
from tests.sound.servers import each_kind

BOTH = ("pw-ear", "pa-ear")


@pytest.mark.parametrize("source", each_kind)
def test_two_listen_at_once_and_the_source_records_once(
    house: House, source: str, tmp_path: Path
) -> None:
    vm = lender(source)
    speaks = house.server(vm)
    names = [house.lend(vm, listener) for listener in BOTH]
    assert house.holders(f"{vm}:mic") == sorted(BOTH)
    one, two = (house.server(listener) for listener in BOTH)
    with playing(speaks, tmp_path), Recorder(one, names[0]) as first:
        first.until("the first hears", has_tone)
        with Recorder(two, names[1]) as second:
            second.until("the second hears", has_tone)
            first.until("the first hears as well", has_tone)
            assert len(speaks.recording(MICROPHONE)) == 1
        first.until("the first goes on when the second has ended", has_tone)
        house.take_back(vm, BOTH[1])
        first.until("the first goes on when the second has it no more", has_tone)
        assert len(speaks.recording(MICROPHONE)) == 1
    speaks.wait_until(lambda: not speaks.recording(MICROPHONE), "with the last listener it ends")


@pytest.mark.parametrize("source", each_kind)
def test_a_vm_that_is_given_it_during_a_recording_hears_and_the_recording_goes_on(
    house: House, source: str, tmp_path: Path
) -> None:
    vm = lender(source)
    speaks, name = house.server(vm), house.lend(vm, BOTH[0])
    with playing(speaks, tmp_path), Recorder(house.server(BOTH[0]), name) as first:
        first.until("the first hears", has_tone)
        with Recorder(house.server(BOTH[1]), house.lend(vm, BOTH[1])) as second:
            second.until("the second hears at once", has_tone)
            first.until("the first goes on", has_tone)
            assert len(speaks.recording(MICROPHONE)) == 1


def test_a_listener_that_stands_still_takes_nothing_from_the_other(
    house: House, tmp_path: Path
) -> None:
    speaks = house.server("pw")
    names = [house.lend("pw", listener) for listener in BOTH]
    one, two = (house.server(listener) for listener in BOTH)
    with (
        playing(speaks, tmp_path),
        Recorder(one, names[0]) as first,
        Recorder(two, names[1]) as second,
    ):
        first.until("the first hears", has_tone)
        second.until("the second hears", has_tone)
        with stopped(house.speaker(BOTH[1])):
            for _ in range(4):
                first.until("the first goes on", has_tone)
        second.until("the second hears again once it runs", has_tone)


@pytest.mark.parametrize("source", each_kind)
def test_a_muted_vm_hears_silence_and_the_other_goes_on(
    house: House, source: str, tmp_path: Path
) -> None:
    vm = lender(source)
    speaks = house.server(vm)
    names = [house.lend(vm, listener) for listener in BOTH]
    one, two = (house.server(listener) for listener in BOTH)
    with (
        playing(speaks, tmp_path),
        Recorder(one, names[0]) as first,
        Recorder(two, names[1]) as second,
    ):
        first.until("the first hears", has_tone)
        second.until("the second hears", has_tone)
        try:
            house.mute(BOTH[0], True)
            first.until("the muted one hears nothing", is_silent)
            second.until("the other one goes on", has_tone)
            house.mute(BOTH[1], True)
            second.until("now it hears nothing either", is_silent)
            speaks.wait_until(
                lambda: not speaks.recording(MICROPHONE), "for muted ones nothing is recorded"
            )
        finally:
            for listener in BOTH:
                house.mute(listener, False)
        first.until("the first hears again", has_tone)
        second.until("the second hears again", has_tone)


def test_who_listens_now_is_shown(house: House, tmp_path: Path) -> None:
    microphone = house.lend("pw", "pa-ear")

    def listening() -> bool:
        (held,) = house.devices("mic")["pw:mic"]["attachments"]  # type: ignore[misc,attr-defined]
        return bool(held["listening"])

    assert not listening()
    with Recorder(house.server("pa-ear"), microphone):
        house.wait_until(listening, "it is shown that somebody listens")
    house.wait_until(lambda: not listening(), "and that nobody does any more")


@pytest.mark.parametrize("target", each_kind)
def test_a_program_that_starts_and_stops_all_the_time_harms_nothing(
    house: House, target: str, tmp_path: Path
) -> None:
    """As Audacity does, which opens every device for a moment to see what it can."""
    listener = ear(target)
    speaks, hears = house.server("pw"), house.server(listener)
    microphone = house.lend("pw", listener)
    logs = [house.layout.log(f"{vm}.sound") for vm in ("pw", listener)]
    with playing(speaks, tmp_path):
        with Recorder(hears, microphone) as recorder:
            recorder.until("the tone is heard", has_tone)
        before = sum(log.read_text().count("\n") for log in logs)
        for _ in range(25):
            with Recorder(hears, microphone):
                pass
        with Recorder(hears, microphone) as recorder:
            recorder.until("the tone is heard after all that", has_tone)
        assert sum(log.read_text().count("\n") for log in logs) <= before + 5, "no line an event"
        assert house.holders("pw:mic") == [listener]
