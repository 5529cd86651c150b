"""Changes of the policy, and of the facts that it uses, as lines of the audit log.

A later reader of a decision has to see by which rules it was made: so the log records an accepted
policy, and a rejected one with its errors and what is in force instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_dom0.policy.loader import PolicyLoader
from pedos_dom0.vms.facts import reload_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pedos_dom0.audit.log import AuditWriter
    from pedos_dom0.policy.loader import Loaded
    from pedos_dom0.vms.facts import Facts, Read

# Errors in one line; the status has more of them.
ERRORS_SHOWN = 8
DENY_ALL = "nothing; everything is denied"


class AuditedPolicy(PolicyLoader):
    """A policy loader that records what it accepts and rejects, at a bounded rate."""

    def __init__(self, directories: Sequence[str | Path], audit: AuditWriter) -> None:
        super().__init__(directories)
        self._audit = audit
        self._rate = reload_rate()

    async def _reload_in_thread(self) -> None:
        await self._rate.turn()
        await super()._reload_in_thread()

    def _take(self, loaded: Loaded) -> bool:
        before, known = self.snapshot, set(self.errors)
        is_first = not self.status().loaded_at
        taken = super()._take(loaded)
        if taken and (self.snapshot is not before or is_first):
            self._audit.write(
                "policy",
                what="rules",
                outcome="taken",
                rules=len(self.snapshot),
                files=self.status().files,
                since=self.status().loaded_at,
            )
        elif not taken and (news := [error for error in self.errors if error not in known]):
            self._audit.write(
                "policy",
                what="rules",
                outcome="refused",
                errors=_shown(news),
                in_force=self.status().loaded_at or DENY_ALL,
            )
        return taken


def facts_audited(facts: Facts, audit: AuditWriter) -> Callable[[Read, bool], None]:
    """`facts` calls this after each reading that changed something."""

    def write(read: Read, taken: bool) -> None:
        if taken:
            audit.write(
                "policy", what="facts", outcome="taken", vms=len(read.said), files=read.files
            )
            return
        audit.write(
            "policy",
            what="facts",
            outcome="refused",
            errors=_shown(read.errors),
            in_force=facts.since if facts.known else DENY_ALL,
        )

    return write


def _shown(errors: Sequence[object]) -> list[str]:
    shown = [str(error) for error in errors[:ERRORS_SHOWN]]
    if len(errors) > ERRORS_SHOWN:
        shown.append(f"{len(errors) - ERRORS_SHOWN} errors more")
    return shown
