"""The targets that dom0's user can choose from when a rule says `ask`.

They are those that the rules would allow or ask for. The engine goes through the rules from the
last to the first; each adds what its target (or its redirect) stands for, or with `deny` removes
that, so that an earlier rule overrides a later one.
"""

from __future__ import annotations

from .decision import Question
from .model import Rule
from .snapshot import Snapshot
from .system import ADMIN_VM, System
from .tokens import ADMIN, ANY, ANY_VM, DEFAULT, DISPVM, DISPVM_OF, DISPVM_TAG, TAG, TYPE, UUID


def of(question: Question, rule: Rule, snapshot: Snapshot, system: System) -> tuple[str, ...]:
    """The candidates for an `ask` that `rule` has decided, sorted; none means a deny."""
    outcome = rule.outcome
    if question.device is not None and question.target != DEFAULT:
        # "May work have this stick?" leaves only yes or no; and a VM may well ask for something for
        # itself, which a call to another VM's service cannot be.
        found = {question.target if outcome.target is None else outcome.target}
    elif outcome.target is not None:
        found = {outcome.target}
    else:
        found = _offered(question, snapshot, system)
        if DISPVM in found:
            found.discard(DISPVM)
            if question.default_dispvm is not None:
                found.add(DISPVM_OF + question.default_dispvm)
    if ADMIN in found:
        found.discard(ADMIN)
        found.add(ADMIN_VM)
    if not outcome.autostart:
        found = {target for target in found if system.runs(target)}
    return tuple(sorted(found))


def _offered(question: Question, snapshot: Snapshot, system: System) -> set[str]:
    reach = _reach(system)
    found: set[str] = set()
    for position, word in reversed(snapshot.offers(question, reach.keys())):
        if snapshot.rules[position].action == "deny":
            found -= reach[word]
        else:
            found |= reach[word]
    found.discard(question.source)
    return {name for name in found if not ((vm := system.get(name)) and vm.internal)}


def _reach(system: System) -> dict[str, set[str]]:
    """What each word of the target column stands for among the existing VMs."""
    if system.reach:
        return system.reach
    everything = {DISPVM}
    # As in the reference, `@adminvm` adds and removes that word alone: it does not undo what
    # another rule gives by dom0's name, type, tag or UUID, nor do these undo what it gives.
    reach: dict[str, set[str]] = {DISPVM: {DISPVM}, ADMIN: {ADMIN}}
    for name, vm in system.domains.items():
        reach.setdefault(name, set()).add(name)
        everything.add(name)
        reach.setdefault(TYPE + vm.type, set()).add(name)
        for tag in vm.tags:
            reach.setdefault(TAG + tag, set()).add(name)
        if vm.uuid:
            reach.setdefault(UUID + vm.uuid, set()).add(name)
        if vm.template_for_dispvms:
            disposable = DISPVM_OF + name
            everything.add(disposable)
            reach[disposable] = {disposable}
            for tag in vm.tags:
                reach.setdefault(DISPVM_TAG + tag, set()).add(disposable)
    reach[ANY] = everything
    reach[ANY_VM] = everything - {ADMIN_VM}
    system.reach.update(reach)
    return system.reach
