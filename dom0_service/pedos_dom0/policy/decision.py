"""The request and the answer: the one object that explain, audit, tests and tools show."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field
from pedos_protocol.frozen import frozen
from pedos_protocol.reasons import DEFAULT_DENY

from .model import NO_PARAMETERS, Rule
from .selectors import DeviceParts


@frozen
class Request:
    """A request. A device's `argument` is `+BACKEND:PORT:IDENTITY` from dom0's registry.

    A target "" means @default. The fields are as the caller has them: `evaluate` checks them.
    """

    service: str
    argument: str
    source: str
    target: str


@frozen
class TraceStep:
    """A rule that was tried, and why it did not match."""

    rule: Rule
    why: str


# Not frozen, which would double the cost of making one: every request makes a decision. Callers
# share it with the cache, and must not change it.
@define
class Decision:
    """The answer. `verdict` is allow, ask or deny; `rule` None means that none decided.

    - `reason`: one sentence for people.
    - `target`: for allow, what the call goes to: a VM's name or `@dispvm:TEMPLATE`.
    - `user`, `autostart`, `notify`, `read_only`, `parameters`: as the rule has them.
    - `candidates`: for ask, what the user may choose from, sorted; `default_target` is one of
      them, or None when nothing is to be preselected.
    - `trace`: the rules that were passed over, when it was asked for.
    """

    verdict: str
    rule: Rule | None
    reason: str = DEFAULT_DENY
    target: str | None = None
    user: str | None = None
    autostart: bool = True
    notify: bool = False
    read_only: bool = False
    parameters: Mapping[str, str] = NO_PARAMETERS
    candidates: tuple[str, ...] = ()
    default_target: str | None = None
    trace: tuple[TraceStep, ...] = field(default=())

    @property
    def default(self) -> bool:
        """Is it denied because no rule decided?"""
        return self.rule is None and self.verdict == "deny"

    def to_json(self, trace: bool = False) -> dict[str, object]:
        """The one JSON form; with `trace`, the rules that were passed over are in it too."""
        answer: dict[str, object] = {
            "verdict": self.verdict,
            "rule": None if self.rule is None else self.rule.where,
            "text": None if self.rule is None else self.rule.text,
            "default": self.default,
            "target": self.target,
            "user": self.user,
            "autostart": self.autostart,
            "notify": self.notify,
            "read_only": self.read_only,
            "candidates": list(self.candidates),
            "default_target": self.default_target,
            "reason": self.reason,
        }
        if trace:
            answer["trace"] = [
                {"rule": step.rule.where, "text": step.rule.text, "why": step.why}
                for step in self.trace
            ]
        return answer


@frozen
class Question:
    """A request that passed every check, in the words that rules are compared with."""

    service: str
    argument: str
    device: DeviceParts | None  # None: the service is not a device's
    source: str
    target: str  # a VM's name, @default, @dispvm or @dispvm:TEMPLATE
    default_dispvm: str | None
    source_words: frozenset[str]
    target_words: frozenset[str]
