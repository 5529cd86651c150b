"""Speaks with QEMU: plugs and pulls the devices of the emulated machine while it runs.

QMP is a line of JSON each way, and events between them (QEMU's docs/interop/qmp-spec).
"""

from __future__ import annotations

import collections
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSWER_LIMIT = 30.0  # seconds; QEMU's main loop answers, which waits for no guest
EVENT_LIMIT = 30.0
EVENTS_KEPT = 100  # a few come with each device; nobody waits for those of long ago

Event = dict[str, Any]


class QmpError(Exception):
    """QEMU refused, did not answer in time, or is gone."""


class Qmp:
    """A connection to QEMU's QMP socket, for several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._held = b""
        self._events: collections.deque[Event] = collections.deque(maxlen=EVENTS_KEPT)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
            self._next(time.monotonic() + ANSWER_LIMIT)  # its greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Leaves QEMU as it is."""
        self._socket.close()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What QEMU returns for a command. QmpError."""
        asked = json.dumps({"execute": command, "arguments": arguments or {}})
        end = time.monotonic() + ANSWER_LIMIT
        with self._lock:
            try:
                self._socket.settimeout(ANSWER_LIMIT)
                self._socket.sendall(asked.encode() + b"\n")
                while "event" in (heard := self._next(end)):
                    self._events.append(heard)
            except TimeoutError:
                raise QmpError(f"{asked}: no answer within {ANSWER_LIMIT:g} s") from None
            except OSError as error:
                raise QmpError(f"QEMU has ended ({error})") from error
        if "error" in heard:
            raise QmpError(f"{asked}: {heard['error'].get('desc')}")
        return heard["return"]

    def wait_for(
        self, event: str, is_it: Callable[[Event], bool], limit: float = EVENT_LIMIT
    ) -> Event:
        """The first event of this name that `is_it` is true of, and that nobody was given yet: its
        data. QmpError when there is none in time."""
        end = time.monotonic() + limit
        with self._lock:
            while True:
                for heard in self._events:
                    data = heard.get("data", {})
                    if heard.get("event") == event and is_it(data):
                        self._events.remove(heard)
                        return dict(data)
                try:
                    self._events.append(self._next(end))
                except TimeoutError:
                    raise QmpError(f"no {event} within {limit:g} s") from None

    # ---- devices ----

    def add(self, driver: str, name: str, **properties: object) -> None:
        """Plugs in a device."""
        self.execute("device_add", {"driver": driver, "id": name, **properties})

    def remove(self, name: str) -> None:
        """Pulls a device; returns when it is gone. A USB device is gone at once; the guest has a
        say about a PCI device."""
        self.execute("device_del", {"id": name})
        self.wait_for("DEVICE_DELETED", lambda data: data.get("device") == name)

    def add_file(self, name: str, file: Path) -> None:
        """Makes a file what disks can be made of, by that name, one after the other."""
        raw = {"driver": "file", "filename": str(file)}
        # Nothing here has to outlive the machine.
        cache = {"no-flush": True}
        self.execute(
            "blockdev-add", {"driver": "raw", "node-name": name, "file": raw, "cache": cache}
        )

    def remove_file(self, name: str) -> None:
        """Once no disk has it any more."""
        self.execute("blockdev-del", {"node-name": name})

    def type_keys(self, *keys: str) -> None:
        """Presses these keys together, and lets go of them: QKeyCode's names."""
        pressed = [{"type": "qcode", "data": key} for key in keys]
        self.execute("send-key", {"keys": pressed})

    # ---- lines ----

    def _next(self, end: float) -> dict[str, Any]:
        """The next line. TimeoutError and other OSError, QmpError."""
        while b"\n" not in self._held:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(65536)
            if not part:
                raise QmpError("QEMU has ended")
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        heard = json.loads(line)
        assert isinstance(heard, dict)
        return heard
