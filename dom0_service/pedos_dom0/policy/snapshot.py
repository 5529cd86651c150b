"""The immutable snapshot of a policy, and the index that finds its rules.

The rules of one service word are a table. A lookup intersects three sets of rows, kept as the bits
of integers: rows whose source stands for the caller, rows whose target stands for the called VM,
and rows whose argument may match (arguments.py). The engine tries the rows in all three in file
order, which are a rule or two. The first two sets are the same for every request with that caller
or that target, so they are made once and kept; comparing an integer of ten thousand bits takes a
fraction of a microsecond.

The index depends on the rules alone, not on which VMs exist: a request brings the words that stand
for its VMs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Sequence
from typing import ClassVar

from attrs import field, frozen

from .arguments import ANY, Arguments
from .decision import Question
from .model import Rule
from .rows import Column, column, places, rows_of
from .selectors import NO, SURE, DeviceParts
from .tokens import service_tokens
from .yielding import YieldNow, never

# Callers or targets whose sets of rows are kept: more than a machine has VMs. Beyond this, all are
# forgotten.
KEPT_MAX = 1024

_Kept = dict[frozenset[str], dict[str, int]]  # by the words of a VM and the word of the service


class Table:
    """The rules of one service word. A row is a rule's place among them, from 0 in file order.

    `offers` has, for `ask`, the rows under the word of the target that they would give: that of
    their redirect if they have one, else of their target.
    """

    __slots__ = ("arguments", "denies", "offers", "outcomes", "positions", "sources", "targets")

    def __init__(self, rules: Sequence[Rule], positions: list[int], yield_now: YieldNow) -> None:
        """Of the rules of a policy those at `positions`."""
        self.positions = tuple(positions)
        some = [rules[position] for position in positions]
        self.sources: Column = column((rule.source for rule in some), yield_now)
        self.targets: Column = column((rule.target for rule in some), yield_now)
        self.offers = self.targets
        if any(rule.outcome.target for rule in some):
            offered = (rule.outcome.target or rule.target for rule in some)
            self.offers = column(offered, yield_now)
        self.arguments: Arguments | None = None
        self.outcomes: Column = {}
        self.denies = 0
        if any(rule.argument != ANY for rule in some):
            self.arguments = Arguments([rule.argument for rule in some], yield_now)
            self.outcomes = column((rule.outcome.text for rule in some), yield_now)
            self.denies = rows_of(column((rule.action for rule in some), yield_now), ("deny",))

    def first(self, rows: int, rules: tuple[Rule, ...], question: Question, best: int) -> int:
        """The position of the first of `rows` whose argument matches, if that is before `best`."""
        if self.arguments is not None:
            rows = self.arguments.narrowed(rows, question.argument)
        while rows:
            lowest = rows & -rows
            position = self.positions[lowest.bit_length() - 1]
            if position >= best:
                break
            if rules[position].takes(question.argument, question.device):
                return position
            rows ^= lowest
        return best

    def possible(self, rows: int, rules: tuple[Rule, ...], device: DeviceParts) -> list[int]:
        """The positions of those of `rows` that may match, up to the first that settles it: it is
        sure to match, or denies, which is the strictest action. Of rows that decide the same the
        first is enough."""
        if self.arguments is not None:
            if device.open is not None and device.open.fill is None:
                return self._of_place(rows & self.arguments.of_place(device), self.arguments)
            rows = self.arguments.narrowed_open(rows, device)
        found = []
        while rows:
            lowest = rows & -rows
            position = self.positions[lowest.bit_length() - 1]
            match = rules[position].takes_open(device)
            if match != NO:
                found.append(position)
                if match == SURE or rules[position].action == "deny":
                    break
            rows ^= lowest
        return found

    def _of_place(self, rows: int, arguments: Arguments) -> list[int]:
        """`possible` for a device of which only the place is known; `rows` are for that. Any VM can
        ask for a device that does not exist, so the cost depends on the number of different
        outcomes, not of rules."""
        ends = rows & (arguments.any_identity | self.denies)
        if ends:
            rows &= ends ^ (ends - 1)  # up to the first of them
        firsts = {rows.bit_length()} if ends else set()
        for outcome in self.outcomes:
            some = rows & rows_of(self.outcomes, (outcome,))
            firsts.add((some & -some).bit_length())
        return [self.positions[row - 1] for row in sorted(firsts) if row]


def _tuple(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


@frozen(eq=False)
class Snapshot:
    """All rules of a policy in their order, indexed. A new policy is a new snapshot.

    `yield_now` is called at intervals while the index is made, for a caller that makes a large one
    beside an event loop.
    """

    DENY_ALL: ClassVar[Snapshot]

    rules: tuple[Rule, ...] = field(converter=_tuple)
    _yield_now: YieldNow = field(default=never, repr=False)
    _tables: dict[str, Table] = field(init=False, repr=False)
    _by_source: _Kept = field(init=False, repr=False, factory=dict)
    _by_target: _Kept = field(init=False, repr=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_tables", _tables(self.rules, self._yield_now))
        object.__setattr__(self, "_yield_now", never)

    def __len__(self) -> int:
        return len(self.rules)

    def find(self, question: Question) -> Rule | None:
        """The first rule in file order that matches."""
        rules = self.rules
        best = limit = len(rules)
        for table, rows in self._tables_for(question):
            if table.positions[0] < best:
                best = table.first(rows, rules, question, best)
        return rules[best] if best < limit else None

    def possible(self, question: Question, device: DeviceParts) -> list[Rule]:
        """For a device that is not fully known, the rules of which one is the first that matches:
        those that may, in file order, up to the first that is sure to, or that denies."""
        rules = self.rules
        found: list[int] = []
        for table, rows in self._tables_for(question):
            found += table.possible(rows, rules, device)
        possible = []
        for position in sorted(found):
            possible.append(rules[position])
            if rules[position].action == "deny" or rules[position].takes_open(device) == SURE:
                break
        return possible

    def _tables_for(self, question: Question) -> Iterator[tuple[Table, int]]:
        """The tables for the service, with the rows whose source and target match."""
        tables = self._tables
        sources = _kept(self._by_source, question.source_words)
        targets = _kept(self._by_target, question.target_words)
        for service in service_tokens(question.service):
            table = tables.get(service)
            if table is None:
                continue
            rows = sources.get(service)
            if rows is None:
                rows = sources[service] = rows_of(table.sources, question.source_words)
            if not rows:
                continue
            some = targets.get(service)
            if some is None:
                some = targets[service] = rows_of(table.targets, question.target_words)
            if rows & some:
                yield table, rows & some

    def offers(self, question: Question, known: KeysView[str]) -> list[tuple[int, str]]:
        """(position, word) of each rule that decides over the targets which the word stands for.

        Ignores the target of the request; of the words only those in `known`. In file order.
        """
        limit = len(self.rules)
        found: dict[str, int] = {}
        for service in service_tokens(question.service):
            table = self._tables.get(service)
            if table is None:
                continue
            rows = rows_of(table.sources, question.source_words)
            for word in table.offers.keys() & known:
                before = found.get(word, limit)
                some = rows & rows_of(table.offers, (word,))
                first = self._first_offer(table, some, question, before)
                if first < before:
                    found[word] = first
        return sorted((position, word) for word, position in found.items())

    def _first_offer(self, table: Table, rows: int, question: Question, best: int) -> int:
        """For a device that is not fully known, a rule removes targets if it may match, and adds
        them only if it is sure to."""
        device = question.device
        if device is None or device.open is None:
            return table.first(rows, self.rules, question, best)
        for position in table.possible(rows, self.rules, device):
            rule = self.rules[position]
            if rule.action == "deny" or rule.takes_open(device) == SURE:
                return min(position, best)
        return best


def _kept(by_words: _Kept, words: frozenset[str]) -> dict[str, int]:
    """The sets of rows for those words, by service word; filled on demand."""
    found = by_words.get(words)
    if found is None:
        if len(by_words) >= KEPT_MAX:
            by_words.clear()
        found = by_words[words] = {}
    return found


def _tables(rules: tuple[Rule, ...], yield_now: YieldNow) -> dict[str, Table]:
    services = places((rule.service for rule in rules), yield_now)
    return {service: Table(rules, positions, yield_now) for service, positions in services}


Snapshot.DENY_ALL = Snapshot(())
