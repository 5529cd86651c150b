"""The basis of the demo's steps: a machine in local mode, displayed commands, expectations.

Standard library only. It imports nothing of the project: the demo uses the programs that a user
has, and sees what a user sees.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
# e2fsprogs is in sbin, which is not on every user's path.
PATH = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

# Seconds. Each step takes well under one; a busy machine may need more.
UP_PATIENCE = 60.0
COMMAND_PATIENCE = 60.0
CHANGE_PATIENCE = 10.0
# Seconds between two looks at a folder or a list in which a change is expected.
LOOK_AGAIN = 0.05
# Bytes to read at once for a checksum.
CHUNK = 1024 * 1024


class Difference(Exception):  # noqa: N818 - this is how the demo says what it found
    """A result is not as expected."""

    def __init__(self, what: str, expected: object, got: object) -> None:
        super().__init__(f"{what}\n  expected: {expected}\n  got:      {got}")


@dataclass(frozen=True)
class Outcome:
    """The result of a command; `text` is stdout and stderr in their order."""

    status: int
    text: str


def explain(text: str) -> None:
    """A line of explanation before a step."""
    print(f"\n# {text}", flush=True)


def show(text: str) -> None:
    """Prints a command's output, indented."""
    for line in text.rstrip("\n").splitlines():
        print(f"    {line}", flush=True)


