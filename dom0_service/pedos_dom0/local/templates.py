"""What `pedos-local init` writes. The comments are there to be read by a first-time user."""

CONFIG = """\
# The machine of this folder: which VMs there are. pedos-local reads it at every start.
#
# A program that is killed or crashes is started again, but not for ever:
# [machine]
# restarts = 5                # within ten seconds; it is given up when it dies once more

# dom0 is always there. It decides who gets which device, and its own folder vms/dom0/ is one
# where devices can be plugged in as well.
[dom0]
# verbose = true              # more in log/dom0.log and log/dom0-agent.log

# Each VM is a table of its own: [vm.NAME], a letter first, then letters, digits, - and _.
# VMs start in this order. A VM has
#   vms/NAME/devices/block/   a file put here is a disk plugged into this VM
#   vms/NAME/dev/             a disk that was attached to this VM appears here, as xvdi, xvdj, ...
#   log/NAME.log              what its agent says

# The VM that has the USB controllers: sticks and disks are plugged in here.
[vm.sys-usb]
autostart = true              # the default: started together with the machine

# Where the user works; policy.d/50-local.policy lets it fetch disks of sys-usb by itself.
[vm.work]

# For secrets: the policy lets nobody attach anything to it.
[vm.vault]
# autostart = false           # then: qvm-start vault
"""

FACTS = """\
# What the rules of policy.d/ can speak of, beside the VMs' names. A change takes effect when the
# file is saved; one with a mistake does not (log/dom0.log and `qvm-policy status` say which line).
# Take the # away to try:

#[vm.work]
#tags = ["office"]              # for rules with @tag:office
#type = "AppVM"                 # for @type:AppVM; or TemplateVM, StandaloneVM, DispVM, RemoteVM
#internal = false               # true: never offered as a target when dom0's user is asked
#default-dispvm = ""            # the template of the VM's disposables, for @dispvm
#template-for-dispvms = false   # true: disposables can be made of it, for @dispvm:work
#uuid = ""                      # for uuid:...
"""

POLICY = """\
# Who may list, attach and detach which device. The first rule that matches decides; a request
# that no rule matches is denied. A change takes effect when the file is saved; one with a mistake
# does not (the old rules stay, and log/dom0.log says which line is wrong).
#
# SERVICE              ARGUMENT     SOURCE     TARGET   ACTION
# device.VERB.CLASS    +VM:DEVICE   who asks   who gets the device
#
# VERB is list, attach, detach or assign (attach --persistent); CLASS is block, usb, pci or mic.
# @adminvm is dom0, @anyvm is every VM but dom0, * is anything. A # starts a comment only at the
# start of a line.

# Nothing may be attached to vault, whoever asks. First, because the first match decides.
device.attach.*        *            *          vault    deny
device.assign.*        *            *          vault    deny

# More to try (take the # away). They stand here because the first match decides.
# Disks of sys-usb whose file name starts with "photos" are read-only for work:
#device.attach.block   +sys-usb:photos*    *      work   allow read-only=yes
# Before work gets one that starts with "private", dom0's user is asked; run qvm-prompt in dom0:
#device.attach.block   +sys-usb:private*   work   work   ask

# dom0 may do everything else with all devices and VMs.
device.list.*          *            @adminvm   *        allow
device.attach.*        *            @adminvm   @anyvm   allow
device.detach.*        *            @adminvm   @anyvm   allow
device.assign.*        *            @adminvm   @anyvm   allow

# A VM may list: it is told only of its own devices and of those that it was given.
device.list.*          *            @anyvm     @anyvm   allow

# work may fetch the disks of sys-usb for itself and give them back.
device.attach.block    +sys-usb:*   work       work     allow
device.detach.block    +sys-usb:*   work       work     allow
"""
