"""Random cases in the manner of the reference's: the same VMs, words and proportions.

Everything that occurs in those occurs here too, so that rare features, and combinations that no
single case has, occur in tens of thousands of these.
"""

from __future__ import annotations

import random
from typing import Any

from .naive import Facts


def _uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def _vms() -> Facts:
    rows: list[tuple[str, str, tuple[str, ...], str | None, bool]] = [
        ("dom0", "AdminVM", (), None, True),
        ("work", "AppVM", ("t1",), "dvm-a", True),
        ("vault", "AppVM", ("t1", "t2"), None, False),
        ("sys-usb", "DispVM", (), "dvm-b", True),
        ("tmpl", "TemplateVM", (), "dvm-b", False),
        ("dvm-a", "AppVM", ("t2",), "dvm-b", True),
        ("dvm-b", "AppVM", (), "dvm-b", False),
        ("sa", "StandaloneVM", ("t3",), "dvm-b", True),
        ("hid", "AppVM", (), "dvm-b", True),
    ]
    return {
        name: {
            "type": kind,
            "tags": list(tags),
            "uuid": _uuid(number),
            "default_dispvm": dispvm,
            "template_for_dispvms": name.startswith("dvm"),
            "power_state": "Running" if running else "Halted",
            "internal": name == "hid",
        }
        for number, (name, kind, tags, dispvm, running) in enumerate(rows)
    }


VMS = _vms()
NAMES = tuple(VMS)
WORDS = (
    *(*NAMES, *NAMES, "ghost", "ghost", "@tag:t1", "@tag:t2", "@tag:t3", "@tag:nx"),
    *("@type:AppVM", "@type:TemplateVM", "@type:DispVM", "@type:AdminVM", "@adminvm", "@adminvm"),
    *("@dispvm:dvm-a", "@dispvm:dvm-b", "@dispvm:work", "@dispvm:@tag:t2", "@dispvm:@tag:nx"),
)
REDIRECTS = (
    *("work", "work", "work", "vault", "vault", "dom0", "dom0", "@dispvm", "@dispvm", "@adminvm"),
    *("@dispvm:dvm-a", "@dispvm:dvm-a", "ghost", "@dispvm:work"),
)
BAD_WORDS = ("@bogus", "@dispvm:", "@dispvm:@dispvm", "@tag:", "@type:")
BAD_PARAMETERS = (
    *("bogus=1", "user", "notify=maybe", "autostart=maybe", "target=@anyvm", "target="),
    *("default_target=@anyvm", "target=@tag:t1", "user=a user=b", "notify=no notify=no"),
)
TARGETS = (
    *(*NAMES, "@default", "@default", "@dispvm", "@dispvm", "@dispvm:dvm-a", "@dispvm:dvm-a"),
    *("@dispvm:work", "@adminvm", "ghost", ""),
)


def _word(rnd: random.Random, target: bool) -> str:
    chance = rnd.random()
    if chance < 0.3:
        return "@anyvm"
    if chance < 0.45:
        return "*"
    if chance < 0.47:
        return f"uuid:{_uuid(rnd.randrange(len(NAMES) + 1))}"
    if target and chance < 0.65:
        return rnd.choice(("@dispvm", "@default"))
    return rnd.choice(WORDS)


def _line(rnd: random.Random, bad: bool) -> str:
    service = rnd.choices(("s.A", "*", "s.B"), (72, 18, 10))[0]
    argument = "*" if service == "*" else rnd.choices(("*", "+x", "+y", "+"), (75, 12, 6, 6))[0]
    source, target = _word(rnd, False), _word(rnd, True)
    action = rnd.choices(("allow", "ask", "deny"), (46, 36, 18))[0]
    some = []
    if action != "deny":
        if rnd.random() < 0.28 or (action == "allow" and target == "@default"):
            some.append(f"target={rnd.choice(REDIRECTS)}")
        if rnd.random() < 0.2:
            some.append(f"user={rnd.choice(('root', 'user'))}")
        if rnd.random() < 0.15:
            some.append(f"autostart={rnd.choice(('no', 'no', 'yes'))}")
    if action == "ask" and rnd.random() < 0.37:
        some.append(f"default_target={rnd.choice(REDIRECTS)}")
    if rnd.random() < 0.15:
        some.append(f"notify={rnd.choice(('yes', 'no'))}")
    words = [service, argument, source, target, action, *some]
    if bad:
        _spoil(rnd, words)
    return rnd.choice((" ", "\t", "   ")).join(words)


def _spoil(rnd: random.Random, words: list[str]) -> None:
    kind = rnd.randrange(7)
    if kind == 0:
        words[0] = rnd.choice(("s/A", "s+A", "s,A"))
    elif kind == 1:
        words[1] = rnd.choice(("x", "x+"))
    elif kind == 2:
        words[:2] = ["*", rnd.choice(("+", "+x"))]
    elif kind == 3:
        words[2] = rnd.choice((*BAD_WORDS, "@default", "@dispvm"))
    elif kind == 4:
        words[3] = rnd.choice(BAD_WORDS)
    elif kind == 5:
        words[3:] = rnd.choice((["@default", "allow"], ["work", "permit"], ["work"]))
    else:
        words.append(rnd.choice(BAD_PARAMETERS))


def case(rnd: random.Random) -> dict[str, Any]:
    """`policy`, `service`, `arg`, `source` and `target`."""
    lines = [_line(rnd, rnd.random() < 0.014) for _ in range(rnd.randint(1, 8))]
    for blank in ("# c", "", " \t", "  # c"):
        if rnd.random() < 0.05:
            lines.insert(rnd.randint(0, len(lines)), blank)
    return {
        "policy": "\n".join(lines) + "\n",
        "service": rnd.choices(("s.A", "s.B", "s.C"), (87, 10, 3))[0],
        "arg": rnd.choice(("+", "+x", "+y", "+z")),
        "source": rnd.choice(NAMES),
        "target": rnd.choice(TARGETS),
    }
