"""A question as dom0's service puts it to a prompter, for the tests of all that show one."""

from __future__ import annotations

#: The parameters of `prompt.ask`.
ASK = {
    "request": "3f9c01ab77de",
    "source": "work",
    "service": "device.attach.block",
    "device_class": "block",
    "backend": "sys-usb",
    "device": "sda",
    "identity": "0781:5581:4C53",
    "description": "SanDisk Ultra",
    "size": 64 * 1024 * 1024,
    "read_only": True,
    "candidates": ["work", "vault"],
    "default": None,
    "timeout_s": 60,
}
