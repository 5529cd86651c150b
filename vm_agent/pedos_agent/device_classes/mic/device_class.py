"""The machine's own microphone: the first sound device that captures."""

from __future__ import annotations

from pathlib import Path

from pedos_agent.device_classes.base import DeviceClass
from pedos_agent.device_classes.described import listed
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.system.hardware_names import HardwareNames
from pedos_agent.system.reading import read_table


class Mic(DeviceClass):
    """Microphones: they can be listed."""

    name = "mic"
    subsystem = "sound"

    def on_machine(
        self, sys_root: Path, proc_root: Path, names: HardwareNames
    ) -> list[LocalDevice]:
        """See DeviceClass."""
        return _scan_mic(proc_root)


def _scan_mic(proc_root: Path) -> list[LocalDevice]:
    # One line a PCM: "00-00: ALC3246 Analog : ALC3246 Analog : playback 1 : capture 1"
    for line in read_table(f"{proc_root}/asound/pcm").split("\n"):
        fields = [field.strip() for field in line.split(":")]
        if any(field.startswith("capture") for field in fields):
            name = fields[1] if len(fields) > 1 else ""
            return [listed("mic", "mic", "", name or "Microphone")]
    return []
