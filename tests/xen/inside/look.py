"""What dom0's service says, for the harness: a command of the project takes a second to start.

bench-look devices              the block devices, as JSON
bench-look until CONDITION...   returns when all of these hold at once:
    "agent VM"        its agent is connected
    "listed DEVICE"   there is such a block device, SOURCE:ID, or it is assigned
    "gone DEVICE"     neither
    "free DEVICE"     it is there, and attached to nobody
    "in-use DEVICE"   it is there, and its source uses it
    "idle DEVICE"     it is there, and its source does not
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
    "missing": lambda device: device is not None and not device["present"],  # and assigned
    "free": lambda device: device is not None and not device["attachments"],
    "in-use": lambda device: device is not None and bool(device["busy"]),
    "idle": lambda device: device is not None and not device["busy"] and not device["stale"],
}


def devices(client: Client) -> dict[str, Device]:
    found, *_ = list_devices(
        lambda method, params: client.call(method, params, CALL_SECONDS), "block", None, []
    )
    return {f"{each['backend']}:{each['device']}": dict(each) for each in found}


def hold(client: Client, conditions: list[list[str]]) -> bool:
    listed, agents = devices(client), set()
    if any(verb == "agent" for verb, _ in conditions):
        vms = client.call("vm.list", {}, CALL_SECONDS)["vms"]
        agents = {vm["name"] for vm in vms if vm["agent"]}
    return all(
        name in agents if verb == "agent" else CONDITIONS[verb](listed.get(name))
        for verb, name in conditions
    )


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
    verb, *conditions = sys.argv[1:]
    if verb == "devices":
        print(json.dumps(devices(connect(program="bench-look"))))
    else:
        until([condition.split() for condition in conditions])
