"""How long a command waits for the service, in seconds.

The service bounds every step itself, so a command only has to wait longer than all the steps of the
worst case together; otherwise it would say "timeout" of what is still going on. The steps are, with
their seconds (the constants stand in pedos_dom0; a test adds them up):

    an agent that is just coming back (AGENT_GRACE)           5
    a journal row of a service that was restarted (SETTLE)   30
    export.start, import.start                               10 + 15
    import.stop, export.stop (STOP), each to a VM that hangs 20 + 20
    the hypervisor starts, or stops, a VM                    10, 20
    a VM boots, up to its agent's report (BOOT)              30
    dom0's user thinks, where the policy says ask (ASK)      60

What can be done at once is done at once, so a number of devices costs no more than one does; only
the devices of a VM that starts are attached one after the other. A VM that hangs in one of those is
disconnected after it, and takes no further time.
"""

from __future__ import annotations

ATTACH_S = 280.0
"""5 + 30, and as much for another VM that the policy sends it to; 60 for the attachment and 60 for
the assignment; then 10 + 15, and 20 + 20 to undo that."""

DETACH_S = 150.0
"""30, then 60, then 20 + 20."""

START_S = 300.0
"""5 + 30, then 60, then 10 + 30; a device that fails 10 + 15 and its undoing 20 + 20, that of the
others 20 + 20, and 20 + 20 to stop the VM again, by force at last. The rest is for devices that
attach."""

SHUTDOWN_S = 120.0
"""20 + 20 to detach, 20 to stop, and 20 + 20 for what a shutdown by force left to its end."""
