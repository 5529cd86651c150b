"""The service as the windows of settings and policy see it: answers by method, and all questions.

It keeps assignments as dom0's service does, one to a port and one to an identity of a VM, and does
nothing else by itself. `refuse` has errors by method and VM:... of what is refused; `gone` makes it
go away before, or (`after`) behind, a request.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import trio
from pedos_cli.client import Unreachable
from pedos_protocol.errors import CallError
from pedos_protocol.messages import (
    Assigned,
    AssignedNow,
    AssignmentsListed,
    AssignResult,
    DeviceListed,
    Listed,
    UnassignItem,
    UnassignResult,
    parse_params,
    to_wire,
)

Map = dict[str, Any]
STICK = "0781:5567:4C53:u080650"


def listed(name: str, device_class: str = "usb", **fields: Any) -> Listed:
    """A device as the service lists it."""
    backend, _, device = name.partition(":")
    usual: Map = {
        "device_class": device_class,
        "backend": backend,
        "device": device,
        "identity": STICK,
        "description": "SanDisk Cruzer",
        "size": None,
        "parent": None,
        "read_only": False,
        "busy": None,
        "attachments": (),
        "assignments": (),
        "present": True,
    }
    return Listed(**{**usual, **fields})


def assigned(name: str, vm: str = "work", **fields: Any) -> Assigned:
    """An assignment as the service lists it; `*` is any port."""
    backend, device, identity = [*name.split(":", 2), ""][:3]
    usual: Map = {"mode": "auto-attach", "options": {}}
    return Assigned(
        vm=vm,
        backend=backend,
        device=None if device == "*" else device,
        identity=identity,
        **{**usual, **fields},
    )


class Service:
    """Stands where the controller does."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Map]] = []
        self.vms: Map = {"work": "Running", "sys-usb": "Running", "vault": "Halted"}
        self.devices: list[Listed] = []
        self.stored: dict[str, list[Assigned]] = {}  # by class
        self.refuse: dict[str, CallError] = {}  # by method, or "METHOD PORT"
        self.lose: dict[str, bool] = {}  # the same: whether it was done before the service went
        self.now = AssignedNow()
        self.lands: str | None = None  # the VM that policy sends all to
        self.lasting = True
        self.answers: dict[str, Map] = {}
        self.held: trio.Event | None = None  # what an assignment waits for
        self.changed: list[Callable[[], None]] = []
        self.view = SimpleNamespace(connected=True, status="")

    def on_change(self, callback: Callable[[], None]) -> Callable[[], object]:
        self.changed.append(callback)
        return lambda: callback in self.changed and self.changed.remove(callback)

    def change(self) -> None:
        """Tell that something is different."""
        for callback in self.changed:
            callback()

    def asked(self, method: str, *, dry_run: bool | None = None) -> list[Map]:
        """The parameters of the calls of a method."""
        return [
            params
            for name, params in self.calls
            if name == method and dry_run in (None, params.get("dry_run"))
        ]

    async def call(self, method: str, params: Map, *, timeout_s: float) -> Map:
        await trio.lowlevel.checkpoint()
        assert timeout_s > 0
        self.calls.append((method, dict(params)))
        if not self.view.connected:
            raise Unreachable("/run/x", "there is no such socket")
        if method != "audit.recent":
            parse_params(method, params)
        names = (method, f"{method} {params.get('device')}")
        if not params.get("dry_run"):
            if method == "device.assign" and self.held is not None:
                await self.held.wait()
            for name in names:
                if name in self.lose:
                    if self.lose[name]:
                        self._do(method, params)
                    self.view.connected = False
                    raise Unreachable("/run/x", "it closed the connection", lost=True)
        for name in names:
            if name in self.refuse and not params.get("dry_run"):
                raise self.refuse[name]
            if f"{name} dry" in self.refuse and params.get("dry_run"):
                raise self.refuse[f"{name} dry"]
        return self._do(method, params)

    def _do(self, method: str, params: Map) -> Map:
        if method in self.answers:
            return self.answers[method]
        return getattr(self, "_" + method.replace(".", "_"))(params)  # type: ignore[no-any-return]

    def _vm_list(self, _params: Map) -> Map:
        return {
            "vms": [
                {"name": name, "state": state, "domid": None, "agent": False}
                for name, state in self.vms.items()
            ]
        }

    def _device_list(self, params: Map) -> Map:
        its = [each for each in self.devices if each.device_class == params["device_class"]]
        return to_wire(DeviceListed(tuple(its)))

    def _device_info(self, params: Map) -> Map:
        (found,) = (each for each in self.devices if each.device == params["device"])
        return {"device": to_wire(found), "lasting": found.identity if self.lasting else ""}

    def _device_assignments(self, params: Map) -> Map:
        (vm,) = params["vms"]
        its = [each for each in self.stored.get(params["device_class"], ()) if each.vm == vm]
        if not its and vm not in self.vms:
            raise CallError("not_found", f"no VM named '{vm}'", {"hint": "qvm-ls"})
        return to_wire(AssignmentsListed(tuple(its)))

    def _device_assign(self, params: Map) -> Map:
        identity = "" if params["match"] == "port" else params["identity"]
        vm = self.lands or params["vm"]
        made = Assigned(
            vm=vm, backend=params["backend"], device=params["device"], identity=identity,
            mode=params["mode"], options=params["options"],
        )  # fmt: skip
        outcome = "assigned"
        if not params["dry_run"]:
            kept = self.stored.setdefault(params["device_class"], [])
            kept[:] = [each for each in kept if slot(each) != slot(made)] + [made]
        return to_wire(
            AssignResult(
                outcome, params["options"], "0123ab", vm, params["device"], identity, self.now
            )
        )

    def _device_unassign(self, params: Map) -> Map:
        kept = self.stored.get(params["device_class"], [])
        wanted = Assigned(
            vm=params["vm"], backend=params["backend"], device=params["device"],
            identity=params["identity"] or "", mode="ask", options={},
        )  # fmt: skip
        its = [each for each in kept if slot(each) == slot(wanted)]
        if not its:
            raise CallError("not_found", "it is not assigned")
        kept.remove(its[0])
        item = UnassignItem(its[0].backend, its[0].device, its[0].identity, its[0].mode, True)
        return to_wire(UnassignResult((item,), "0123ab"))


def slot(each: Assigned) -> tuple[object, ...]:
    """What tells it from the others of a class."""
    return each.vm, each.backend, each.device, each.identity if each.device is None else ""
