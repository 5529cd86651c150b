"""The messages about policy: its state, its verdicts, the facts behind them, and questions.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

import attr

from .codec import ITEMS_MAX
from .fields import (
    ERRORS_MAX,
    OPTIONAL,
    TAGS_MAX,
    AtMost,
    ClassName,
    DeviceId,
    Identity,
    Line,
    Natural,
    Options,
    Text,
    VmName,
    Word,
)

Verb = Literal["list", "attach", "detach", "assign"]
Verdict = Literal["allow", "ask", "deny"]

# The state of the policy


@attr.frozen
class PolicyErrorInfo:
    """An error in a policy file, or in one of VMs' facts; line and column count from 1, 0 being
    unknown. `text` is the line itself, `help` what would be right; each may be empty."""

    file: Text
    line: Natural
    column: Natural
    message: Text
    help: Text = ""
    text: Text = ""


@attr.frozen
class PolicyStatus:
    """The policy that is in force (`rules` of `files` in `folders`, since `loaded_at`, ISO 8601),
    and what is wrong with newer files, those with VMs' facts included, if not `ok`; less what an
    answer cannot hold, which is counted."""

    ok: bool
    loaded_at: Text
    rules: Natural
    errors: Annotated[tuple[PolicyErrorInfo, ...], AtMost(ERRORS_MAX)]
    folders: Annotated[tuple[Text, ...], AtMost(ITEMS_MAX)] = ()
    files: Natural = 0
    errors_left_out: Natural = attr.field(default=0, kw_only=True, metadata=OPTIONAL)
    folders_left_out: Natural = attr.field(default=0, kw_only=True, metadata=OPTIONAL)


# Explaining


@attr.frozen
class TraceStep:
    """A rule that was looked at, and why it did or did not match."""

    rule: Text
    text: Text
    why: Text


@attr.frozen
class DeviceExplain:
    """What would policy say if `source` (a VM, or dom0's user) asked?"""

    verb: Verb
    device_class: ClassName
    vm: VmName
    backend: VmName
    device: DeviceId
    source: VmName = "dom0"


@attr.frozen
class ExplainResult:
    """`rule` is FILE:LINE and `text` the rule itself; both None if none matched (`default`), or if
    none is needed.

    `reason` is one sentence: what the rule says, and what stands against it if it is a no all the
    same. `trace` are the rules that were looked at before, the first of them first, less
    `trace_left_out` that an answer cannot hold.
    """

    verdict: Verdict
    rule: Text | None
    text: Text | None
    default: bool
    parameters: Options
    trace: Annotated[tuple[TraceStep, ...], AtMost(ITEMS_MAX)]
    reason: Text = ""
    trace_left_out: Natural = attr.field(default=0, kw_only=True, metadata=OPTIONAL)


@attr.frozen
class PolicyExplain:
    """What would policy say of this request? An empty `target` means `@default`.

    For a device service an IDENTITY that is left out of `argument` is filled in.
    """

    service: Word
    argument: Word
    source: Word
    target: Word


@attr.frozen
class PolicyExplained:
    """The decision. `rule` is FILE:LINE and `text` the rule itself, None if none matched
    (`default`); `argument` is the one that was evaluated. Of `candidates` and of `trace` is counted
    what an answer cannot hold."""

    argument: Text
    verdict: Verdict
    rule: Text | None
    text: Text | None
    default: bool
    target: Text | None
    user: Text | None
    autostart: bool
    notify: bool
    read_only: bool
    candidates: Annotated[tuple[Text, ...], AtMost(ITEMS_MAX)]
    default_target: Text | None
    reason: Text
    trace: Annotated[tuple[TraceStep, ...], AtMost(ITEMS_MAX)]
    candidates_left_out: Natural = attr.field(default=0, kw_only=True, metadata=OPTIONAL)
    trace_left_out: Natural = attr.field(default=0, kw_only=True, metadata=OPTIONAL)


@attr.frozen
class PolicyMine:
    """May the VM that asks do this, for itself? It learns the verdict and nothing else."""

    verb: Verb
    device_class: ClassName
    backend: VmName
    device: DeviceId


@attr.frozen
class PolicyVerdict:
    """`deny` also stands for what the VM may not see, and for what does not exist."""

    verdict: Verdict


# The facts about VMs


@attr.frozen
class PolicySystem:
    """What does policy know of the VMs? An answer is one frame; `after` is the last VM of the
    answer before, for the next."""

    after: VmName | None = None


@attr.frozen
class SystemVm:
    """The facts about one VM that rules can name."""

    name: VmName
    type: Text
    tags: Annotated[tuple[Text, ...], AtMost(TAGS_MAX)]
    uuid: Text
    default_dispvm: VmName | None
    template_for_dispvms: bool
    power_state: Text
    internal: bool


@attr.frozen
class SystemVms:
    """The VMs in the order of their names, dom0 included; `more`: there are further ones."""

    vms: Annotated[tuple[SystemVm, ...], AtMost(ITEMS_MAX)]
    more: bool = False


# Asking dom0's user


@attr.frozen
class PrompterRegister:
    """From now on, let this connection ask dom0's user: it is sent `prompt.ask`."""


@attr.frozen
class PromptAsk:
    """dom0 asks a client: may `source` do this? Which of `candidates` is to have the device?

    `default` is the one to mark, `timeout_s` the seconds after which the answer is no.
    """

    request: Text
    source: VmName
    service: Text
    device_class: ClassName
    backend: VmName
    device: DeviceId
    identity: Identity
    description: Line
    size: Natural | None
    read_only: bool
    candidates: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)]
    default: VmName | None
    timeout_s: Natural


@attr.frozen
class PromptAnswer:
    """What dom0's user said; `target` is one of the candidates if it is "allow"."""

    verdict: Literal["allow", "deny"]
    target: VmName | None = None


@attr.frozen
class PromptCancel:
    """The question of this request has lapsed: it is to be taken away, and not answered."""

    request: Text
    reason: Text
