"""The facts about VMs that a decision uses, as an immutable value.

Rules name VMs by name, UUID, type, tag and disposable template; a `System` resolves those words. It
is made from the hypervisor driver's list and `vms.d`, or from a JSON file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attrs import field, frozen
from pedos_protocol.names import shown

ADMIN_VM = "dom0"
ADMIN_TYPE = "AdminVM"
#: The power state in which a VM can be given a device without being started first.
RUNNING = "Running"

# A machine has at most a few hundred VMs; the bounds keep a wrong file from filling the memory.
DOMAINS_MAX = 10_000
TAGS_MAX = 1_000  # of one VM
TEXT_MAX = 256  # characters of a name, a tag, a type


class SystemFactsError(ValueError):
    """The facts cannot be read; the text is a sentence with the place and the reason."""


def _tags(tags: object) -> frozenset[str]:
    return frozenset(tags)  # type: ignore[call-overload, no-any-return]


@frozen
class VmFacts:
    """The facts about one VM. `power_state` is Running, or anything else if it does not run.

    `default_dispvm` names the template of the disposables that this VM gets; `internal` VMs are
    never offered to a user as a choice.
    """

    name: str
    type: str = "AppVM"
    tags: frozenset[str] = field(default=frozenset(), converter=_tags)
    uuid: str = ""
    default_dispvm: str | None = None
    template_for_dispvms: bool = False
    power_state: str = RUNNING
    internal: bool = False

    def to_json(self) -> dict[str, object]:
        return {
            "type": self.type,
            "tags": sorted(self.tags),
            "uuid": self.uuid,
            "default_dispvm": self.default_dispvm,
            "template_for_dispvms": self.template_for_dispvms,
            "power_state": self.power_state,
            "internal": self.internal,
        }


def _with_admin(domains: Mapping[str, VmFacts]) -> Mapping[str, VmFacts]:
    known = dict(domains)
    known.setdefault(ADMIN_VM, VmFacts(ADMIN_VM, type=ADMIN_TYPE))
    return MappingProxyType(known)


@frozen
class System:
    """The existing VMs, by name; dom0 is always among them. Immutable."""

    domains: Mapping[str, VmFacts] = field(factory=dict, converter=_with_admin)
    #: VMs by their UUID, where they have one.
    by_uuid: Mapping[str, VmFacts] = field(init=False, eq=False, repr=False)
    #: The words that stand for a VM, filled by tokens.py on demand; at most one entry per VM.
    words: dict[str, frozenset[str]] = field(init=False, eq=False, repr=False, factory=dict)

    #: What each word of the target column stands for, filled by candidates.py at the first `ask`.
    reach: dict[str, set[str]] = field(init=False, eq=False, repr=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        by_uuid = {vm.uuid: vm for vm in self.domains.values() if vm.uuid}
        object.__setattr__(self, "by_uuid", MappingProxyType(by_uuid))

    def get(self, name: str) -> VmFacts | None:
        """The facts about a VM; None if it does not exist."""
        return self.domains.get(name)

    def runs(self, target: str) -> bool:
        """Does it run already? A disposable, or an unknown VM, does not."""
        facts = self.domains.get(target)
        return facts is not None and (facts.power_state == RUNNING or target == ADMIN_VM)

    def to_json(self) -> dict[str, object]:
        """The form that `from_json` reads."""
        return {"domains": {name: vm.to_json() for name, vm in sorted(self.domains.items())}}

    @classmethod
    def from_json(cls, untrusted: object) -> System:
        """From `{"domains": {NAME: {...}}}`, or that under `system_info`; ignores other keys.

        A missing fact has VmFacts' default. Raises SystemFactsError.
        """
        if isinstance(untrusted, Mapping) and "system_info" in untrusted:
            untrusted = untrusted["system_info"]
        if not isinstance(untrusted, Mapping) or not isinstance(untrusted.get("domains"), Mapping):
            raise SystemFactsError('the facts are not an object with "domains" in it')
        untrusted_domains = untrusted["domains"]
        if len(untrusted_domains) > DOMAINS_MAX:
            raise SystemFactsError(f"more than {DOMAINS_MAX} VMs")
        return cls({name: _vm(name, facts) for name, facts in untrusted_domains.items()})


def _vm(untrusted_name: object, untrusted: object) -> VmFacts:
    if not _is_text(untrusted_name) or not untrusted_name:
        raise SystemFactsError(f"{shown(untrusted_name)} is not the name of a VM")
    name = str(untrusted_name)
    if not isinstance(untrusted, Mapping):
        raise SystemFactsError(f"the facts of {shown(name)} are not an object")

    def wrong(key: str, right: str) -> SystemFactsError:
        return SystemFactsError(f"{key} of {shown(name)} is not {right}")

    def text(key: str, default: str) -> str:
        value = untrusted.get(key, default)
        if not _is_text(value):
            raise wrong(key, f"a text of at most {TEXT_MAX} characters")
        return str(value)

    def truth(key: str) -> bool:
        value = untrusted.get(key, False)
        if not isinstance(value, bool):
            raise wrong(key, "true or false")
        return value

    tags = untrusted.get("tags", ())
    if not isinstance(tags, list | tuple) or len(tags) > TAGS_MAX or not all(map(_is_text, tags)):
        raise wrong("tags", f"a list of at most {TAGS_MAX} texts")
    dispvm = untrusted.get("default_dispvm")
    if dispvm is not None and not _is_text(dispvm):
        raise wrong("default_dispvm", "a text or null")
    return VmFacts(
        name=name,
        type=text("type", ADMIN_TYPE if name == ADMIN_VM else "AppVM"),
        tags=frozenset(tags),
        uuid=text("uuid", ""),
        default_dispvm=dispvm or None,
        template_for_dispvms=truth("template_for_dispvms"),
        power_state=text("power_state", RUNNING),
        internal=truth("internal"),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_MAX
