"""How long a command waits for the service, in seconds.

The service bounds every step itself, so a command only has to wait longer than all steps of the
worst case together; otherwise it would report a time-out of an operation that still runs. The steps
with their seconds (pedos_dom0 has the constants; a test adds them up):

    an agent that is just coming back (AGENT_GRACE)           5
    a journal row of a service that was restarted (SETTLE)   30
    a device that was just plugged in (KNOWN)                 5
    export.start, import.start                               10 + 15
    import.stop, export.stop (STOP), each to a VM that hangs 20 + 20
    export.mute (MUTE), to all sources at once                5
    dom0's user thinks, where the policy says ask (ASK)      60
    processes as VMs: start, stop, boot up to its report     10, 20, 30
    Xen: a disk is attached, or taken away by force          70, 80
    Xen: a VM is made, unpaused, boots up to its report      90 + 15 + 240
    Xen: a VM shuts down, or is destroyed                    125, 80

The service does independent steps at once, so several devices take no more time than one; only the
devices of a VM that starts are attached one after the other. A VM that hangs in a step is
disconnected after it, and takes no further time. Xen's steps are the longer ones, so they count.
"""

from __future__ import annotations

ATTACH_S = 420.0
"""5 + 30 + 5, and as much for another VM if the policy redirects it; 60 for the attachment and 60
for the assignment; then 10 + 70 + 15, and 20 + 80 + 20 to undo that."""

DETACH_S = 220.0
"""30, then 60, then 20 + 80 + 20."""

ASSIGN_S = 190.0
"""5 + 30 + 5, and as much for another VM if the policy redirects it; 60; 15 to look at the VM's own
disks. The rest is for what the service writes."""

UNASSIGN_S = 120.0
"""60; the rest is for what the service writes."""

MUTE_S = 60.0
"""30, then 5 twice, if another command mutes or unmutes the VM just then. The rest is for what the
service writes."""

START_S = 1165.0
"""5 + 30 + 5, then 60, then 90 + 15 + 240; a device that fails 10 + 70 + 15 and its undoing
20 + 80 + 20; then 20 + 125 to shut the VM down, 20 to ask who uses what it lends, 20 + 80 + 20 to
take back what it has, 80 to destroy it, and 20 + 80 + 20 for what is left. The rest is for devices
that attach."""

SHUTDOWN_S = 400.0
"""20 to ask, 20 + 80 + 20 to detach, 125 to stop, and 20 + 80 + 20 for what a shutdown by force
left to its end."""

SUSPEND_S = 15.0
"""Less than the steps may take (20 + 20): the machine is to sleep also if a VM hangs. A detach
takes a second, and one that takes longer goes on."""

RESUME_S = 445.0
"""2 + 20 for devices to come back, then as long as an attach."""
