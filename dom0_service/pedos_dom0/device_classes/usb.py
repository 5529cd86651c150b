"""USB devices: where they differ from other classes in dom0."""

from __future__ import annotations

from pedos_dom0.device_classes.base import DeviceClass


class Usb(DeviceClass):
    """The sleep of the machine takes a USB device's power, or its place on the bus. A kernel that
    has the controller sets such a device up anew; the kernel of a VM that has only borrowed the
    device waits for its answers, and can keep the machine from falling asleep."""

    survives_sleep = False
