"""The addresses of a channel's ends and the sizes of its rings, under every hypervisor."""

from __future__ import annotations

from pedos_protocol.fields import DATA_PORT_FIRST, DOMID_MAX, PORT_MAX

from ._native import lib

CONTROL_PORT = 1  # where every agent listens for dom0
CONTROL_ORDER = 16  # 64 KiB: one largest frame of the control protocol fits
DATA_ORDER = 18  # 256 KiB: from here on bulk speed hardly grows, and two rings still fit a cache


def is_data_port(port: str) -> bool:
    """Whether a number in a name, as any program may have made it, is one that dom0 assigns."""
    return port.isascii() and port.isdecimal() and DATA_PORT_FIRST <= int(port) <= PORT_MAX


def check_address(domain: int, peer: int, port: int) -> None:
    """ValueError for impossible numbers, or for a channel to oneself."""
    for number in (domain, peer):
        if not 0 <= number <= DOMID_MAX:
            raise ValueError(f"domain {number} is not between 0 and {DOMID_MAX}")
    if domain == peer:
        # On Xen this crashes the kernel; in shared memory it would work and hide the mistake.
        raise ValueError(f"domain {domain} cannot open a channel to itself")
    if not 0 <= port <= PORT_MAX:
        raise ValueError(f"port {port} is not between 0 and {PORT_MAX}")


def check_orders(left: int, right: int) -> None:
    """ValueError for impossible ring sizes, or ones that do not fit together."""
    if not (0 <= left <= 0xFF and 0 <= right <= 0xFF) or not lib.pv_orders_valid(left, right):
        raise ValueError(
            f"ring orders {left} and {right} are not possible: each is 10 to 20, the two in-page "
            "sizes 10 and 11 exist once each, and 10 does not go with 20"
        )
