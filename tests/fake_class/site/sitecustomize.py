"""Registers the class in dom0's service and in agents that are started with this folder in
PYTHONPATH: Python runs it before the program.

The commands do without it, as they ask the service for its classes.
"""

from __future__ import annotations

import sys

if "pedos_dom0" in sys.orig_argv:
    from pedos_dom0.drivers.carrier import CarriedByAgents
    from pedos_dom0.drivers.local import CARRIERS

    CARRIERS["fake"] = CarriedByAgents()
if "pedos_agent" in sys.orig_argv:
    from pedos_agent.device_classes import registered

    from tests.fake_class.agent import Fake

    registered.CLASSES.append(Fake())
if {"pedos_dom0", "pedos_agent"}.intersection(sys.orig_argv):
    from pedos_protocol.device_classes import CLASSES

    from tests.fake_class import FAKE

    CLASSES.append(FAKE)
