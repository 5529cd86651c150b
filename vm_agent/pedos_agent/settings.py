"""The agent's command line as one immutable value."""

from __future__ import annotations

from pathlib import Path

from pedos_protocol import VERSION
from pedos_protocol.frozen import frozen
from pedos_vchan.transport import SharedMemory, Transport, Xen

PROGRAM = f"pedos-agent {VERSION}"


@frozen
class Settings:
    """Where this VM's agent finds and puts things; all paths are absolute."""

    vm: str
    domid: int
    vchan: Path  # rendezvous sockets of all channels
    socket: Path  # the VM's own command line connects here
    devices: Path  # holds block/, usb/, pci/, mic/: a file there is a device of this VM
    dev: Path  # imported devices appear here
    control_socket: Path | None = None  # dom0's own agent: dom0 has no vchan to itself
    # A domain of Xen: channels are libxenvchan's, the devices those of its kernel, and the
    # toolstack carries the blocks. Then `vchan` and `devices` are not used, and nothing is made or
    # removed in `dev`, which is the real one.
    xen: bool = False
    # The user's pedos-sound connects here; None: microphones are neither lent nor borrowed.
    sound: Path | None = None
    # The user who has the microphones, by name or number, whoever is at the screen.
    sound_user: str | None = None
    # Runs the services of this VM, in local mode; None: the keepers of its users do.
    keeper: Path | None = None
    # Programs that call services of other VMs connect here; None: none can.
    calls: Path | None = None
    # Whether a USB device that was lent goes back to the drivers of this VM, or to none.
    give_back: bool = True

    def transport(self) -> Transport:
        """What makes the channels of this domain to others."""
        return Xen(self.domid) if self.xen else SharedMemory(self.vchan, self.domid)


def xen_settings(
    vm: str,
    domid: int,
    socket: Path,
    control_socket: Path | None,
    *,
    give_back: bool = True,
    sound: Path | None = None,
    sound_user: str | None = None,
    calls: Path | None = None,
) -> Settings:
    """Settings of an agent in a domain of Xen."""
    nowhere = Path("/nonexistent")
    return Settings(
        vm=vm,
        domid=domid,
        vchan=nowhere,
        socket=socket,
        devices=nowhere,
        dev=Path("/dev"),
        control_socket=control_socket,
        xen=True,
        give_back=give_back,
        sound=sound,
        sound_user=sound_user,
        calls=calls,
    )