def expect(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise Difference(what, expected, got)


def expect_in(what: str, part: str, text: str) -> None:
    if part not in text:
        raise Difference(what, f"a text with {part!r} in it", text.strip() or "(nothing)")


def expect_not_in(what: str, part: str, text: str) -> None:
    if part in text:
        raise Difference(what, f"a text without {part!r}", text.strip())


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Stage:
    """A folder of local mode (`lab`) with a running machine, and the paths of the demo's one
    disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = folder / "lab"
        self._up: subprocess.Popen[str] | None = None

    @property
    def plugged(self) -> Path:
        """The disk while it is plugged into sys-usb."""
        return self.lab / "vms" / "sys-usb" / "devices" / "block" / "stick.img"

    @property
    def unplugged(self) -> Path:
        """The disk while it is unplugged: the same file, elsewhere."""
        return self.folder / "stick.img"

    def block_file(self, vm: str) -> Path:
        """The path of the attached disk in a VM."""
        return self.lab / "vms" / vm / "dev" / "xvdi"

    def short(self, argument: str) -> str:
        """An argument for display: without the temporary folder before it."""
        return argument.replace(str(self.folder) + "/", "")

    # Commands

    def command(self, *argv: str | Path, status: int = 0) -> str:
        """Shows and runs a command, as in dom0, and returns its output. Difference if its status
        differs."""
        words = [str(word) for word in argv]
        print("$ " + shlex.join(self.short(word) for word in words), flush=True)
        outcome = self.quietly(*words)
        # debugfs prints its version first, which says nothing about the disk.
        shown = re.sub(r"^debugfs \d.*\n", "", outcome.text)
        show(self.short(shown))
        if outcome.status:
            print(f"    (exit status {outcome.status})", flush=True)
        if outcome.status != status:
            raise Difference(
                f"exit status of: {shlex.join(words)}", status, f"{outcome.status}: {outcome.text}"
            )
        return outcome.text

    def quietly(self, *argv: str) -> Outcome:
        """Runs a command without showing it."""
        done = subprocess.run(
            argv,
            env={
                **os.environ,
                "PATH": PATH,
                "PEDOS_SOCKET": str(self.lab / "run" / "dom0.sock"),
            },
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_PATIENCE,
            check=False,
        )
        return Outcome(done.returncode, done.stdout)

    def block(self, *words: str, status: int = 0) -> str:
        """`qvm-device block WORDS...`, displayed."""
        return self.command("qvm-device", "block", *words, status=status)

    def write(self, path: Path, text: str) -> None:
        """Writes a file, whole at once, displayed."""
        print(f"$ cat > {self.short(str(path))} <<END", flush=True)
        show(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_text(text)
        partial.rename(path)

    def until(self, what: str, look: Callable[[], bool]) -> None:
        """Waits for the consequence of a plug or an unplug; Difference if it does not come."""
        deadline = time.monotonic() + CHANGE_PATIENCE
        while not look():
            if time.monotonic() > deadline:
                raise Difference(what, f"within {CHANGE_PATIENCE:.0f} s", "it did not happen")
            time.sleep(LOOK_AGAIN)

    def is_listed(self) -> bool:
        """Does dom0 know the disk as plugged in?"""
        listing = self.quietly("qvm-device", "block", "list", "sys-usb").text
        return "sys-usb:stick.img" in listing and "(not present)" not in listing

    # The disk

    def plug(self) -> None:
        self._move(self.unplugged, self.plugged)
        self.until("sys-usb:stick.img is listed after it was plugged in", self.is_listed)

    def unplug(self) -> None:
        self._move(self.plugged, self.unplugged)
        self.until(
            "sys-usb:stick.img is no longer there after it was unplugged",
            lambda: not self.is_listed(),
        )

    def _move(self, source: Path, target: Path) -> None:
        print(f"$ mv {self.short(str(source))} {self.short(str(target))}", flush=True)
        source.rename(target)

    # The machine

    def up(self) -> None:
        """Starts the machine with `pedos-local up`, and returns when the machine says that it is
        up."""
        argv = ["pedos-local", "up", "lab"]
        print(f"$ {shlex.join(argv)} &", flush=True)
        self._up = subprocess.Popen(
            [str(BIN / argv[0]), *argv[1:]],
            cwd=self.folder,
            env={**os.environ, "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C ends the demo, which then ends the machine
        )
        assert self._up.stdout is not None
        os.set_blocking(self._up.stdout.fileno(), False)
        said = ""
        deadline = time.monotonic() + UP_PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._up.stdout, selectors.EVENT_READ)
            while "everything is up" not in said:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise Difference("pedos-local up", f"up within {UP_PATIENCE:.0f} s", said)
                chunk = os.read(self._up.stdout.fileno(), 65536).decode("utf-8", "replace")
                if not chunk:
                    raise Difference("pedos-local up", "a machine that stays up", said)
                said += chunk
        if "not everything is up" in said:
            raise Difference("pedos-local up", "everything up", said)
        show(self.short("\n".join(line for line in said.splitlines() if " is domain " in line)))

    def down(self) -> None:
        """Ends the machine as Ctrl-C does, and checks that nothing of it is left."""
        up, self._up = self._up, None
        assert up is not None
        print("$ kill -INT %1", flush=True)
        up.send_signal(signal.SIGINT)
        said, _ = up.communicate(timeout=UP_PATIENCE)
        show("\n".join(said.splitlines()[-3:]))
        expect("exit status of pedos-local up", 0, up.returncode)
        expect("mounts left", [], self._mounts())
        expect("processes left", [], self._processes())
        expect("sockets left", [], [str(path) for path in (self.lab / "run").rglob("*.sock")])

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        return [line for line in lines if str(self.folder) in line]

    def _processes(self) -> list[str]:
        """Command lines of processes that name the demo's folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue  # it has just ended, or belongs to another user
                if str(self.folder).encode() in line:
                    found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def clean_up(self) -> None:
        """Ends the machine if it still runs, and removes the folder. Called however the demo
        ends."""
        if self._up is not None:
            self._up.send_signal(signal.SIGTERM)
            try:
                self._up.communicate(timeout=UP_PATIENCE)
            except subprocess.TimeoutExpired:
                self._up.kill()
                self._up.communicate()
            self._up = None
        for line in self._mounts():
            point = line.split(" ")[4]
            subprocess.run(["fusermount3", "-u", "-z", "-q", "--", point], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self) -> str:
        """The last lines of every log, for a demo that failed."""
        parts = []
        for log in sorted((self.lab / "log").glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-8:]
            parts += [f"--- {log.name}", *lines]
        return "\n".join(parts)
