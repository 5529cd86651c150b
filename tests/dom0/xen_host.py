"""A Xen host of files: a xenstore that is a folder, and a program `xl` that works on it.

The program is a real one, started like xl. It notes its arguments in `calls`, does what a healthy
toolstack would do to the folder, and fails as the file `plan` says.
"""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path
from typing import Any

from pedos_dom0.drivers.xen.driver import XenDriver
from pedos_host.folder_watch import FolderWatch

# Without json, pathlib, re and shutil it starts in a third of the time, and tests run it hundreds
# of times: `calls` and `plan` are literals of Python.
PROGRAM = """#!{python} -SI
import os, sys
root = {root!r}
store, verb, rest = root + "/store", sys.argv[1], sys.argv[2:]
devices, drivers = root + "/sys/bus/pci/devices/", root + "/sys/bus/pci/drivers/"
def read(path):
    with open(path) as file:
        return file.read()
def add(path, text):
    with open(path, "a") as file:
        file.write(text)
def remove(folder):
    for each in os.listdir(folder):
        path = folder + "/" + each
        if os.path.isdir(path):
            remove(path)
        else:
            os.unlink(path)
    os.rmdir(folder)
add(root + "/calls", repr(sys.argv[1:]) + "\\n")
try:
    plan = eval(read(root + "/plan")).get(verb, {{}})
except FileNotFoundError:
    plan = {{}}
def put(path, value):
    os.makedirs(store + path, exist_ok=True)
    with open(store + path + "/=", "w") as file:
        file.write(value)
def fire(*paths):
    add(root + "/news/events", "".join(path + "\\n" for path in paths))
def domains():
    folder = store + "/local/domain/"
    return {{int(each): folder + each for each in os.listdir(folder)
             if os.path.exists(folder + each + "/name")}}
def made(domid):
    add(root + f"/userdata/userdata-d.{{domid}}.uuid.libxl-json", "")
def end(domid):
    remove(store + f"/local/domain/{{domid}}")
    if os.path.exists(store + f"/libxl/{{domid}}"):
        remove(store + f"/libxl/{{domid}}")
    fire("@releaseDomain", f"/local/domain/{{domid}}/name")
def vbd(domid, name):
    disk = ord(name[3]) - ord("a")
    number = 51712 + 16 * disk if disk < 16 else (1 << 28) + 256 * disk
    return f"/libxl/{{domid}}/device/vbd/{{number}}"
def bind(address, driver):
    link = devices + address + "/driver"
    if os.path.lexists(link):
        os.unlink(link)
    if driver:
        os.symlink(drivers + driver, link)
def bound(address):
    link = devices + address + "/driver"
    return os.path.basename(os.readlink(link)) if os.path.islink(link) else None
def give(domid, spec):
    address, *options = spec.split(",")
    number = len(given(domid))
    node = f"/local/domain/0/backend/pci/{{domid}}/0"
    put(node + f"/dev-{{number}}", address)
    put(node + f"/vdev-{{number}}", f"0000:00:{{number:02x}}.00")
    put(node + "/num_devs", str(number + 1))
    if "permissive=1" in options and not plan.get("forgets"):
        add(drivers + "pciback/permissive", address + "\\n")
def given(domid):
    node = store + f"/local/domain/0/backend/pci/{{domid}}/0"
    try:
        many = int(read(node + "/num_devs/="))
    except FileNotFoundError:
        return []
    return [read(node + f"/dev-{{each}}/=") for each in range(many)]
def quoted(text):
    return text.split('"')[1::2]
def work():
    if verb == "list":
        print("Name      ID   Mem VCPUs\\tState\\tTime(s)")
        print("Domain-0   0  1024     1     r-----      10.1")
        for domid, folder in domains().items():
            flags = folder + "/flags"
            state = read(flags) if os.path.exists(flags) else "-b----"
            print(read(folder + "/name/="), domid, 256, 1, state, 1.0)
    elif verb == "create":
        text = read(next(word for word in rest if word.endswith(".cfg")))
        name = text.partition('name="')[2].partition('"')[0]
        last = root + "/last"
        domid = int(read(last)) + 1 if os.path.exists(last) else 1
        with open(last, "w") as file:
            file.write(str(domid))
        put(f"/local/domain/{{domid}}/vm", f"/vm/uuid-{{domid}}")
        put(f"/local/domain/{{domid}}/name", name)
        made(domid)
        for word in rest:
            if word.startswith("pci +="):
                for spec in quoted(word)[: plan.get("gives")]:
                    give(domid, spec)
        if "-p" in rest:
            add(store + f"/local/domain/{{domid}}/flags", "--p---")
        fire("@introduceDomain")
    elif verb == "info":
        print("host                   : dom0")
        print("virt_caps              : pv hvm " + plan.get("caps", "pv_directio"))
    elif verb == "pci-assignable-add":
        if (driver := bound(rest[0])) is not None:
            put(f"/libxl/pciback/{{rest[0]}}/driver_path", driver)
        bind(rest[0], None if plan.get("half") else "pciback")
    elif verb == "pci-assignable-remove":
        node = store + f"/libxl/pciback/{{rest[-1]}}/driver_path/="
        known = "-r" in rest and os.path.exists(node) and not plan.get("half")
        bind(rest[-1], read(node) if known else None)
    elif verb == "pci-attach":
        give(rest[0], rest[1])
    elif verb == "pci-detach":
        left = [each for each in given(rest[-2]) if each != rest[-1]]
        remove(store + f"/local/domain/0/backend/pci/{{rest[-2]}}/0")
        for each in left:
            give(rest[-2], each)
    elif verb == "unpause":
        os.unlink(domains()[int(rest[0])] + "/flags")
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
        node = vbd(rest[-2], rest[-1])
        if not os.path.exists(store + node):
            sys.exit("Error: Device %s not connected." % rest[-1])
        remove(store + node)
        fire(node)
done = plan.get("does", "exit" not in plan and "killed" not in plan)
forced = "--force" in rest
if done or forced:
    work()
if not forced:
    sys.stderr.write(plan.get("says", ""))
    if "killed" in plan:
        os.kill(os.getpid(), 9)
    if "hangs" in plan:
        import time
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
        (self.root / "plan").write_text(repr(plan))

    def calls(self, verb: str = "") -> list[list[str]]:
        """The arguments of every xl that was run, those that only list left out."""
        try:
            lines = (self.root / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        calls = [ast.literal_eval(line) for line in lines]
        return [call for call in calls if call[0] == verb or (not verb and call[0] != "list")]

    async def until_called(self, verb: str, times: int) -> None:
        """Waits for that many calls of xl in all."""
        with FolderWatch([self.root]) as watch:
            while len(self.calls(verb)) < times:
                await watch.changed()

    async def until_introduced(self) -> None:
        """Waits until xl has made a domain, whether xl has ended or not."""
        with FolderWatch([self.root / "news"]) as watch:
            while "@introduceDomain" not in (self.root / "news/events").read_text():
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
