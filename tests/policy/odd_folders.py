"""Random policy folders with many oddities: names, links, devices, and included files."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from pedos_dom0.policy.reading import Loaded, read_policy

from . import random_policies

NAMES = (
    *("a.policy", "10-x.policy", "Foo.policy", ".h.policy", "x", "a.policy~", "-.policy"),
    *("inc/y", "inc/z.policy", "more/q.policy", "é.policy", "b\udcff.policy", "sp ace.policy"),
    *(".policy", "..policy", "\n.policy"),
)
OLD_NAMES = ("s.A", "s.A+x", "s,B", "s.B+wörk", "s.C+\udcff", "+", "s.D+", "s.E+a b", ".hidden")
PATHS = (
    *("x", "inc", "inc/y", "inc/z.policy", "/", ".", "..", "../x", "../etc/x", "more", "more/"),
    *("./x", "/dev/null", "/dev/zero", "/proc/self/mem", "a.policy", "loop", "up", "missing"),
    *("x" * 300, "/".join("a" * 200), '"x"', "~/x", "*", "inc/../x", "//x", "a.policy/b"),
)
DIRECTIVES = ("!include", "!include-dir", "!include-service s.A *", "!include-service s.A +x")
NO_DIRECTIVES = ("!", "!include", "!include a b", "! include x", "!INCLUDE x", "!include-service x")
OLD_LINES = (
    *("", "# c\n", "$anyvm $anyvm allow,target=$dispvm\n", "$include:/etc/x\n", "work work\n"),
    *("@include:inc/y\n",),
)
LINKS = (("loop", "loop"), ("up", ".."), ("x", "nowhere"))


def content(rnd: random.Random) -> bytes:
    lines = []
    for _ in range(rnd.randint(0, 6)):
        kind = rnd.random()
        if kind < 0.5:
            lines.append(random_policies.line(rnd))
        elif kind < 0.8:
            lines.append(f"{rnd.choice(DIRECTIVES)} {rnd.choice(PATHS)}")
        elif kind < 0.9:
            lines.append(random_policies.nearly_a_policy(rnd))
        else:
            lines.append(rnd.choice((*NO_DIRECTIVES, "!compat-4.0")))
    text = "\n".join(lines)
    if rnd.random() < 0.05:
        return text.encode("utf-16", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def _fill(rnd: random.Random, folder: Path) -> None:
    folder.mkdir()
    for name, to in LINKS:
        if rnd.random() < 0.2:
            (folder / name).symlink_to(to)
    for name in rnd.sample(NAMES, rnd.randint(0, 6)):
        path = folder / name
        if os.path.lexists(path):
            continue
        path.parent.mkdir(exist_ok=True)
        kind = rnd.random()
        if kind < 0.85:
            path.write_bytes(content(rnd))
        elif kind < 0.9:
            path.mkdir()
        elif kind < 0.95:
            os.mkfifo(path)
        else:
            path.symlink_to(rnd.choice(("x", "../etc/x", "nowhere", "/")))


def loaded(rnd: random.Random) -> Loaded:
    """What is read from such folders, and from the old files beside them."""
    with tempfile.TemporaryDirectory(prefix="pedos-odd-") as name:
        base = Path(name)
        run, etc, old = base / "run", base / "etc", base / "old"
        for folder in (run, etc):
            if rnd.random() < 0.9:
                _fill(rnd, folder)
        old.mkdir()
        for odd in rnd.sample(OLD_NAMES, 2):
            (old / odd).write_text(rnd.choice(OLD_LINES))
        replaced: dict[str, bytes | None] = {}
        if rnd.random() < 0.3:
            for path in (rnd.choice(NAMES), rnd.choice(PATHS), ""):
                replaced[path] = rnd.choice((None, content(rnd)))
        folders = rnd.choice(([run, etc], [run, etc], [etc], [etc, run], []))
        return read_policy(folders, replaced=replaced, legacy=old)
