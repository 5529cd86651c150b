"""Data channels: no port is in use twice, none is used again at once, and leases keep them open."""

from __future__ import annotations

from itertools import islice

import pytest
from pedos_dom0.tables.leases import Lease, LeaseTable
from pedos_dom0.tables.ports import PORT_LAST, Channel, Ports
from pedos_dom0.tables.registry import DeviceKey
from pedos_protocol.errors import CallError
from pedos_protocol.fields import DATA_PORT_FIRST

KEY = DeviceKey("block", "sys-usb", "sda")


def test_a_port_that_is_free_again_waits_until_all_others_had_their_turn() -> None:
    ports = Ports()
    assert ports.next() == DATA_PORT_FIRST
    ports.open("a", Channel(DATA_PORT_FIRST, 1, 2))
    ports.close("a")
    ports.close("a")
    rest = list(islice(iter(ports.next, None), PORT_LAST - DATA_PORT_FIRST))
    assert rest == list(range(DATA_PORT_FIRST + 1, PORT_LAST + 1))
    assert ports.next() == DATA_PORT_FIRST


def test_a_port_in_use_is_passed_over_until_all_are() -> None:
    ports = Ports()
    for port in range(DATA_PORT_FIRST, PORT_LAST + 1):
        ports.open(str(port), Channel(port, 1, 2))
    with pytest.raises(CallError, match="all data ports are in use") as raised:
        ports.next()
    assert raised.value.code == "quota"
    ports.close("4711")
    assert ports.next() == 4711
    assert ports.next() == 4711, "it was not opened"


def test_a_lease_has_its_channel_open_for_as_long_as_it_lasts() -> None:
    leases = LeaseTable()
    lease = Lease(
        "0" * 16, KEY, "work", {}, None, 17, backend_domid=1, vm_domid=-1, state="pending"
    )
    leases.grant(lease, {KEY}, shared=False)
    assert leases.ports.of(lease.attachment) == lease.channel == Channel(17, 1, -1)
    leases.update(lease.attachment, vm_domid=5)
    assert leases.ports.of(lease.attachment) == Channel(17, 1, 5)
    leases.free(lease.attachment)
    assert leases.ports.of(lease.attachment) is None
