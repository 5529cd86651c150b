"""Mistakes that are no error to the language: impossible users, and rules that can never match.

The service accepts a policy with such rules, which mean the same as in the reference. The checks
here do not depend on which VMs exist, and report only what is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import field
from pedos_protocol.frozen import frozen
from pedos_protocol.kinds import letters
from pedos_protocol.names import is_device_id, is_identity, is_vm_name, shown

from .model import PolicyError, Rule
from .selectors import Glob, only_of
from .system import ADMIN_TYPE, ADMIN_VM
from .tokens import ADMIN, ANY, ANY_VM, DEFAULT, DISPVM, DISPVM_OF, TYPE, UUID

#: The types that a VM can have (facts_file.py, which a test compares).
TYPES = ("AppVM", "TemplateVM", "StandaloneVM", "DispVM", "RemoteVM", ADMIN_TYPE)
#: Characters of a user's name: ut_user of utmp(5), to which Debian's useradd and adduser keep.
USER_MAX = 32
#: Rules with globs that are compared with one later rule; beyond this, some shadows are missed.
GLOBS_MAX = 64

_HEX = "0123456789abcdef"


def user_problem(name: str) -> str | None:
    """Why no Linux user can have this name: passwd(5) cannot hold it, or every tool of Debian that
    makes users refuses it, even if it is told to allow bad names."""
    if len(name) > USER_MAX:
        return f"it has {len(name)} characters, and {USER_MAX} is the most"
    if name[0] in "-+~":
        return f"it begins with {shown(name[0])}"
    if name in (".", ".."):
        return "it is a folder"
    if name.isdigit():
        return "it would be taken for a user's number"
    wrong = next((char for char in name if char in ":,/" or not char.isprintable()), None)
    return None if wrong is None else f"it has {shown(wrong)}"


def errors(rules: Iterable[Rule]) -> Iterator[PolicyError]:
    """The rules with a user that no system can have."""
    for rule in rules:
        name = rule.outcome.user
        why = None if name is None else user_problem(name)
        if name is not None and why is not None:
            message = f"no Linux user can be called {shown(name)}: {why}"
            yield finding(rule, message, "name a user of the target, as user=user")


def warnings(rules: Sequence[Rule]) -> Iterator[PolicyError]:
    """The rules that can never decide anything, each with the reason."""
    before = Before()
    for rule in rules:
        why = _unmatchable(rule)
        if why is not None:
            yield finding(rule, f"this rule can never match: {why}")
            continue
        first = before.covering(rule)
        if first is not None:
            message = f"this rule is never reached: {first.where} matches all that it would"
            yield finding(rule, message, f"put it before {first.where}, or take it out")
        before.add(rule)


def finding(rule: Rule, message: str, help_: str = "") -> PolicyError:
    """What is wrong with a whole rule."""
    return PolicyError(rule.file, rule.line, 1, message, help_, rule.text)


# Words that match nothing


def _unmatchable(rule: Rule) -> str | None:
    if rule.source.startswith(DISPVM_OF):
        return f"no request comes from {shown(rule.source)}, which is a disposable to be made"
    for word in (rule.source, rule.target):
        why = _word_of_nothing(word)
        if why is not None:
            return why
    return _selects_nothing(rule) if rule.selects else None


def _word_of_nothing(word: str) -> str | None:
    if word.startswith(TYPE):
        kind = word[len(TYPE) :]
        return None if kind in TYPES else f"there is no type {shown(kind)} of VM"
    if word.startswith(UUID):
        bare = word[len(UUID) :]
        is_one = [len(part) for part in bare.split("-")] == [8, 4, 4, 4, 12]
        return None if is_one else f"{shown(bare)} is no UUID"
    name = word[len(DISPVM_OF) :] if word.startswith(DISPVM_OF) else word
    if name.startswith("@") or name == ANY or is_vm_name(name):
        return None
    return f"no VM can be called {shown(name)}"


def _selects_nothing(rule: Rule) -> str | None:
    """Why no such device can exist. The parts of an identity are those of its class."""
    parts = parts_of(rule.argument)
    backend, port, identity = parts
    if "*" not in backend and not is_vm_name(backend):
        return f"no VM can be called {shown(backend)}"
    if "*" not in port and not is_device_id(port):
        return f"no device can be called {shown(port)}"
    head, kinds = only_of(identity)
    if not is_identity("".join(head.split("*"))):
        return f"no identity can be as long as {shown(identity)}, or have such characters"
    device_class = rule.service.rpartition(".")[2]
    if device_class in ("usb", "pci") and kinds is None and head[:1] != "*":
        numbers = head.split(":")[:2]
        wrong = next((text for text in numbers if _is_no_number(text)), None)
        if wrong is not None:
            return f"{shown(wrong)} is no vendor's or product's number: 4 digits of 0-9 a-f"
    return None


def _is_no_number(text: str) -> bool:
    bare = text.replace("*", "")
    return bool(bare.strip(_HEX)) or len(bare) > 4 or ("*" not in text and len(text) != 4)


def parts_of(argument: str) -> tuple[str, str, str]:
    """BACKEND, PORT and IDENTITY of a selector, `*` for what it leaves off."""
    backend, port, identity = [*argument[1:].split(":", 2), "*", "*"][:3]
    return backend, port, identity


# Rules that an earlier rule hides


@frozen
class Before:
    """The rules that were read so far, by service, source and target."""

    _by_words: dict[tuple[str, str, str], _Arguments] = field(factory=dict)

    def add(self, rule: Rule) -> None:
        # A redirecting rule leaves its targets to others that `ask` may offer; and for a device
        # whose kinds are not all known, no rule about kinds is sure to be the first.
        if rule.outcome.target is None and _is_sure(rule):
            words = (rule.service, rule.source, rule.target)
            self._by_words.setdefault(words, _Arguments()).add(rule)

    def covering(self, rule: Rule) -> Rule | None:
        """The first of them that matches everything that `rule` matches; None if no single one
        does."""
        if rule.outcome.target is not None:
            return None
        found = []
        for service in _wider_services(rule.service):
            for source in _wider(rule.source):
                for target in _wider(rule.target):
                    arguments = self._by_words.get((service, source, target))
                    first = None if arguments is None else arguments.covering(rule)
                    if first is not None:
                        found.append(first)
        return found[0] if found else None


@frozen
class _Arguments:
    """Rules that differ in their argument alone."""

    _exact: dict[str, Rule] = field(factory=dict)
    _globs: list[tuple[tuple[Glob, Glob, str], Rule]] = field(factory=list)

    def add(self, rule: Rule) -> None:
        self._exact.setdefault(_normal(rule), rule)
        if rule.selects and len(self._globs) < GLOBS_MAX:
            backend, port, identity = parts_of(rule.argument)
            self._globs.append(((Glob(backend), Glob(port), identity), rule))

    def covering(self, rule: Rule) -> Rule | None:
        exact = self._exact.get(ANY) or self._exact.get(_normal(rule))
        if exact is not None or not rule.selects:
            return exact
        parts = parts_of(rule.argument)
        for (backend, port, identity), first in self._globs:
            if _takes(backend, parts[0]) and _takes(port, parts[1]) and identity in ("*", parts[2]):
                return first
        return None


def _is_sure(rule: Rule) -> bool:
    """Does it match everything that it possibly matches (evaluate.py)?"""
    if not rule.selects or parts_of(rule.argument)[2] == "*":
        return True
    return rule.service.rpartition(".")[2] not in (*letters(), ANY)


def _normal(rule: Rule) -> str:
    if not rule.selects:
        return rule.argument
    return ":".join(parts_of(rule.argument))


def _takes(glob: Glob, text: str) -> bool:
    """Does it match everything that the glob `text` matches? Certain for a `*` at the end of
    both."""
    if "*" not in text or glob.text == "*":
        return glob.matches(text)
    return glob.text == text


_OF_ADMIN = (ADMIN, ADMIN_VM)


def _wider(word: str) -> Iterator[str]:
    """The words that stand for every VM for which `word` stands, itself first."""
    yield word
    if word in _OF_ADMIN:
        yield from (other for other in _OF_ADMIN if other != word)
    elif word not in (ANY, ANY_VM) and _is_never_dom0(word):
        yield ANY_VM
    if word != ANY:
        yield ANY


def _is_never_dom0(word: str) -> bool:
    if word == TYPE + ADMIN_TYPE:
        return False
    if word.startswith("@"):
        return word in (DEFAULT, DISPVM) or word.startswith((TYPE, DISPVM_OF))
    return not word.startswith(UUID)


def _wider_services(service: str) -> Iterator[str]:
    yield service
    parts = service.split(".")
    if len(parts) == 3 and parts[0] == "device":
        for verb in {parts[1], ANY}:
            for kind in {parts[2], ANY}:
                wider = f"device.{verb}.{kind}"
                if wider != service:
                    yield wider
    if service != ANY:
        yield ANY
