"""What `pedos-local init` writes. Its comments are for a first-time user."""

from __future__ import annotations

from pedos_dom0.local.sound_server import PIPEWIRE

CONFIG = """\
# The VMs of this folder. pedos-local reads this file at every start.
#
# pedos-local restarts a program that is killed or crashes, but not for ever:
# [machine]
# restarts = 5                # within ten seconds; at the next death it gives up

# dom0 always exists. It decides which VM gets which device. Devices can be plugged into dom0, too,
# in its folder vms/dom0/.
[dom0]
# verbose = true              # more in log/dom0.log and log/dom0-agent.log
# sound = "session"           # lends the microphone of your desktop, and hears others' there

# Each VM is a table [vm.NAME]; NAME is a letter, then letters, digits, - and _.
# VMs start in this order. A VM has
#   vms/NAME/devices/block/   a file put here is a disk plugged into this VM
#   vms/NAME/dev/             a disk that is attached to this VM appears here, as xvdi, xvdj, ...
#   vms/NAME/services.d/      a program put here is a service, which other VMs can call
#   log/NAME.log              its agent's log

# The VM that has the USB controllers: sticks and disks are plugged in here.
[vm.sys-usb]
autostart = true              # the default: started together with the machine
# sound = "pipewire"          # a sound server of its own (or "pulseaudio"), to lend and hear with
# microphone = true           # that server's: it hears what is played in this VM

# The user's work; policy.d/50-local.policy lets this VM fetch disks of sys-usb by itself.
[vm.work]
# sound = "pipewire"

# For secrets: the policy denies every attach to this VM.
[vm.vault]
# autostart = false           # then: qvm-start vault
"""

FACTS = """\
# Facts about VMs that the rules of policy.d/ can use, beside the VMs' names. A saved change takes
# effect at once, unless it has a mistake (log/dom0.log and `qvm-policy status` name the line).
# Remove the # to try:

#[vm.work]
#tags = ["office"]              # for rules with @tag:office
#type = "AppVM"                 # for @type:AppVM; or TemplateVM, StandaloneVM, DispVM, RemoteVM
#internal = false               # true: never offered as a target when dom0's user is asked
#default-dispvm = ""            # the template of the VM's disposables, for @dispvm
#template-for-dispvms = false   # true: disposables can be made of it, for @dispvm:work
#uuid = ""                      # for uuid:...
"""

POLICY = """\
# Who may list, attach and detach which device. The first rule that matches decides; a request that
# no rule matches is denied. A saved change takes effect at once, unless it has a mistake (then the
# old rules stay, and log/dom0.log names the line).
#
# SERVICE              ARGUMENT     SOURCE     TARGET   ACTION
# device.VERB.CLASS    +VM:DEVICE   who asks   who gets the device
#
# VERB is list, attach, detach or assign (attach --persistent); CLASS is block, usb, pci or mic.
# @adminvm is dom0, @anyvm is every VM but dom0, * is anything. A # starts a comment only at the
# start of a line.

# No request may attach a device to vault. This rule stands first: the first match decides.
device.attach.*        *            *          vault    deny
device.assign.*        *            *          vault    deny

# More to try (remove the #). These stand here because the first match decides.
# Disks of sys-usb whose file name starts with "photos" are read-only for work:
#device.attach.block   +sys-usb:photos*    *      work   allow read-only=yes
# Before work gets one that starts with "private", dom0's user is asked; run qvm-prompt in dom0:
#device.attach.block   +sys-usb:private*   work   work   ask

# dom0's user is asked before a VM gets a USB device with which one types or points (u03), or that
# can pass for one: a Bluetooth adapter (ue0), and what only its maker knows (uff).
device.attach.usb      +*:*:*u03*   @adminvm   @anyvm   ask
device.assign.usb      +*:*:*u03*   @adminvm   @anyvm   ask
device.attach.usb      +*:*:*ue0*   @adminvm   @anyvm   ask
device.assign.usb      +*:*:*ue0*   @adminvm   @anyvm   ask
device.attach.usb      +*:*:*uff*   @adminvm   @anyvm   ask
device.assign.usb      +*:*:*uff*   @adminvm   @anyvm   ask

# dom0 may do everything else with all devices and VMs.
device.list.*          *            @adminvm   *        allow
device.attach.*        *            @adminvm   @anyvm   allow
device.detach.*        *            @adminvm   @anyvm   allow
device.assign.*        *            @adminvm   @anyvm   allow

# A VM may list: it sees only its own devices and those that it has borrowed.
device.list.*          *            @anyvm     @anyvm   allow

# work may fetch the disks of sys-usb for itself and give them back.
device.attach.block    +sys-usb:*   work       work     allow
device.detach.block    +sys-usb:*   work       work     allow

# dom0 may call every service of every VM (qvm-run), and VMs none of each other's. To let work call
# a program vms/vault/services.d/test.Echo with `qvm-call vault test.Echo`, remove the #:
#test.Echo             *            work       vault    allow
*                      *            @adminvm   @anyvm   allow
"""


def with_sound(kind: str, *, session: bool) -> str:
    """CONFIG in which sys-usb and work have servers of that kind, and sys-usb a microphone; with
    `session`, dom0 has that of the user's desktop."""
    lines = []
    for line in CONFIG.splitlines(keepends=True):
        ours = line.startswith(("# sound = ", "# microphone = "))
        if ours and (session or '"session"' not in line):
            line = line.removeprefix("# ")  # noqa: PLW2901
            if kind != PIPEWIRE:
                line = line.replace(f'"{PIPEWIRE}"', f'"{kind}"', 1)  # noqa: PLW2901
        lines.append(line)
    return "".join(lines)
