"""The changes to usbip.c, and to the pump where it checks, that mutants.py tries. Data only."""

from __future__ import annotations

from .mutants_table import Mutant

_ALLOCATED = "the kernel allocates what it is told"
_ITS_OWN = "the kernel believes what a return says"
_DESYNC = "the kernel reads on where the check does not"

MUTANTS = [
    Mutant(name, "usbip.c", old, new, why, "pytest usbip")
    for name, old, new, why in [
        ("any length", "if (length > PV_USBIP_TRANSFER_MAX)", "if (0)", _ALLOCATED),
        ("any number of packets", "if (packets > PV_USBIP_PACKETS_MAX)", "if (0)", _ALLOCATED),
        ("any flags", " & FLAGS_PASSED);", ");", "DMA to an address of the peer's"),
        (
            "any number of commands",
            "if (usbip->outstanding == PV_USBIP_COMMANDS_MAX)",
            "if (usbip->outstanding == PV_USBIP_COMMANDS_MAX - 1)",
            "the bound is exact",
        ),
        ("a number twice", "if (find(usbip, command.seqnum))", "if (0)", _ITS_OWN),
        (
            "any sum of lengths",
            "if (usbip->bytes + command.length > PV_USBIP_BYTES_MAX)",
            "if (0)",
            _ALLOCATED,
        ),
        ("a sum that only grows", "    usbip->bytes -= command->length;\n", "", "returns free it"),
        ("any device", "if (number(header + DEVID) != usbip->devid)", "if (0)", _DESYNC),
        ("any direction", "number(header + DIRECTION) > IN || ", "", _DESYNC),
        ("any endpoint", " || number(header + ENDPOINT) > ENDPOINT_MAX", "", "arrays of sixteen"),
        ("more bytes", "if (actual > command->length)", "if (0)", _ITS_OWN),
        ("other packets", "if (packets != command->packets)", "if (0)", _ITS_OWN),
        ("more errors", "if (number(header + ERROR_COUNT) > packets)", "if (0)", _ITS_OWN),
        ("any kind", "command->is_unlink != (kind == RET_UNLINK)", "0", _ITS_OWN),
        ("any status", "if (!is_status(number(header + STATUS)))", "if (0)", _ITS_OWN),
        ("a packet outside", "if (end > stream->buffer)", "if (0)", "memory behind the buffer"),
        ("a long packet", "if (actual > number(entry + PACKET_LENGTH))", "if (0)", _ITS_OWN),
        (
            "packets with fewer bytes",
            "(stream->packets == 1 && actual != stream->actual)",
            "0",
            _ITS_OWN,
        ),
        (
            "data as a command",
            "        watch_beginning(usbip);\n    return add",
            "        ;\n    return add",
            _DESYNC,
        ),
        ("a table as a command", "!stream->data && stream->packets)", "0)", _DESYNC),
        (
            "a return of what was taken back",
            "        forget(usbip, unlinked);\n",
            "",
            "it has none any more",
        ),
        (
            "the wrong one forgotten",
            "        command = find(usbip, number(header + SEQNUM)); /* it may have moved */\n",
            "",
            "the table has moved",
        ),
        (
            "a late return that goes on",
            "        if (stream->is_late) {",
            "        if (0) {",
            "vhci-hcd ends the connection",
        ),
        (
            "late whatever unlinking said",
            "        if (!number(header + STATUS))\n            expect_late",
            "            expect_late",
            "what was unlinked in time returns never",
        ),
        ("late for ever", "            late->is_unlink = true;", "            ;", "once"),
        (
            "one late return fewer",
            "usbip->next_late++ % PV_USBIP_LATE_MAX]",
            "usbip->next_late++ % (PV_USBIP_LATE_MAX - 1)]",
            "the bound is exact",
        ),
        (
            "late from the beginning",
            "        usbip->late[i].is_unlink = true;\n",
            "        ;\n",
            "no command waits for it",
        ),
        (
            "a look that takes out what the one before did",
            "    usbip->check.dropped = 0;\n",
            "",
            "bytes behind it are lost",
        ),
        ("an unlink that is unlinked", "unlinked && !unlinked->is_unlink", "unlinked", _ITS_OWN),
    ]
] + [
    Mutant(name, "pump.c", old, new, why, "pytest usbip")
    for name, old, new, why in [
        (
            "a refusal that does not end the pump",
            "    loop->reading = false;\n    loop->writing = false;\n}\n\n/* These went on. */",
            "    loop->reading = false;\n}\n\n/* These went on. */",
            "nothing that was refused is written",
        ),
        (
            "bytes that were taken out and count",
            "        box->have -= loop->pump->check->dropped;\n",
            "",
            "they would be shown, and go on, again",
        ),
        (
            "cleared bytes that are dropped",
            " && !loop->inward.cleared)\n        loop->writing = false;\n}\n\nstatic void end_w",
            ")\n        loop->writing = false;\n}\n\nstatic void end_w",
            "everything that the peer had sent is written",
        ),
    ]
]
