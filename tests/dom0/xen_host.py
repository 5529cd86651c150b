"""A Xen host of files: a xenstore that is a folder, and a program `xl` that works on it.

The program is a real one, started like xl. It notes its arguments in `calls`, does what a healthy
toolstack would do to the folder, and fails as the file `plan` says.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pedos_dom0.drivers.xen.driver import XenDriver
from pedos_host.folder_watch import FolderWatch

PROGRAM = """#!{python} -SI
import json, os, pathlib, re, shutil, sys, time
root = pathlib.Path({root!r})
store, verb, rest = root / "store", sys.argv[1], sys.argv[2:]
with open(root / "calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
try:
    plan = json.loads((root / "plan").read_text()).get(verb, {{}})
except FileNotFoundError:
    plan = {{}}
def put(path, value):
    path = store / path.lstrip("/")
    path.mkdir(parents=True, exist_ok=True)
    (path / "=").write_text(value)
def fire(*paths):
    with open(root / "news" / "events", "a") as file:
        file.write("".join(path + "\\n" for path in paths))
def domains():
    folder = store / "local" / "domain"
    return {{int(each.name): each for each in folder.iterdir() if (each / "name").exists()}}
def made(domid):
    (root / "userdata" / f"userdata-d.{{domid}}.uuid.libxl-json").touch()
def end(domid):
    shutil.rmtree(store / "local" / "domain" / str(domid))
    shutil.rmtree(store / "libxl" / str(domid), ignore_errors=True)
    fire("@releaseDomain", f"/local/domain/{{domid}}/name")
def vbd(domid, name):
    disk = ord(name[3]) - ord("a")
    number = 51712 + 16 * disk if disk < 16 else (1 << 28) + 256 * disk
    return f"/libxl/{{domid}}/device/vbd/{{number}}"
def bind(address, driver):
    link = root / "sys/bus/pci/devices" / address / "driver"
    link.unlink(missing_ok=True)
    if driver:
        link.symlink_to(root / "sys/bus/pci/drivers" / driver)
def bound(address):
    link = root / "sys/bus/pci/devices" / address / "driver"
    return link.readlink().name if link.is_symlink() else None
def give(domid, spec):
    address, *options = spec.split(",")
    number = len(given(domid))
    node = f"/local/domain/0/backend/pci/{{domid}}/0"
    put(node + f"/dev-{{number}}", address)
    put(node + f"/vdev-{{number}}", f"0000:00:{{number:02x}}.00")
    put(node + "/num_devs", str(number + 1))
    if "permissive=1" in options and not plan.get("forgets"):
        with open(root / "sys/bus/pci/drivers/pciback/permissive", "a") as file:
            file.write(address + "\\n")
def given(domid):
    node = store / f"local/domain/0/backend/pci/{{domid}}/0"
    try:
        many = int((node / "num_devs" / "=").read_text())
    except FileNotFoundError:
        return []
    return [(node / f"dev-{{each}}" / "=").read_text() for each in range(many)]
def work():
    if verb == "list":
        print("Name      ID   Mem VCPUs\\tState\\tTime(s)")
        print("Domain-0   0  1024     1     r-----      10.1")
        for domid, folder in domains().items():
            flags = folder / "flags"
            state = flags.read_text() if flags.exists() else "-b----"
            print((folder / "name" / "=").read_text(), domid, 256, 1, state, 1.0)
    elif verb == "create":
        text = pathlib.Path(next(word for word in rest if word.endswith(".cfg"))).read_text()
        name = re.search('name="(.*)"', text)[1]
        last = root / "last"
        domid = int(last.read_text()) + 1 if last.exists() else 1
        last.write_text(str(domid))
        put(f"/local/domain/{{domid}}/vm", f"/vm/uuid-{{domid}}")
        put(f"/local/domain/{{domid}}/name", name)
        made(domid)
        for word in rest:
            if word.startswith("pci +="):
                for spec in re.findall('"([^"]*)"', word)[: plan.get("gives")]:
                    give(domid, spec)
        if "-p" in rest:
            (store / "local" / "domain" / str(domid) / "flags").write_text("--p---")
        fire("@introduceDomain")
    elif verb == "info":
        print("host                   : dom0")
        print("virt_caps              : pv hvm " + plan.get("caps", "pv_directio"))
    elif verb == "pci-assignable-add":
        if (driver := bound(rest[0])) is not None:
            put(f"/libxl/pciback/{{rest[0]}}/driver_path", driver)
        bind(rest[0], None if plan.get("half") else "pciback")
    elif verb == "pci-assignable-remove":
        node = store / f"libxl/pciback/{{rest[-1]}}/driver_path" / "="
        known = "-r" in rest and node.exists() and not plan.get("half")
        bind(rest[-1], node.read_text() if known else None)
    elif verb == "pci-attach":
        give(rest[0], rest[1])
    elif verb == "pci-detach":
        left = [each for each in given(rest[-2]) if each != rest[-1]]
        shutil.rmtree(store / f"local/domain/0/backend/pci/{{rest[-2]}}/0")
        for each in left:
            give(rest[-2], each)
    elif verb == "unpause":
        (domains()[int(rest[0])] / "flags").unlink()
    elif verb in ("destroy", "shutdown"):
        end(int(rest[0]))
    elif verb == "block-attach":
        words = dict(word.split("=", 1) for word in rest[1].split(","))
        node, backend = vbd(rest[0], words["vdev"]), words.get("backend", "0")
        where = f"/local/domain/{{backend}}/backend/vbd/{{rest[0]}}/" + node.rpartition("/")[2]
        put(node + "/params", words["target"])
        put(node + "/script", words["script"])
        if "error" in plan:
            put(where + "/hotplug-error", plan["error"])
        put(where + "/hotplug-status", plan.get("status", "connected"))
        put(node + "/backend", where)
    elif verb == "block-detach":
        node = store / vbd(rest[-2], rest[-1]).lstrip("/")
        if not node.exists():
            sys.exit("Error: Device %s not connected." % rest[-1])
        shutil.rmtree(node)
        fire("/" + str(node.relative_to(store)))
done = plan.get("does", "exit" not in plan and "killed" not in plan)
forced = "--force" in rest
if done or forced:
    work()
if not forced:
    sys.stderr.write(plan.get("says", ""))
    if "killed" in plan:
        os.kill(os.getpid(), 9)
    if "hangs" in plan:
        time.sleep(60)
    sys.exit(plan.get("exit", 0))
"""


class FolderStore:
    """A connection to the xenstore that is the folder `root/store`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._events = root / "news" / "events"
        self._seen = self._events.stat().st_size
        self._fresh: set[str] = set()
        self.watched: set[str] = set()
        self._watch = FolderWatch([root / "news"])

    def _node(self, path: str) -> Path:
        return self._root / "store" / path.lstrip("/")

    def read(self, path: str) -> str | None:
        try:
            return (self._node(path) / "=").read_text()
        except FileNotFoundError:
            return None

    def list(self, path: str) -> list[str]:
        try:
            return sorted(each.name for each in self._node(path).iterdir() if each.is_dir())
        except FileNotFoundError:
            return []

    def watch(self, path: str) -> None:
        self.watched.add(path)
        self._fresh.add(path)

    def unwatch(self, path: str) -> None:
        self.watched.remove(path)

    async def changed(self) -> set[str]:
        while True:
            with self._events.open() as file:
                file.seek(self._seen)
                text = file.read()
            self._seen += len(text)
            paths = self._fresh | {line for line in text.splitlines() if line in self.watched}
            self._fresh = set()
            if paths:
                return paths
            await self._watch.changed()

    def close(self) -> None:
        self.watched.clear()
        self._watch.close()


class Host:
    """The machine, as a test sees it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("store/local/domain/0", "news", "etc", "userdata"):
            (root / name).mkdir(parents=True)
        (root / "news" / "events").touch()
        program = root / "xl"
        program.write_text(PROGRAM.format(python=sys.executable, root=str(root)))
        program.chmod(0o700)
        self.stores: list[FolderStore] = []

    def driver(self) -> XenDriver:
        return XenDriver(
            config_dirs=[self.root / "etc"],
            dom0_agent=self.root / "agent.sock",
            xl=str(self.root / "xl"),
            open_store=self.open_store,
            userdata=self.root / "userdata",
            sys_root=self.root / "sys",
            dev_root=self.root / "dev",
        )

    def open_store(self) -> FolderStore:
        self.stores.append(FolderStore(self.root))
        return self.stores[-1]

    def configure(self, *names: str) -> None:
        for name in names:
            (self.root / "etc" / f"{name}.cfg").write_text(f'name="{name}"\nmemory=256\n')

    def plan(self, **verbs: dict[str, Any]) -> None:
        """What xl is to do wrong: by verb, with `_` for `-`."""
        plan = {verb.replace("_", "-"): what for verb, what in verbs.items()}
        (self.root / "plan").write_text(json.dumps(plan))

    def calls(self, verb: str = "") -> list[list[str]]:
        """The arguments of every xl that was run, those that only list left out."""
        try:
            lines = (self.root / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if call[0] == verb or (not verb and call[0] != "list")]

    async def until_called(self, verb: str, times: int) -> None:
        """Waits for that many calls of xl in all."""
        with FolderWatch([self.root]) as watch:
            while len(self.calls(verb)) < times:
                await watch.changed()

    def put(self, path: str, value: str) -> None:
        folder = self.root / "store" / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "=").write_text(value)

    def fire(self, *paths: str) -> None:
        with (self.root / "news" / "events").open("a") as file:
            file.write("".join(path + "\n" for path in paths))

    def create(self, domid: int, name: str, *, made: bool = True) -> None:
        """An administrator runs plain `xl create`, which may not have ended yet."""
        if made:
            self.made(domid)
        self.put(f"/local/domain/{domid}/vm", f"/vm/uuid-{domid}")
        self.put(f"/local/domain/{domid}/name", name)
        self.fire("@introduceDomain")

    def made(self, domid: int) -> None:
        """The toolstack has made the domain, with all that it gives it."""
        (self.root / f"userdata/userdata-d.{domid}.uuid.libxl-json").touch()

    def destroy(self, domid: int) -> None:
        """An administrator runs plain `xl destroy`."""
        shutil.rmtree(self.root / f"store/local/domain/{domid}")
        self.fire("@releaseDomain", f"/local/domain/{domid}/name")
        self.clear(domid)

    def lend(self, node: str, backend: str, script: str) -> None:
        """The toolstack notes that /dev/sda1 is attached there."""
        self.put(f"{node}/params", "/dev/sda1")
        self.put(f"{node}/script", script)
        self.put(f"{node}/backend", backend)

    def clear(self, domid: int) -> None:
        """The toolstack has taken down the devices of a domain that has ended."""
        notes = self.root / f"store/libxl/{domid}"
        nodes = list(notes.glob("device/vbd/*"))
        shutil.rmtree(notes, ignore_errors=True)
        self.fire(*(f"/{node.relative_to(self.root / 'store')}" for node in nodes))

    def flag(self, domid: int, flags: str) -> None:
        """What `xl list` shows as the domain's state."""
        (self.root / f"store/local/domain/{domid}/flags").write_text(flags)
