"""USB/IP inside one domain: usbip-host lends a stick, and vhci-hcd of the same kernel borrows it.

bench-loopback PORT MIB ROUNDS   prints the fastest MB/s of reading so much from the disk of PORT

There is one socket pair, and nothing of ours in between: what the kernels' protocol itself costs.
The agent must have lent that port before, and must not lend it now.
"""

from __future__ import annotations

import glob
import os
import socket
import subprocess
import sys
import time

USB = "/sys/bus/usb"
HOST = f"{USB}/drivers/usbip-host"
VHCI = "/sys/devices/platform/vhci_hcd.0"
DISKS = "/sys/devices/platform/vhci_hcd.*/usb*/*/*/host*/target*/*/block/sd*"
PATIENCE = 30.0  # seconds
SUPER = "5"  # as USB/IP counts speeds


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def wait(what: str) -> str:
    """The first path of that pattern, when there is one."""
    end = time.monotonic() + PATIENCE
    while not (found := glob.glob(what)):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found[0]


def fastest(disk: str, mib: int, rounds: int) -> float:
    """MB/s."""
    command = ["dd", f"if={disk}", "of=/dev/null", "bs=1M", f"count={mib}", "iflag=direct"]
    took = []
    for _ in range(rounds):
        start = time.monotonic()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        took.append(time.monotonic() - start)
    return mib * (1 << 20) / min(took) / 1e6


def main() -> None:
    port, mib, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    device = f"{USB}/devices/{port}"
    devid = int(read(f"{device}/busnum")) << 16 | int(read(f"{device}/devnum"))
    subprocess.run(["modprobe", "vhci-hcd"], check=True)
    write(f"{device}/driver/unbind", port)
    write(f"{HOST}/bind", port)
    ours, theirs = socket.socketpair()
    write(f"{device}/usbip_sockfd", str(ours.fileno()))
    rows = [row.split() for row in read(f"{VHCI}/status").splitlines()]
    number = next(row[1] for row in rows if row[0] == "ss" and row[2] == "004")
    write(f"{VHCI}/attach", f"{int(number)} {theirs.fileno()} {devid} {SUPER}")
    ours.close()
    theirs.close()
    try:
        disk = f"/dev/{os.path.basename(wait(DISKS))}"
        wait(disk)
        print(fastest(disk, mib, rounds))
    finally:
        write(f"{VHCI}/detach", number)
        end = time.monotonic() + PATIENCE
        while read(f"{device}/usbip_status").strip() != "1":
            assert time.monotonic() < end
            time.sleep(0.05)
        write(f"{HOST}/unbind", port)
        write(f"{USB}/drivers_probe", port)
