"""The request of each method, in words for people: a method's name belongs to the wire.

A module of its own, because a command needs it only after an error.
"""

from __future__ import annotations

#: Method -> what follows "to" in a sentence about the request.
DOING = {
    "agent.report": "take this VM's report",
    "audit.recent": "tell the last lines of the audit log",
    "call.end": "end a call",
    "call.list": "list the calls of services",
    "call.running": "tell which calls run",
    "channel.close": "close a channel of calls",
    "channel.listen": "listen for a channel of calls",
    "device.assign": "assign a device",
    "device.assignments": "list assignments",
    "device.attach": "attach a device",
    "device.classes": "tell which classes of devices there are",
    "device.detach": "detach a device",
    "device.explain": "explain the policy for a device",
    "device.info": "tell all about a device",
    "device.list": "list devices",
    "device.mute": "mute a VM, or unmute it",
    "device.targets": "tell which VMs a device could be attached to",
    "device.unassign": "take an assignment away",
    "devices.resume": "attach devices again after the machine's sleep",
    "devices.suspend": "detach devices for the machine's sleep",
    "domain.list": "list the VMs",
    "domain.shutdown": "shut a VM down",
    "domain.start": "start a VM",
    "export.mute": "mute a lent device, or unmute it",
    "export.start": "lend a device",
    "export.stop": "end the lending of a device",
    "import.start": "take a lent device",
    "import.stop": "give a lent device back",
    "import.check": "tell whether a lent device is used",
    "report.prefer": "report some devices before others",
    "policy.explain": "explain the policy",
    "policy.mine": "tell what this VM may do",
    "policy.system": "tell what the policy knows of VMs",
    "prompt.ask": "ask dom0's user",
    "prompt.call": "ask dom0's user about a call",
    "prompter.register": "put questions to this program",
    "service.call": "call a service",
    "service.kill": "end a call",
    "service.start": "start a service",
    "service.status": "tell how the service is",
    "vm.list": "list the VMs",
    "vm.shutdown": "shut a VM down",
    "vm.start": "start a VM",
    "vm.used": "tell what VMs use",
    "watch.next": "tell of changes",
}


def request_to(method: str) -> str:
    """`the request to attach a device`; for an unknown method, `the request`."""
    doing = DOING.get(method)
    return f"the request to {doing}" if doing else "the request"


def unanswered(method: str, timeout: float) -> str:
    """Half a sentence: there was no answer within `timeout` seconds."""
    return f"{request_to(method)} was not answered within {timeout:g} s"
