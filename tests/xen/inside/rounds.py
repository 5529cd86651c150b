"""Attaches a device to a VM and takes it away, again and again:

bench-rounds N VM SOURCE DEVICE [CLASS]     a block device unless said

Over one connection to dom0's service: to start a command takes longer here than an attachment.
"""

from __future__ import annotations

import json
import sys
import time

from pedos_cli.client import connect


def main() -> None:
    rounds, vm, backend, device, *said = int(sys.argv[1]), *sys.argv[2:]
    (device_class,) = said or ["block"]
    of = {"device_class": device_class, "vm": vm, "backend": backend, "device": device}
    took = []
    client = connect(program="bench-rounds")
    for _ in range(rounds):
        start = time.monotonic()
        client.call("device.attach", {**of, "options": {}, "persistent": False}, 120)
        client.call("device.detach", {**of, "force": False}, 120)
        took.append(time.monotonic() - start)
    client.close()
    print(
        json.dumps(
            {"rounds": rounds, "seconds": round(sum(took), 1), "longest": round(max(took), 2)}
        )
    )
