"""Why attachments end, and whether the VM that has the device may keep it: the one table.

The rule is that of `qvm-device detach`: no VM loses what it uses, unless dom0's user says
`--force`, or nothing is left that could be saved. Each way in which an attachment ends is a row
here, and Teardown obeys it, so that no way can do what detach may not.

A VM that does not answer counts as using the device: its agent may hang while the disk is mounted.
Where the hypervisor carries the device (Carrier.by_hypervisor), it works without agents, so that an
absent agent does not answer either. Where the agents carry the data, as in local mode, the
attachments of an agent that ends are dead; and what a hanging agent has not confirmed is undone
when its attach fails, because no program was told of it.
"""

from __future__ import annotations

from typing import Final, Literal

from pedos_protocol.frozen import frozen


@frozen
class Way:
    """`may_refuse`: whether the target may keep what it uses. `by_force`: the hypervisor takes away
    by force what the target has released, or must release."""

    may_refuse: Literal["yes", "where the hypervisor carries it", "no"]
    by_force: bool

    def lets_refuse(self, *, by_hypervisor: bool) -> bool:
        """Whether the target may refuse where the hypervisor carries the device, or does not."""
        return self.may_refuse == "yes" or (by_hypervisor and self.may_refuse != "no")

    def outranks(self, other: Way) -> bool:
        """Which of two ways to end one attachment applies: once the target may not refuse, it never
        may again."""
        return self.may_refuse == "no" and other.may_refuse != "no"


#: dom0's user, or a VM, detaches it.
DETACHED: Final = Way(may_refuse="yes", by_force=False)
#: Its source is shut down; in local mode also the target, whose users' files stay open. (On Xen a
#: target is asked to shut down with its disks, which are free when it has ended.)
SHUT_DOWN: Final = Way(may_refuse="yes", by_force=False)
#: The machine is going to sleep, which the attachment would not survive.
SUSPENDED: Final = Way(may_refuse="yes", by_force=False)
#: A later step of the attach, or of the start of the VM, has failed: it is undone.
UNDONE: Final = Way(may_refuse="yes", by_force=False)
#: One of the two agents has ended, was restarted, or does not come back.
AGENT_LOST: Final = Way(may_refuse="where the hypervisor carries it", by_force=True)
#: dom0's user has said `--force`.
FORCED: Final = Way(may_refuse="no", by_force=True)
#: The device was unplugged or replaced, or its source has ended: the target has nothing left to
#: write to, or nothing that it was granted.
GONE: Final = Way(may_refuse="no", by_force=True)
#: The target has ended, has not begun to run, or reports that it no longer has the device.
RELEASED: Final = Way(may_refuse="no", by_force=True)
#: An agent's report contradicts dom0's journal.
CONTRADICTED: Final = Way(may_refuse="no", by_force=True)
#: The previous service was ending it when it stopped, and the target may have released it.
FINISHED: Final = Way(may_refuse="yes", by_force=True)

#: By name, for the documentation's table and the tests.
WAYS: Final = {name: way for name, way in list(globals().items()) if isinstance(way, Way)}
