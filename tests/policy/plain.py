"""A plain reading of the language: every rule in file order, no index, no sets of words.

It shares nothing with the engine but the parsed rules and facts, so where both agree, either both
are right or one mistake was made twice.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import re

from pedos_dom0.policy.evaluate import Request
from pedos_dom0.policy.model import Rule
from pedos_dom0.policy.system import System

# Random policies are made of few words: what one says of another is asked ten thousands of times.
remembered = functools.lru_cache(maxsize=20_000)


@remembered
def service_covers(word: str, service: str) -> bool:
    if word == "*":
        return True
    pairs = itertools.zip_longest(word.split("."), service.split("."))
    return all(part in ("*", asked) for part, asked in pairs)


def argument_covers(rule: Rule, service: str, argument: str, *, sure: bool = True) -> bool:
    return words_cover(rule.service, rule.argument, service, argument, sure)


@remembered
def words_cover(
    rule_service: str, rule_argument: str, service: str, argument: str, sure: bool
) -> bool:
    if rule_argument == "*":
        return True
    if not rule_service.startswith("device."):
        return rule_argument == argument
    parts = argument[1:].split(":", 2)
    globs = rule_argument[1:].split(":", 2)
    *places, identity = [*globs, *("*",) * (3 - len(globs))]
    device_class = service.rpartition(".")[2]
    return all(map(glob_covers, places, parts)) and (
        identity_covers(identity, parts[2], sure=sure)
        if device_class in ("usb", "pci")
        else "only=" not in identity and glob_covers(identity, parts[2])
    )


@remembered
def glob_covers(glob: str, text: str) -> bool:
    return re.fullmatch(fnmatch.translate(glob), text) is not None


def identity_covers(rule: str, identity: str, *, sure: bool) -> bool:
    """Does what a rule says of a device's identity hold for certain, or may it hold?"""
    given = re.fullmatch(r"(?P<head>[^:]*:[^:]*:[^:]*):(?P<kinds>([up][0-9a-f]{6})*)(.*)", identity)
    head, known = (given["head"], given["kinds"]) if given else ("", "")
    whole = bool(known) and f"{head}:{known}" == identity
    before, only, wanted = rule.partition("only=")
    if only:
        heads = before.removesuffix(":") or "*"
        kinds = [known[at : at + 7] for at in range(0, len(known), 7)]
        good = all(any(glob_covers(one, kind) for one in wanted.split(",")) for kind in kinds)
        good = good and (glob_covers(heads, head) if given else could_cover(heads, "", None))
        return good and (whole or not sure or (given is not None and "-unknown" in wanted))
    if whole:
        return glob_covers(rule, identity)
    start, fill = (f"{head}:{known}", "up0123456789abcdef") if given else ("", None)
    if sure:
        return (
            rule == identity
            or ("-unknown" in rule and glob_covers(rule, identity))
            or (rule.endswith("*") and glob_covers(rule, start))
        )
    return glob_covers(rule, identity) or could_cover(rule, start, fill)


def could_cover(glob: str, start: str, fill: str | None) -> bool:
    """Is there a text that begins with `start`, goes on with characters of `fill`, and matches?"""

    def closed(places: set[int]) -> set[int]:
        for at in range(len(glob)):
            if at in places and glob[at] == "*":
                places.add(at + 1)
        return places

    def after(places: set[int], character: str) -> set[int]:
        found = {at for at in places if at < len(glob) and glob[at] == "*"}
        return closed(found | {at + 1 for at in places if glob[at : at + 1] == character})

    places = closed({0})
    for character in start:
        places = after(places, character)
    for _ in glob:
        for character in glob if fill is None else fill:
            places |= after(places, character)
    return len(glob) in places


