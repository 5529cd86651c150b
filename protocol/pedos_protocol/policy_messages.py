"""The messages about policy: its status, its verdicts, the facts behind them, and questions.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

import attr

from .codec import ITEMS_MAX
from .fields import (
    ERRORS_MAX,
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
    since,
)
from .frozen import frozen

Verb = Literal["list", "attach", "detach", "assign"]
Verdict = Literal["allow", "ask", "deny"]
#: When an assignment gives the VM the device. "required": it does not start without it.
#: "auto-attach": at its start if the device is there, and whenever it appears while the VM runs.
#: "ask": as that, once dom0's user has said yes.
Mode = Literal["required", "auto-attach", "ask"]

# The state of the policy


@frozen
class PolicyErrorInfo:
    """An error in a policy file, or in one of VMs' facts; line and column count from 1, 0 being
    unknown. `text` is the line itself, `help` the correction; each may be empty."""

    file: Text
    line: Natural
    column: Natural
    message: Text
    help: Text = ""
    text: Text = ""


@frozen
class PolicyStatus:
    """The policy in force (`rules` of `files` in `folders`, since `loaded_at`, ISO 8601), and, if
    not `ok`, the errors of newer files, those with VMs' facts included; what an answer cannot hold
    is counted."""

    ok: bool
    loaded_at: Text
    rules: Natural
    errors: Annotated[tuple[PolicyErrorInfo, ...], AtMost(ERRORS_MAX)]
    folders: Annotated[tuple[Text, ...], AtMost(ITEMS_MAX)] = ()
    files: Natural = 0
    errors_left_out: Natural = attr.field(default=0, kw_only=True, metadata=since(2))
    folders_left_out: Natural = attr.field(default=0, kw_only=True, metadata=since(2))


# Explaining


@frozen
class TraceStep:
    """A rule that was tried, and why it did or did not match."""

    rule: Text
    text: Text
    why: Text


@frozen
class DeviceExplain:
    """Show policy's verdict on a request of `source` (a VM, or dom0's user)."""

    verb: Verb
    device_class: ClassName
    vm: VmName
    backend: VmName
    device: DeviceId
    source: VmName = "dom0"


@frozen
class ExplainResult:
    """`rule` is FILE:LINE and `text` the rule itself; both None if none matched (`default`), or if
    none is needed.

    `reason` is one sentence: what the rule says, and why the request is denied if the rule allows
    it. `trace` are the rules that were tried before, the first of them first, less `trace_left_out`
    that an answer cannot hold. `assigned` is the mode in which the device is assigned to the VM.
    """

    verdict: Verdict
    rule: Text | None
    text: Text | None
    default: bool
    parameters: Options
    trace: Annotated[tuple[TraceStep, ...], AtMost(ITEMS_MAX)]
    reason: Text = ""
    trace_left_out: Natural = attr.field(default=0, kw_only=True, metadata=since(2))
    assigned: Mode | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class PolicyExplain:
    """Show policy's verdict on this request. An empty `target` means `@default`.

    For a device service a missing IDENTITY in `argument` is filled in.
    """

    service: Word
    argument: Word
    source: Word
    target: Word


@frozen
class PolicyExplained:
    """The decision. `rule` is FILE:LINE and `text` the rule itself, None if none matched
    (`default`); `argument` is the evaluated one. Entries of `candidates` and `trace` that do not
    fit into an answer are counted."""

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
    candidates_left_out: Natural = attr.field(default=0, kw_only=True, metadata=since(2))
    trace_left_out: Natural = attr.field(default=0, kw_only=True, metadata=since(2))


@frozen
class PolicyMine:
    """Show a VM policy's verdict on its own request, and nothing else."""

    verb: Verb
    device_class: ClassName
    backend: VmName
    device: DeviceId


@frozen
class PolicyVerdict:
    """`deny` also stands for what the VM may not see, and for what does not exist."""

    verdict: Verdict


# The facts about VMs


@frozen
class PolicySystem:
    """List policy's facts about VMs, one frame an answer; `after` is the last VM of the previous
    one."""

    after: VmName | None = None


@frozen
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


@frozen
class SystemVms:
    """The VMs in the order of their names, dom0 included; `more`: there are further ones."""

    vms: Annotated[tuple[SystemVm, ...], AtMost(ITEMS_MAX)]
    more: bool = False


# Asking dom0's user


@frozen
class PrompterRegister:
    """From now on, this connection asks dom0's user: it gets `prompt.ask`.

    With `calls` it also gets `prompt.call`.
    """

    calls: bool = attr.field(default=False, kw_only=True, metadata=since(2))


@frozen
class PromptAsk:
    """dom0 asks a client: may `source` do this? Which of `candidates` gets the device?

    `default` is the one to mark, `timeout_s` the seconds after which the answer is no. `assigned`:
    no command asks for it, but an assignment of that mode.
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
    assigned: Mode | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class PromptCall:
    """dom0 asks a client: may `source` call this `service`? In which of `candidates`?

    `argument` begins with `+`; `default` and `timeout_s` are those of `PromptAsk`. Only a client
    that registered for `calls` gets this.
    """

    request: Text
    source: VmName
    service: Word
    argument: Word
    candidates: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)]
    default: VmName | None
    timeout_s: Natural


@frozen
class PromptAnswer:
    """The answer of dom0's user; `target` is one of the candidates if it is "allow"."""

    verdict: Literal["allow", "deny"]
    target: VmName | None = None


@frozen
class PromptCancel:
    """The question of this request is withdrawn, and needs no answer."""

    request: Text
    reason: Text
