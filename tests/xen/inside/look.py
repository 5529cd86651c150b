"""What dom0's service says, for the harness: a command of the project takes a second to start.

bench-look devices [CLASS]      the devices of a class, block unless said, as JSON
bench-look until CONDITION...   returns when all of these hold at once:
    "agent VM"                its agent is connected
    "listed DEVICE [CLASS]"   there is such a device, SOURCE:ID, or it is assigned
    "gone DEVICE [CLASS]"     neither
    "missing DEVICE [CLASS]"  it is assigned, and not there
    "lent DEVICE [CLASS]"     it is attached to a VM
    "free DEVICE [CLASS]"     it is there, and attached to nobody
    "in-use DEVICE [CLASS]"   it is there, and its source uses it
    "idle DEVICE [CLASS]"     it is there, and its source does not
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from pedos_cli.client import Client, Unreachable, connect
from pedos_cli.devices import list_devices
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from collections.abc import Callable

CALL_SECONDS = 20.0
PAUSE = 0.2  # seconds between two looks, which cost milliseconds

Device = dict[str, Any]

CONDITIONS: dict[str, Callable[[Device | None], bool]] = {
    "listed": lambda device: device is not None,
    "gone": lambda device: device is None,
    "missing": lambda device: device is not None and not device["present"],
    "lent": lambda device: device is not None and bool(device["attachments"]),
    "free": lambda device: device is not None and not device["attachments"],
    "in-use": lambda device: device is not None and bool(device["busy"]),
    "idle": lambda device: device is not None and not device["busy"] and not device["stale"],
}


def devices(client: Client, device_class: str) -> dict[str, Device]:
    found, *_ = list_devices(
        lambda method, params: client.call(method, params, CALL_SECONDS), device_class
    )
    return {f"{each['backend']}:{each['device']}": dict(each) for each in found}


def hold(client: Client, conditions: list[list[str]]) -> bool:
    listed: dict[str, dict[str, Device]] = {}
    for verb, name, *said in conditions:
        if verb == "agent":
            vms = client.call("vm.list", {}, CALL_SECONDS)["vms"]
            holds = name in {vm["name"] for vm in vms if vm["agent"]}
        else:
            (device_class,) = said or ["block"]
            if device_class not in listed:
                listed[device_class] = devices(client, device_class)
            holds = CONDITIONS[verb](listed[device_class].get(name))
        if not holds:
            return False
    return True


def until(conditions: list[list[str]]) -> None:
    client: Client | None = None
    while True:
        try:
            client = client or connect(program="bench-look")
            if hold(client, conditions):
                return
        except (Unreachable, CallError):  # the service is just being started again
            client = None
        time.sleep(PAUSE)


def main() -> None:
    verb, *words = sys.argv[1:]
    if verb == "devices":
        (device_class,) = words or ["block"]
        print(json.dumps(devices(connect(program="bench-look"), device_class)))
    else:
        until([condition.split() for condition in words])