def vm_covers(word: str, vm: str, default_dispvm: str | None, system: System) -> bool:
    """Does `word` stand for a VM's name, @default, @adminvm, @dispvm or @dispvm:TEMPLATE?"""
    admin = vm in ("dom0", "@adminvm")
    facts = system.get(vm)
    if word.startswith("@dispvm:"):
        template = default_dispvm if vm == "@dispvm" else vm.removeprefix("@dispvm:")
        if not vm.startswith("@dispvm") or template is None:
            return False
        if not word.startswith("@dispvm:@tag:"):
            return word == f"@dispvm:{template}"
        base = system.get(template)
        tag = word.removeprefix("@dispvm:@tag:")
        return base is not None and base.template_for_dispvms and tag in base.tags
    meanings = {
        "*": True,
        "@anyvm": not admin,
        "dom0": admin,
        "@adminvm": admin,
        vm: True,
    }
    if facts is not None:
        meanings |= {f"@tag:{tag}": True for tag in facts.tags}
        meanings |= {f"@type:{facts.type}": True, f"uuid:{facts.uuid}": True}
    return meanings.get(word, False)


def target_of(request: Request, system: System) -> str | None:
    """What a request's target means; None for a template that is none."""
    target = request.target
    if target.startswith("@dispvm:"):
        base = system.get(target.removeprefix("@dispvm:"))
        return target if base is not None and base.template_for_dispvms else None
    if target.startswith("uuid:"):
        named = [vm.name for vm in system.domains.values() if f"uuid:{vm.uuid}" == target]
        return named[0] if named else "@default"
    if target in ("@adminvm", "@dispvm") or target in system.domains:
        return target
    return "@default"


def deciding(request: Request, rules: tuple[Rule, ...], system: System) -> Rule | None:
    target = target_of(request, system)
    if target is None:
        return None
    facts = system.get(request.source)
    dispvm = None if facts is None else facts.default_dispvm
    possible = []
    for rule in rules:
        if (
            service_covers(rule.service, request.service)
            and argument_covers(rule, request.service, request.argument, sure=False)
            and vm_covers(rule.source, request.source, dispvm, system)
            and vm_covers(rule.target, target, dispvm, system)
        ):
            if rule.action == "deny":
                return rule  # nothing is stricter
            possible.append(rule)
            if argument_covers(rule, request.service, request.argument):
                return next((each for each in possible if each.action == "ask"), rule)
    return None


def reach(word: str, system: System) -> set[str]:
    """The targets that a word of the target column, or a redirect, stands for in `ask`."""
    vms = system.domains.values()
    disposables = {f"@dispvm:{vm.name}": vm for vm in vms if vm.template_for_dispvms}
    if word in ("*", "@anyvm"):
        found = {vm.name for vm in vms if word == "*" or vm.name != "dom0"}
        return found | set(disposables) | {"@dispvm"}
    if word.startswith("@dispvm:@tag:"):
        tag = word.removeprefix("@dispvm:@tag:")
        return {name for name, vm in disposables.items() if tag in vm.tags}
    if word.startswith("@dispvm:"):
        return {word} & set(disposables)
    if word in ("@dispvm", "@adminvm"):
        return {word}
    if word == "@default":
        return set()
    return {vm.name for vm in vms if vm_covers(word, vm.name, None, system)}


def offered(request: Request, rules: tuple[Rule, ...], system: System) -> tuple[str, ...]:
    """The candidates of an `ask` without redirect and with autostart, for a call."""
    facts = system.get(request.source)
    dispvm = None if facts is None else facts.default_dispvm
    found: set[str] = set()
    for rule in reversed(rules):
        if (
            service_covers(rule.service, request.service)
            and argument_covers(rule, request.service, request.argument)
            and vm_covers(rule.source, request.source, dispvm, system)
        ):
            named = reach(rule.outcome.target or rule.target, system)
            found = found - named if rule.action == "deny" else found | named
    found.discard(request.source)
    if "@dispvm" in found:
        found.discard("@dispvm")
        if dispvm is not None:
            found.add(f"@dispvm:{dispvm}")
    if "@adminvm" in found:
        found.discard("@adminvm")
        found.add("dom0")
    return tuple(sorted(n for n in found if not ((vm := system.get(n)) and vm.internal)))
