"""The meaning of the words of a rule.

Matching uses sets of words, not predicates: the words of the VM work are `work`, `*`, `@anyvm`,
`@type:AppVM`, `@tag:...` and `uuid:...`, and a rule matches when the word in its column is among
them. So a request is turned into words once, each rule costs a lookup, and a snapshot can be
indexed by service, source and target, for all kinds of words in its rules.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pedos_protocol.device_classes import VERBS as DEVICE_VERBS
from pedos_protocol.device_classes import class_names, is_class_name
from pedos_protocol.names import shown

from .system import ADMIN_VM, System

ANY = "*"
ANY_VM = "@anyvm"
ADMIN = "@adminvm"
DEFAULT = "@default"
DISPVM = "@dispvm"
DISPVM_OF = "@dispvm:"
DISPVM_TAG = "@dispvm:@tag:"
TYPE = "@type:"
TAG = "@tag:"
UUID = "uuid:"

DEVICE_SERVICE_PREFIX = "device."

# A service name is a file name in the reference system, so it cannot be longer than one.
SERVICE_MAX = 255
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")

# A running system has few distinct services; the bound only keeps a flood of invented names from
# growing the memory.
TOKEN_CACHE = 1024

# What a VM column may contain beside the words with `@`. Wider than a VM's name, because a rule may
# name VMs that do not exist (yet, or any more).
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# The part after `@tag:`, `@type:` and `uuid:`.
_VALUE = re.compile(r"[!-?A-~]+")

SOURCE, TARGET, REDIRECT = "source", "target", "redirect"
_EXACT = {
    SOURCE: (ANY, ANY_VM, ADMIN),
    TARGET: (ANY, ANY_VM, ADMIN, DEFAULT, DISPVM),
    REDIRECT: (ADMIN, DISPVM),
}
_PREFIXES = {
    SOURCE: (DISPVM_TAG, DISPVM_OF, TYPE, TAG, UUID),
    TARGET: (DISPVM_TAG, DISPVM_OF, TYPE, TAG, UUID),
    REDIRECT: (DISPVM_OF, UUID),
}
_ALL_EXACT = frozenset(word for words in _EXACT.values() for word in words)
_ALL_PREFIXES = _PREFIXES[TARGET]


@lru_cache(maxsize=TOKEN_CACHE)
def vm_word_problem(text: str, column: str) -> tuple[str, str] | None:
    """Why the column cannot contain `text`, and what it could; None if it can.

    `column` is SOURCE, TARGET or REDIRECT (the value of `target=` and `default_target=`).
    """
    if text in _EXACT[column]:
        return None
    for prefix in _PREFIXES[column]:
        if text.startswith(prefix):
            return _value_problem(text, prefix)
    if _NAME.fullmatch(text):
        return None
    right = _right(column)
    if text.startswith("$"):
        right = f"write {shown('@' + text[1:])}: '$' is of release 4.0"
    if text in _ALL_EXACT or text.startswith(_ALL_PREFIXES):
        return f"{shown(text)} cannot stand for a {column}", right
    kind = "VM word" if text.startswith("@") else "VM name"
    return f"{shown(text)} is not a {kind}", right


def _value_problem(text: str, prefix: str) -> tuple[str, str] | None:
    value = text[len(prefix) :]
    if not value:
        return f"{prefix} is not followed by anything", f"as in {_EXAMPLES[prefix]}"
    if (_NAME if prefix == DISPVM_OF else _VALUE).fullmatch(value):
        return None
    return f"{shown(value)} cannot follow {prefix}", f"as in {_EXAMPLES[prefix]}"


_EXAMPLES = {
    DISPVM_TAG: "@dispvm:@tag:work",
    DISPVM_OF: "@dispvm:default-dvm",
    TYPE: "@type:AppVM",
    TAG: "@tag:work",
    UUID: "uuid:00000000-0000-0000-0000-000000000000",
}


def _right(column: str) -> str:
    words = [*_EXACT[column], *(prefix + "..." for prefix in _PREFIXES[column])]
    return f"a {column} is a VM's name or one of {' '.join(words)}"


# --- the words of a request


def vm_words(vm: str, system: System) -> frozenset[str]:
    """Every word that stands for the VM of that name, whether it exists or not."""
    known = system.words.get(vm)
    if known is None:
        known = _vm_words(vm, system)
        if vm in system.domains:
            system.words[vm] = known
    return known


def _vm_words(vm: str, system: System) -> frozenset[str]:
    words = {ANY, vm, ADMIN if vm == ADMIN_VM else ANY_VM}
    facts = system.get(vm)
    if facts is not None:
        words.add(TYPE + facts.type)
        words.update(TAG + tag for tag in facts.tags)
        if facts.uuid:
            words.add(UUID + facts.uuid)
    return frozenset(words)


def target_words(target: str, default_dispvm: str | None, system: System) -> frozenset[str]:
    """Every word that stands for a target, which is a VM's name, @default or a disposable.

    `default_dispvm` is the template of the caller's disposables, which is what `@dispvm` means.
    """
    if not target.startswith("@"):
        return vm_words(target, system)
    if target == ADMIN:
        # Not its type, tags and UUID, which the reference finds by dom0's name only.
        return _ADMIN_WORDS
    words = {ANY, ANY_VM, target}
    if target == DISPVM and default_dispvm is not None:
        words.add(DISPVM_OF + default_dispvm)
        words |= _dispvm_tags(default_dispvm, system)
    elif target.startswith(DISPVM_OF):
        words |= _dispvm_tags(target[len(DISPVM_OF) :], system)
    return frozenset(words)


_ADMIN_WORDS = frozenset((ANY, ADMIN, ADMIN_VM))


def _dispvm_tags(template: str, system: System) -> set[str]:
    facts = system.get(template)
    if facts is None or not facts.template_for_dispvms:
        return set()
    return {DISPVM_TAG + tag for tag in facts.tags}


# --- services


@lru_cache(maxsize=TOKEN_CACHE)
def service_tokens(service: str) -> tuple[str, ...]:
    """Every word that stands for `service`, most particular first."""
    parts = service.split(".")
    # Remembered, and so not asked of the table of classes, which may grow.
    if len(parts) != 3 or parts[0] != "device":
        return (service, ANY)
    _, verb, device_class = parts
    return (service, f"device.{verb}.*", f"device.*.{device_class}", "device.*.*", ANY)


def device_service(service: str) -> tuple[str, str] | None:
    """(verb, class) of `device.VERB.CLASS`; None for anything else, and for a text with `*`.

    The class may be one that only another version has: rules for all classes are about its devices
    too, and deny them. No rule can name it.
    """
    parts = service.split(".")
    if len(parts) == 3 and parts[0] == "device":
        verb, device_class = parts[1:]
        if verb in DEVICE_VERBS and is_class_name(device_class):
            return verb, device_class
    return None


def is_service(text: str) -> bool:
    """Is `text` a service that can be called? A device service must have a known verb."""
    if len(text) > SERVICE_MAX or not _SERVICE.fullmatch(text):
        return False
    return not text.startswith(DEVICE_SERVICE_PREFIX) or device_service(text) is not None


def service_problem(text: str) -> tuple[str, str] | None:
    """Why the service column cannot contain `text`, and what it could; None if it can."""
    return _service_problem(text, class_names())


@lru_cache(maxsize=TOKEN_CACHE)
def _service_problem(text: str, classes: tuple[str, ...]) -> tuple[str, str] | None:
    if text == ANY:
        return None
    if len(text) > SERVICE_MAX:
        return f"service name of {len(text)} characters", f"at most {SERVICE_MAX} are allowed"
    if text.startswith(DEVICE_SERVICE_PREFIX):
        return _device_service_problem(text, classes)
    if "*" in text:
        return (
            f"{shown(text)}: a service is '*' alone or a full name",
            "only device.VERB.CLASS takes '*' for a part",
        )
    if not _SERVICE.fullmatch(text):
        return f"{shown(text)} is not a service", "only A-Z a-z 0-9 . _ - are allowed"
    return None


def _device_service_problem(text: str, classes: tuple[str, ...]) -> tuple[str, str] | None:
    parts = text.split(".")
    if len(parts) != 3:
        return f"{shown(text)}: a device service has three parts", "write device.VERB.CLASS"
    for what, part, known in (
        ("verb", parts[1], DEVICE_VERBS),
        ("class", parts[2], classes),
    ):
        if part != ANY and part not in known:
            return f"{shown(text)}: no device {what} {shown(part)}", f"use {', '.join(known)} or *"
    return None
