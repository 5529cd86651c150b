"""The classes of this agent: the one table. A class is a folder beside this file, and a row.

It is a list, like the table of descriptions, so that a further class can be added to it.
"""

from __future__ import annotations

from typing import Final

from pedos_agent.device_classes.base import DeviceClass
from pedos_agent.device_classes.block.device_class import Block
from pedos_agent.device_classes.mic.device_class import Mic
from pedos_agent.device_classes.pci.device_class import Pci
from pedos_agent.device_classes.usb.device_class import Usb

CLASSES: Final[list[DeviceClass]] = [Block(), Usb(), Pci(), Mic()]
