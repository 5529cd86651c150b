"""dom0's service as the widget sees it: a real `Peer` on a real Unix socket, with devices and VMs
that a test puts there and takes away.

Without further words it does what it is asked: it attaches and detaches, and allows all. A test
says otherwise with `verdicts` (of device.targets, by VM) and `answers` (by method: an async
function of the parameters, which returns a map or raises CallError). `calls` has what it was asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from pedos_host.unix import UnixListener, listen_unix
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.messages import parse_params
from pedos_vchan.peer import Peer

from tests.patience import PATIENCE

Map = dict[str, Any]
Key = tuple[str, ...]

POLICY = {
    "ok": True,
    "loaded_at": "2026-01-01T00:00:00Z",
    "rules": 3,
    "errors": [],
    "folders": ["/etc/pedos/policy.d"],
    "files": 1,
}


def vm(name: str, *, runs: bool = True, domid: int | None = None) -> Map:
    """A VM as watch.next tells of it."""
    state = "Running" if runs else "Halted"
    domid = (domid or 1 + sum(name.encode()) % 999) if runs else None
    return {"name": name, "state": state, "domid": domid, "agent": runs}


def device(name: str, device_class: str = "block", **fields: Any) -> Map:
    """A device, SOURCE:ID, as watch.next tells of it; `fields` are those that are not usual."""
    backend, _, id_ = name.partition(":")
    usual = {
        "device_class": device_class,
        "backend": backend,
        "device": id_,
        "identity": f"id-{id_}",
        "description": f"device {id_}",
        "size": None,
        "parent": None,
        "read_only": False,
        "busy": None,
        "attachments": [],
        "assignments": [],
        "present": True,
    }
    return usual | fields


FORGET = 50
"""Changes after which one who asks has heard of it."""


class FakeService:
    """`serve` listens at `path`; everything else may be called before, too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[str, Map]] = []
        self.answers: dict[str, Callable[[Map], Awaitable[Map]]] = {}
        self.verdicts: dict[str, tuple[str, str]] = {}  # by VM: verdict and reason
        self.unfit: list[str] = []
        self.audit: list[str] = []
        self.policy: Map = dict(POLICY)
        self.devices: dict[Key, Map] = {}
        self.vms: dict[str, Map] = {}
        self.clients: list[Peer] = []
        self.prompters: list[Peer] = []
        self.numbering = "run-1"
        self.is_quiet = False  # the next answer to watch.next has nothing to tell
        self._number = 0
        self._changed_at: dict[tuple[str, ...], int] = {}
        self._change = trio.Event()
        self._moved = trio.Event()

    # What there is

    def put(self, *devices: Map) -> None:
        """Adds devices, or replaces them."""
        for each in devices:
            key = (each["device_class"], each["backend"], each["device"])
            self.devices[key] = each
            self._note(key)

    def take(self, name: str, device_class: str = "block") -> None:
        """Removes the device SOURCE:ID."""
        key = self._key(device_class, name)
        del self.devices[key]
        self._note(key)

    def put_vms(self, *vms: Map) -> None:
        """Adds VMs, or replaces them."""
        for each in vms:
            self.vms[each["name"]] = each
            self._note((each["name"],))

    def take_vm(self, name: str) -> None:
        """Removes a VM."""
        del self.vms[name]
        self._note((name,))

    def attach(self, name: str, to: str, device_class: str = "block", **fields: Any) -> None:
        """Attaches, as if another program had asked for it."""
        each = self.devices[self._key(device_class, name)]
        others = [use for use in each["attachments"] if use["vm"] != to]
        self.put(each | {"attachments": [*others, {"vm": to, "options": {}} | fields]})

    def detach(self, name: str, of: str, device_class: str = "block") -> None:
        """Detaches, as if another program had asked for it."""
        each = self.devices[self._key(device_class, name)]
        left = [use for use in each["attachments"] if use["vm"] != of]
        self.put(each | {"attachments": left})

    def restarted(self) -> None:
        """Begins another count of changes, as a restarted service does; `drop` breaks the
        connections."""
        self.numbering = f"run-{int(self.numbering[4:]) + 1}"
        self._changed_at = dict.fromkeys(self._changed_at, 0)
        self._number = 0

    def forget(self) -> None:
        """Forgets what went away long ago, as the service does."""
        for subject, at in list(self._changed_at.items()):
            is_there = subject in self.devices or subject[0] in self.vms
            if not is_there and at < self._number - FORGET:
                del self._changed_at[subject]

    def drop(self) -> None:
        """Breaks all connections."""
        for client in list(self.clients):
            client.close()

    def called(self, method: str) -> list[Map]:
        """The parameters of all calls of a method."""
        return [params for name, params in self.calls if name == method]

    async def until(self, is_so: Callable[[], object]) -> None:
        """Returns when it is so, after a call or the end of a connection."""
        with trio.fail_after(PATIENCE):
            while not is_so():
                await self._moved.wait()

    async def ask(self, params: Map, method: str = "prompt.ask") -> Map:
        """Asks the prompter that registered last."""
        return await self.prompters[-1].call(method, params, timeout=60)

    # Serving

    async def serve(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listens until cancelled; then the socket is gone."""
        with contextlib.closing(await listen_unix(self.path, 0o600)) as listener:
            await self._accept(listener, task_status)

    async def _accept(self, listener: UnixListener, task_status: Any) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                nursery.start_soon(self._serve_client, await listener.accept())

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        peer = Peer(stream, program="fake 1", handlers={}, default_handler=self._dispatch)
        self.clients.append(peer)
        try:
            await peer.run()
        except (trio.BrokenResourceError, RemoteProtocolError):
            pass
        finally:
            self.clients.remove(peer)
            self.prompters = [each for each in self.prompters if each is not peer]
            self._move()

    async def _dispatch(self, peer: Peer, method: str, params: Map) -> Map:
        self.calls.append((method, params))
        self._move()
        if method in self.answers:
            return await self.answers[method](params)
        parse_params(method, params)
        if method == "prompter.register":
            self.prompters.append(peer)
            self._move()
            return {}
        known = {
            "watch.next": self._next,
            "device.targets": self._targets,
            "device.attach": self._attach,
            "device.detach": self._detach,
            "vm.list": self._vm_list,
            "service.status": self._status,
            "audit.recent": self._recent,
        }
        if method not in known:
            raise CallError("unknown_method", f"{method} is not served here")
        return await known[method](params)

    async def _next(self, params: Map) -> Map:
        is_anew = params["numbering"] != self.numbering
        since = -1 if is_anew else params["number"]
        while not (news := [s for s, at in self._changed_at.items() if at > since]) and not is_anew:
            if self.is_quiet:  # as after half a minute without news
                self.is_quiet = False
                break
            await self._change.wait()
        return {
            "numbering": self.numbering,
            "number": self._number,
            "begun": 0,
            "complete": True,
            "gap": "the service was restarted" if is_anew and params["numbering"] else None,
            "devices": [
                {"number": self._changed_at[key], "now": self.devices.get(key)}
                | dict(zip(("device_class", "backend", "device"), key, strict=True))
                for key in news
                if len(key) == 3 and params["device_class"] in (None, key[0])
                if not (is_anew and key not in self.devices)
            ],
            "vms": [
                {"number": self._changed_at[key], "vm": key[0], "now": self.vms.get(key[0])}
                for key in news
                if len(key) == 1
                if not (is_anew and key[0] not in self.vms)
            ],
        }

    async def _targets(self, params: Map) -> Map:
        each = self._device(params)
        told = []
        for name in sorted(self.vms):
            if name in ("dom0", params["backend"]):
                continue
            verdict, reason = self.verdicts.get(name, ("allow", "10-test.policy:1 allows it"))
            told.append({
                "vm": name, "state": self.vms[name]["state"], "verdict": verdict, "reason": reason,
                "rule": "10-test.policy:1", "read_only": False, "target": None,
            })  # fmt: skip
        unfit = list(self.unfit)
        return {"identity": each["identity"], "unfit": unfit, "targets": told, "left_out": 0}

    async def _attach(self, params: Map) -> Map:
        each = self._device(params)
        if params.get("identity") not in (None, each["identity"]):
            raise CallError("not_found", "another device is there now")
        self.attach(f"{params['backend']}:{params['device']}", params["vm"], each["device_class"])
        return {
            "outcome": "attached", "options": {}, "request": "r-1", "vm": params["vm"],
            "policy_ok": True, "note": None,
        }  # fmt: skip

    async def _detach(self, params: Map) -> Map:
        each = self._device(params)
        if params.get("identity") not in (None, each["identity"]):
            raise CallError("not_found", "another device is there now")
        self.detach(f"{params['backend']}:{params['device']}", params["vm"], each["device_class"])
        item = {"backend": params["backend"], "device": params["device"], "detached": True,
                "unassigned": False, "error": None}  # fmt: skip
        return {"results": [item], "request": "r-2", "policy_ok": True}

    async def _vm_list(self, _params: Map) -> Map:
        return {"vms": list(self.vms.values())}

    async def _status(self, _params: Map) -> Map:
        agents = [name for name, each in self.vms.items() if each["agent"]]
        return {"version": "0.1.0", "uptime_s": 1.0, "policy": self.policy, "agents": agents}

    async def _recent(self, params: Map) -> Map:
        lines = self.audit[-params["count"] :]
        return {"lines": lines, "more": len(self.audit) > len(lines)}

    def _device(self, params: Map) -> Map:
        key = (params["device_class"], params["backend"], params["device"])
        if key not in self.devices:
            raise CallError("not_found", f"there is no {params['backend']}:{params['device']}")
        return self.devices[key]

    def _key(self, device_class: str, name: str) -> Key:
        backend, _, id_ = name.partition(":")
        return device_class, backend, id_

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def _note(self, subject: tuple[str, ...]) -> None:
        self._number += 1
        self._changed_at[subject] = self._number
        self._change.set()
        self._change = trio.Event()
