"""Which VM this user attached a device to last, by what the device is and not by where it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pedos_protocol.device_classes import is_class_name
from pedos_protocol.names import is_identity, is_vm_name

if TYPE_CHECKING:
    from pedos_protocol.messages import Listed

PAIRS_MAX = 256
"""Devices that are remembered: more than a desk sees in years. The one that was attached longest
ago is forgotten."""

TEXT_MAX = PAIRS_MAX * 512
"""Characters of the file: a pair has at most an identity (256), a class and a VM, and signs."""

FORMAT = 1


def called(device: Listed) -> str:
    """What a device is called in the memory: its identity. One without, as a file, is called by its
    place and size, which is enough for a proposal: nothing is attached by it."""
    if device.identity:
        return device.identity
    return f"at:{device.backend}:{device.device}:{device.size or 0}"


class Pairs:
    """An ordered memory; the last pair is the latest."""

    def __init__(self) -> None:
        self._vms: dict[tuple[str, str], str] = {}  # by class and identity

    def __len__(self) -> int:
        return len(self._vms)

    def vm_of(self, device: Listed) -> str | None:
        """The VM that had it last."""
        return self._vms.get((device.device_class, called(device)))

    def note(self, device: Listed, vm: str) -> bool:
        """Remember that this VM has it now; return whether that is another one than before."""
        before = self.vm_of(device)
        self.put(device.device_class, called(device), vm)  # it is the latest, in any case
        return vm != before

    def put(self, device_class: str, identity: str, vm: str) -> None:
        """Remember a pair, of a device that is called `identity`."""
        self._vms.pop((device_class, identity), None)
        self._vms[device_class, identity] = vm
        while len(self._vms) > PAIRS_MAX:
            del self._vms[next(iter(self._vms))]

    def put_all(self, later: Pairs) -> None:
        """Remember those as well, each in place of an earlier one of its device."""
        for (device_class, identity), vm in later._vms.items():
            self.put(device_class, identity, vm)

    def text(self) -> str:
        """All of it, for a file."""
        pairs = [
            {"class": device_class, "identity": identity, "vm": vm}
            for (device_class, identity), vm in self._vms.items()
        ]
        return json.dumps({"format": FORMAT, "pairs": pairs}, indent=1) + "\n"


def parse(untrusted_text: str) -> Pairs:
    """What `Pairs.text` wrote. ValueError if this is something else."""
    if len(untrusted_text) > TEXT_MAX:
        raise ValueError(f"it has more than {TEXT_MAX} characters")
    try:
        untrusted = json.loads(untrusted_text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(untrusted, dict) or untrusted.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    untrusted_pairs = untrusted.get("pairs")
    if not isinstance(untrusted_pairs, list):
        raise ValueError("'pairs' is no list")
    pairs = Pairs()
    for untrusted_pair in untrusted_pairs:
        pairs.put(*_parse_pair(untrusted_pair))
    return pairs


def _parse_pair(untrusted: Any) -> tuple[str, str, str]:
    if not isinstance(untrusted, dict):
        raise ValueError("a pair is no map")
    device_class, identity, vm = (untrusted.get(key) for key in ("class", "identity", "vm"))
    if not isinstance(device_class, str) or not is_class_name(device_class):
        raise ValueError("a pair has no device class")
    if not isinstance(identity, str) or not identity or not is_identity(identity):
        raise ValueError("a pair has no identity")
    if not isinstance(vm, str) or not is_vm_name(vm):
        raise ValueError("a pair has no VM")
    return device_class, identity, vm
