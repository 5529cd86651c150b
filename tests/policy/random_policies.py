"""Random policies, facts and requests: good ones, and texts that are nearly policies."""

from __future__ import annotations

import random

from pedos_dom0.policy.evaluate import Request
from pedos_dom0.policy.system import System, VmFacts

NAMES = ("dom0", "work", "mail", "vault", "sys-usb", "dvm", "dvm-net", "base", "hidden")
TAGS = ("office", "net", "usb")
TYPES = ("AppVM", "TemplateVM", "DispVM", "AdminVM")
SERVICES = ("s.A", "s.B", "device.attach.block", "device.attach.usb", "device.list.usb")
SERVICE_WORDS = (*SERVICES, "*", "device.*.*", "device.attach.*", "device.*.usb", "device.*.block")
PORTS = ("sda", "sdb", "sda1", "1-2", "1-2.3")
IDENTITIES = (
    *("", "046d:c52b:x:u030101", "1050:0407:77:u030101", "0781:5581:x:u080650"),
    # Identities that are not fully known.
    *("0781:5581:x:u-unknown", "0781:5581:x:u080650u-unknown", "1050:0407:77:", "046d:c52b"),
)
GLOBS = (
    ("sys-usb", "work", "*", "sys-*", "*usb*"),
    ("*", "sda", "sd*", "1-2", "1-*", "*1"),
    (
        *("*", "1050:*", "*:u03*", "046d:c52b*", "*:x:*", "0781:5581:x:u080650", "*u-unknown"),
        *("only=u08*", "0781:*:only=u080650,u03*", "*:only=u*,u-unknown"),
    ),
)
PARAMETERS = {
    "allow": ("target=work", "target=@dispvm", "user=root", "autostart=no", "notify=yes"),
    "ask": ("default_target=mail", "target=@adminvm", "autostart=no", "user=root", "notify=no"),
    "deny": ("notify=no", "notify=yes"),
}
# Pieces of texts that are no policies.
DEBRIS = (
    *("@default", "@dispvm:@dispvm", "@tag:", "+", "+::", "=", "target=", "#", "!include x", "\0"),
    *("!include-service s.A * x", "!compat-4.0", "\x1b[31m", "\N{SNOWMAN}", "\t", "\r", "x" * 600),
)


def system(rnd: random.Random) -> System:
    domains = {
        name: VmFacts(
            name,
            type="AdminVM" if name == "dom0" else rnd.choice(TYPES),
            tags=frozenset(tag for tag in TAGS if rnd.random() < 0.4),
            uuid=f"0-{number}",
            default_dispvm=rnd.choice((None, "dvm", "dvm-net", "work")),
            template_for_dispvms=name.startswith("dvm"),
            power_state=rnd.choice(("Running", "Halted")),
            internal=name == "hidden",
        )
        for number, name in enumerate(NAMES)
        if name == "dom0" or rnd.random() < 0.9
    }
    return System(domains)


def word(rnd: random.Random, target: bool) -> str:
    words = [
        *("*", "@anyvm", "@anyvm", "@adminvm", "uuid:0-1", "uuid:0-0", "@dispvm:dvm"),
        *("@dispvm:@tag:net", f"@tag:{rnd.choice(TAGS)}", f"@type:{rnd.choice(TYPES)}"),
        *rnd.sample(NAMES, 3),
    ]
    if target:
        words += ["@default", "@dispvm", "@dispvm"]
    return rnd.choice(words)


def line(rnd: random.Random) -> str:
    service = rnd.choice(SERVICE_WORDS)
    argument = "*"
    if service.startswith("device.") and rnd.random() < 0.7:
        parts = [rnd.choice(globs) for globs in GLOBS[: rnd.randint(1, 3)]]
        if service.endswith(".block") and "only=" in parts[-1]:
            parts.pop()
        argument = "+" + ":".join(parts)
    elif not service.startswith(("device.", "*")) and rnd.random() < 0.4:
        argument = rnd.choice(("+", "+x", "+y"))
    source, target = word(rnd, False), word(rnd, True)
    action = rnd.choice(("allow", "ask", "deny"))
    some = [p for p in PARAMETERS[action] if rnd.random() < 0.15]
    parameters = list({parameter.partition("=")[0]: parameter for parameter in some}.values())
    if (
        action == "allow"
        and target == "@default"
        and not any(p.startswith("target=") for p in parameters)
    ):
        parameters.append("target=work")
    return " ".join((service, argument, source, target, action, *parameters))


def policy(rnd: random.Random, most: int) -> str:
    lines = [line(rnd) for _ in range(rnd.randint(0, most))]
    if rnd.random() < 0.3:
        # Many rules that differ in the argument alone.
        start = " ".join((rnd.choice(("work", "dom0", "*")), rnd.choice(("work", "*", "@anyvm"))))
        for _ in range(rnd.randint(10, 60)):
            parts = [rnd.choice(globs) for globs in GLOBS[: rnd.randint(1, 3)]]
            action = rnd.choice(("allow", "deny"))
            lines.append(f"device.attach.usb +{':'.join(parts)} {start} {action}")
    rnd.shuffle(lines)
    return "\n".join(lines)


def request(rnd: random.Random) -> Request:
    service = rnd.choice(SERVICES)
    argument = rnd.choice(("+", "+x", "+z"))
    if service.startswith("device."):
        backend = rnd.choice(("sys-usb", "work", "sys-net"))
        argument = f"+{backend}:{rnd.choice(PORTS)}:{rnd.choice(IDENTITIES)}"
    target = rnd.choice(
        (
            *(*NAMES, "nobody", "", "@default", "@adminvm", "@dispvm", "@dispvm:dvm"),
            *("@dispvm:work", "uuid:0-1", "uuid:0-9"),
        )
    )
    return Request(service, argument, rnd.choice((*NAMES, "nobody")), target)


def nearly_a_policy(rnd: random.Random) -> str:
    """A policy with some of it replaced, moved or taken away."""
    text = list(policy(rnd, 6))
    for _ in range(rnd.randint(0, 6)):
        at = rnd.randint(0, len(text))
        kind = rnd.random()
        if kind < 0.4:
            text[at:at] = rnd.choice(DEBRIS)
        elif kind < 0.7:
            del text[at : at + rnd.randint(1, 12)]
        else:
            text[at:at] = chr(rnd.choice((rnd.randrange(128), rnd.randrange(0x3000))))
    return "".join(text)


def nearly_a_request(rnd: random.Random) -> Request:
    """A request with a field that may be of any kind and length."""
    good = request(rnd)
    fields: list[object] = [good.service, good.argument, good.source, good.target]
    if rnd.random() < 0.7:
        at = rnd.randrange(4)
        text = str(fields[at])
        cut = rnd.randint(0, len(text))
        fields[at] = rnd.choice(
            (
                *(None, 7, b"dom0", ["work"], "", text * 1000, "\ud800", "@anyvm", "*"),
                text[:cut] + chr(rnd.randrange(0x3000)) + text[cut:],
                text[:cut] + rnd.choice(DEBRIS) + text[cut:],
            )
        )
    return Request(*fields)  # type: ignore[arg-type]
