"""The session of the user who runs local mode: it lends, and hears."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sound import house as houses
from tests.sound.hearing import Recorder, has_tone, playing
from tests.sound.servers import each_kind, sound_server

TOML = """\
[dom0]
sound = "session"

[vm.work]
sound = "pulseaudio"
microphone = true

[vm.seat]
sound = "session"
"""


@pytest.mark.parametrize("kind", each_kind)
def test_a_desktop_lends_its_microphone_and_hears_that_of_a_vm(kind: str, tmp_path: Path) -> None:
    if (why := houses.why_not()) is not None:
        pytest.skip(why)
    with sound_server(kind, tmp_path / "desktop", microphone=True) as desktop:
        before = desktop.sources()
        env = {"XDG_RUNTIME_DIR": str(desktop.described.runtime)}
        with houses.house(TOML, env) as house:
            house.wait_until(lambda: house.is_offered("dom0"), "dom0:mic is listed")
            work = house.server("work")
            microphone = house.lend("dom0", "work")
            with playing(desktop, tmp_path), Recorder(work, microphone) as recorder:
                recorder.until("the desktop's microphone is heard in the VM", has_tone)
            house.take_back("dom0", "work")

            microphone = house.lend("work", "seat")
            desktop.wait_until(lambda: microphone in desktop.sources(), "it is on the desktop")
            with playing(work, tmp_path), Recorder(desktop, microphone) as recorder:
                recorder.until("the VM's microphone is heard on the desktop", has_tone)
            assert house.down() == 0
        # Nothing of it stays in the user's session.
        desktop.wait_until(lambda: desktop.sources() == before, "the microphone is gone")
