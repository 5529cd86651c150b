"""A class of devices that stands in tests alone.

`registered` puts it into the one table of classes, which all of this process reads. Programs that
are started with `site` on their path have it from their start on: see `site/sitecustomize.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pedos_protocol.device_classes import CLASSES, DeviceClass, Option

FAKE: Final = DeviceClass(
    "fake",
    one="fake device",
    many="fake devices",
    source="sys-usb",
    example="toy",
    heard=True,
    options=(Option("colour", ("red", "blue"), example="red"),),
)


@contextmanager
def registered(described: DeviceClass = FAKE) -> Iterator[DeviceClass]:
    """While this lasts there is one more class."""
    CLASSES.append(described)
    try:
        yield described
    finally:
        CLASSES.remove(described)
