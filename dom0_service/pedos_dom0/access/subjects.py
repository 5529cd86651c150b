"""The subject of a request: policy decides about it, a person sees it, the audit log names it.

It is a device with an operation on it, or a service with its argument. Both have the same methods,
so that authorizer, prompters and audit need not know which it is. Subjects are values: the
properties of a device are looked up in the registry when they matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import attrs
from pedos_protocol.frozen import frozen

from pedos_dom0.drivers.base import DOM0_NAME

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from pedos_protocol.messages import Verb

    from pedos_dom0.tables.registry import DeviceKey, Registry


# What stands for the port in an argument that has none: rules for any port match it.
ANY_PORT = "any-port"


# Not frozen, which would triple the cost of making one: a listing makes one for each device. It is
# not changed all the same.
@attrs.define(unsafe_hash=True)
class DeviceSubject:
    """`verb` is the operation on a device; `str()` is SOURCE:ID."""

    verb: Verb
    key: DeviceKey
    #: The request with which a prompter is asked about it.
    question: ClassVar[str] = "prompt.ask"

    def __str__(self) -> str:
        return str(self.key)

    @property
    def service(self) -> str:
        """The device as policy and prompters know it."""
        return f"device.{self.verb}.{self.key.device_class}"

    def asked(self, registry: Registry) -> tuple[str, str]:
        """Service and argument of the policy request."""
        return self.service, device_argument(self.key, registry)

    @property
    def may_be_sent_on(self) -> bool:
        """Whether a rule can redirect it to another VM than the named one."""
        return self.verb == "attach"

    def choices(
        self, vm: str, candidates: Iterable[str], domains: Container[str]
    ) -> tuple[str, ...]:
        """The candidates of a decision that dom0's user may choose, where `vm` was named: those
        that can have the device."""
        if not self.may_be_sent_on:
            return (vm,) if vm in map(as_named, candidates) else ()
        return tuple(name for name in candidates if name in domains and name != self.key.backend)

    def seen(self, registry: Registry) -> object:
        """What dom0's user agrees to. If it differs later, the device is another one, as far as its
        source can tell."""
        device, since = registry.get(self.key), registry.since(self.key)
        if device is None:
            return (since,)
        parent = (device.parent_class, device.parent)
        told = (device.instance, device.identity, device.description, device.size, *parent)
        return (since, *told)

    def shown(self, registry: Registry) -> Mapping[str, object]:
        """What a person sees beside `names`: fields of a question, and of its line."""
        device = registry.get(self.key)
        if device is None:
            return {"identity": "", "description": "", "size": None}
        return {
            "identity": device.identity,
            "description": device.description,
            "size": device.size,
        }

    def described(self, registry: Registry) -> str:
        """`str()` with the details by which a person recognises it."""
        device = registry.get(self.key)
        if device is None or not (device.identity or device.description):
            return str(self)
        quoted = f'"{device.description}"' if device.description else None
        return f"{self} ({' '.join(filter(None, (device.identity, quoted)))})"

    @property
    def names(self) -> Mapping[str, str]:
        """The fields that name it in a line of a question, and in the data of an error."""
        return {"device": str(self)}

    @property
    def decided(self) -> Mapping[str, str]:
        """The fields that name it in the line of a decision, beside service and argument."""
        return {"device_class": self.key.device_class, "verb": self.verb, **self.names}

    def prompt(self, shown: Mapping[str, Any], *, read_only: bool) -> Mapping[str, Any]:
        """Its fields in a question on the wire, beside its service."""
        key = self.key
        names = {"device_class": key.device_class, "backend": key.backend, "device": key.device}
        return {**names, **shown, "read_only": read_only}

    @property
    def wish(self) -> str:
        """The request, in a sentence about a question."""
        return f"{self.service} of {self}"

    def act(self, vm: str) -> str:
        """The operation, in a sentence that denies it."""
        return f"{self.verb} {self} for {vm}"


@attrs.define(unsafe_hash=True)
class AssignmentSubject(DeviceSubject):
    """An assignment to a port, whatever is there (`identity` is "", which is not known), or to a
    device that is not there, at its port or at any (then the key has none)."""

    identity: str

    def __str__(self) -> str:
        return str(self.key) if self.key.device else f"{self.key.backend}:*:{self.identity}"

    def asked(self, registry: Registry) -> tuple[str, str]:
        port = self.key.device or ANY_PORT
        return self.service, f"+{self.key.backend}:{port}:{self.identity}"


@frozen
class ServiceSubject:
    """A service called with an argument, `+` and the rest; `str()` is both.

    The methods are those of a device's subject.
    """

    service: str
    argument: str = "+"

    # A rule can redirect a call to another VM than the named one.
    may_be_sent_on: ClassVar[bool] = True
    verb: ClassVar[str] = "call"
    question: ClassVar[str] = "prompt.call"

    def __str__(self) -> str:
        return f"{self.service}{self.argument}"

    def asked(self, registry: Registry) -> tuple[str, str]:
        return self.service, self.argument

    def choices(
        self,
        vm: str,
        candidates: Iterable[str],
        domains: Container[str],
    ) -> tuple[str, ...]:
        # There are no disposables yet, and a question names VMs.
        return tuple(as_named(name) for name in candidates if not name.startswith("@dispvm"))

    def seen(self, registry: Registry) -> object:
        return ()

    def shown(self, registry: Registry) -> Mapping[str, object]:
        return {}

    def described(self, registry: Registry) -> str:
        return str(self)

    def prompt(self, shown: Mapping[str, Any], *, read_only: bool) -> Mapping[str, Any]:
        return {"argument": self.argument}

    @property
    def names(self) -> Mapping[str, str]:
        return {"service": self.service, "argument": self.argument}

    @property
    def decided(self) -> Mapping[str, str]:
        return {}

    @property
    def wish(self) -> str:
        return str(self)

    def act(self, vm: str) -> str:
        return f"call {self} in {vm}"


Subject: TypeAlias = DeviceSubject | ServiceSubject


def device_argument(key: DeviceKey, registry: Registry) -> str:
    """A device as policy knows it.

    Its identity is what its source VM reported, never what a request says; it is empty for a device
    that is gone, which can still be detached.
    """
    device = registry.get(key)
    return f"+{key.backend}:{key.device}:{'' if device is None else device.identity}"


def as_named(target: str) -> str:
    """A resolved target under the VM names of this package."""
    return DOM0_NAME if target == "@adminvm" else target
