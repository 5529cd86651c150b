"""A second opinion on whole cases: from a policy's text and a request to the outcome.

Written from the description of the language alone, as simply as possible: no index, no sets of
words, no class of the engine. It knows calls, not devices. Its result has the form of the
reference's cases, with the line of every rule that decided.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

Facts = dict[str, dict[str, Any]]  # of the VMs, by name

SOURCES = ("*", "@anyvm", "@adminvm")
TARGETS = (*SOURCES, "@default", "@dispvm")
REDIRECTS = ("@adminvm", "@dispvm")
PARAMETERS = {
    "allow": {"target", "user", "autostart", "notify"},
    "ask": {"target", "user", "autostart", "notify", "default_target"},
    "deny": {"notify"},
}


class Line(NamedTuple):
    number: int
    service: str
    argument: str
    source: str
    target: str
    action: str
    parameters: dict[str, str]


class BadLineError(Exception):
    """The number of the first line that is no rule."""


def is_word(word: str, exact: tuple[str, ...]) -> bool:
    """May this stand where those do? `exact` are the words that are complete by themselves."""
    if word in exact:
        return True
    if not word.startswith("@"):
        return word not in ("", "*") and "$" not in word
    if word.startswith("@dispvm:@tag:"):
        return exact is not REDIRECTS and word != "@dispvm:@tag:"
    if word.startswith("@dispvm:"):
        return re.fullmatch(r"@dispvm:[^@]+", word) is not None
    return exact is not REDIRECTS and re.fullmatch(r"@(tag|type):.+", word) is not None


def parsed(text: str) -> list[Line]:
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            service, argument, source, target, action, *rest = words
            parameters = dict(word.split("=", 1) for word in rest)
        except ValueError:
            raise BadLineError(number) from None
        good = (
            (service == "*" or re.fullmatch(r"[A-Za-z0-9._-]+", service))
            and (argument == "*" or (argument.startswith("+") and service != "*"))
            and is_word(source, SOURCES)
            and is_word(target, TARGETS)
            and action in PARAMETERS
            and len(parameters) == len(rest)
            and set(parameters) <= PARAMETERS[action]
            and all(parameters.get(name, "no") in ("yes", "no") for name in ("autostart", "notify"))
            and all(
                is_word(parameters.get(name, "x"), REDIRECTS)
                for name in ("target", "default_target")
            )
            and (action != "allow" or target != "@default" or "target" in parameters)
        )
        if not good:
            raise BadLineError(number)
        lines.append(Line(number, service, argument, source, target, action, parameters))
    return lines


def is_vm(word: str, name: str, vms: Facts) -> bool:
    facts = vms[name]
    return (
        word in ("*", name)
        or (word == "@anyvm" and name != "dom0")
        or (word == "@adminvm" and name == "dom0")
        or word == f"@type:{facts['type']}"
        or word == f"uuid:{facts['uuid']}"
        or word in [f"@tag:{tag}" for tag in facts["tags"]]
    )


def is_template(name: object, vms: Facts) -> bool:
    return name in vms and vms[str(name)]["template_for_dispvms"]


def is_target(word: str, target: str, default_dispvm: str | None, vms: Facts) -> bool:
    """`target` is a VM that exists, or @default, @adminvm, @dispvm or @dispvm:TEMPLATE."""
    if target == "@adminvm":
        return word in ("*", "@adminvm", "dom0")
    if not target.startswith("@"):
        return is_vm(word, target, vms)
    if word in ("*", "@anyvm", target):
        return True
    template = default_dispvm if target == "@dispvm" else target.removeprefix("@dispvm:")
    if target == "@default" or template is None:
        return False
    tags = vms[template]["tags"] if is_template(template, vms) else []
    return word == f"@dispvm:{template}" or word in [f"@dispvm:@tag:{tag}" for tag in tags]


def meant(word: str, vms: Facts) -> set[str]:
    """The targets that a word of the target column, or a redirect, gives or takes for an `ask`."""
    if word in ("@dispvm", "@adminvm"):
        return {word}
    disposables = {
        f"@dispvm:{name}"
        for name in vms
        if is_template(name, vms) and is_target(word, f"@dispvm:{name}", None, vms)
    }
    found = {name for name in vms if is_vm(word, name, vms)} | disposables
    return found | {"@dispvm"} if word in ("*", "@anyvm") else found


def resolved(word: str, default_dispvm: str | None, vms: Facts) -> str | None:
    if word == "@adminvm":
        return "dom0"
    if word == "@dispvm":
        word = f"@dispvm:{default_dispvm}"
    if word.startswith("@dispvm:"):
        return word if is_template(word.removeprefix("@dispvm:"), vms) else None
    return word if word in vms else None


def runs(target: str, vms: Facts) -> bool:
    return target == "dom0" or (target in vms and vms[target]["power_state"] == "Running")


DENIED = {"r": "deny", "notify": True, "line": None}


def outcome(policy: str, service: str, arg: str, source: str, target: str, vms: Facts) -> Any:
    """What the case's `expect` says, but for its message."""
    try:
        lines = parsed(policy)
    except BadLineError as error:
        return {"r": "syntax_error", "line": error.args[0]}
    if target.startswith("@dispvm:"):
        if not is_template(target.removeprefix("@dispvm:"), vms):
            return DENIED
    elif target not in vms and target not in ("@adminvm", "@dispvm"):
        target = "@default"
    lines = [
        line
        for line in lines
        if line.service in ("*", service)
        and line.argument in ("*", arg)
        and is_vm(line.source, source, vms)
    ]
    dispvm = vms[source]["default_dispvm"]
    for line in lines:
        if is_target(line.target, target, dispvm, vms):
            return carried_out(line, lines, source, target, vms)
    return DENIED


def carried_out(line: Line, lines: list[Line], source: str, target: str, vms: Facts) -> Any:
    """What becomes of a request that `line` decides; `lines` are all for that source."""
    given = line.parameters
    notify = given.get("notify", "yes" if line.action == "deny" else "no") == "yes"
    if line.action == "deny":
        return {"r": "deny", "notify": notify, "line": line.number}
    dispvm = vms[source]["default_dispvm"]
    autostart = given.get("autostart") != "no"
    answer = {
        "r": line.action,
        "line": line.number,
        "user": given.get("user"),
        "autostart": autostart,
        "notify": notify,
    }
    if line.action == "allow":
        goes_to = resolved(given.get("target", target), dispvm, vms)
        if goes_to is None:
            return {**DENIED, "line": line.number}
        if not autostart and not runs(goes_to, vms):
            return {"r": "deny", "notify": notify, "line": line.number}
        return {**answer, "target": goes_to}
    offered = {given["target"]} if "target" in given else choices(lines, source, vms)
    if "@adminvm" in offered:
        offered = offered - {"@adminvm"} | {"dom0"}
    if not autostart:
        offered = {one for one in offered if runs(one, vms)}
    if not offered:
        return {**DENIED, "line": line.number}
    marked = resolved(given["default_target"], dispvm, vms) if "default_target" in given else None
    return {**answer, "targets": sorted(offered), "default": marked if marked in offered else None}


def choices(lines: list[Line], source: str, vms: Facts) -> set[str]:
    offered: set[str] = set()
    for line in reversed(lines):
        some = meant(line.parameters.get("target", line.target), vms)
        offered = offered - some if line.action == "deny" else offered | some
    dispvm = vms[source]["default_dispvm"]
    if "@dispvm" in offered:
        offered = offered - {"@dispvm"} | ({f"@dispvm:{dispvm}"} if dispvm else set())
    return {one for one in offered if one != source and not (one in vms and vms[one]["internal"])}
