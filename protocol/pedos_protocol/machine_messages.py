"""The messages between dom0's service and the machine of local mode, which is its hypervisor.

They are in `messages` too. The machine imports no others, which would take a third of its start.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

from .codec import ITEMS_MAX
from .fields import AtMost, Domid, VmName
from .frozen import frozen
from .schema import Empty, Schema, Spec

VmState = Literal["Running", "Halted", "Transient"]


@frozen
class DomainList:
    """List all domains but dom0."""


@frozen
class DomainInfo:
    """A domain of local mode."""

    name: VmName
    domid: Domid | None
    state: VmState
    autostart: bool


@frozen
class DomainListed:
    """All domains but dom0."""

    domains: Annotated[tuple[DomainInfo, ...], AtMost(ITEMS_MAX)]


@frozen
class DomainStart:
    """Start a domain."""

    name: VmName


@frozen
class DomainStarted:
    """The id that the domain got for this life."""

    domid: Domid


@frozen
class DomainShutdown:
    """Shut a domain down."""

    name: VmName
    force: bool = False


@frozen
class DomainChanged:
    """A domain's state changed."""

    name: VmName
    domid: Domid | None
    state: VmState


SCHEMA = Schema(
    {
        # dom0 to the machine of local mode
        "domain.list": Spec(DomainList, DomainListed),
        "domain.start": Spec(DomainStart, DomainStarted),
        "domain.shutdown": Spec(DomainShutdown, Empty),
        "domain.changed": Spec(DomainChanged, None),
    }
)
parse_params = SCHEMA.parse_params
