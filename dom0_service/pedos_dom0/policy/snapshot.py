"""The immutable snapshot of a policy, and the index through which its rules are found.

The index is nested: service word, source word, target word, and then a bucket of the rules with
those three words. It depends on the rules alone, not on which VMs there are: a request brings the
words that stand for what it asks, and whatever is found under them matches but for the argument.
Rules that their argument tells apart better are found by that instead (arguments.py).

Rules are kept as positions in `rules`. Numbers, and dicts and tuples of nothing but numbers and
texts, cost the garbage collector nothing, which would otherwise hold up the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, KeysView
from typing import ClassVar

from attrs import field, frozen

from .arguments import Arguments, Grams, by_argument, grams_in
from .decision import Question
from .model import Rule
from .tokens import service_tokens

#: One rule, or several in file order.
Bucket = int | tuple[int, ...]


class Node:
    """All rules of one service word and one source word, if there are several.

    `first` is the position of the first of them. `offers` has, for `ask`, the rules under the word
    of what they would give: that of their redirect if they have one, else of their target. It is
    the same object as `targets` where no rule redirects.
    """

    __slots__ = ("first", "offers", "targets")

    def __init__(self, first: int) -> None:
        self.first = first
        self.targets: dict[str, Bucket] = {}
        self.offers: dict[str, Bucket] = self.targets


_Index = dict[str, dict[str, int | Node]]


def _tuple(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


def _nothing() -> None:
    pass


@frozen(eq=False)
class Snapshot:
    """All rules of a policy in their order, indexed. A new policy is a new snapshot.

    `breathe` is called now and then while the index is made, for whoever makes a large one beside
    an event loop.
    """

    DENY_ALL: ClassVar[Snapshot]

    rules: tuple[Rule, ...] = field(converter=_tuple)
    _breathe: Callable[[], None] = field(default=_nothing, repr=False)
    _index: _Index = field(init=False, repr=False)
    _arguments: dict[str, Arguments] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        builder = _Builder(self.rules, self._breathe)
        object.__setattr__(self, "_arguments", builder.by_argument())
        object.__setattr__(self, "_index", builder.by_words())
        object.__setattr__(self, "_breathe", _nothing)

    def __len__(self) -> int:
        return len(self.rules)

    def find(self, question: Question) -> Rule | None:
        """The first rule in file order that matches."""
        rules, argument, device = self.rules, question.argument, question.device
        index, sources, targets = self._index, question.source_words, question.target_words
        best = limit = len(rules)
        for service in service_tokens(question.service):
            by_source = index.get(service)
            if by_source is None:
                continue
            for source in by_source.keys() & sources:
                node = by_source[source]
                if not isinstance(node, Node):
                    rule = rules[node]
                    if node < best and rule.target in targets and rule.takes(argument, device):
                        best = node
                elif node.first < best:
                    best = self._first_of(node, question, best)
        if self._arguments:
            for position in self._near(question, best):
                rule = rules[position]
                if (
                    position < best
                    and rule.source in sources
                    and rule.target in targets
                    and rule.takes(argument, device)
                ):
                    best = position
        return rules[best] if best < limit else None

    def _near(self, question: Question, best: int) -> list[int]:
        """Positions of all rules before `best` that are found by their argument, and may match."""
        found: list[int] = []
        grams: Grams | None = None
        for service in service_tokens(question.service):
            arguments = self._arguments.get(service)
            if arguments is not None and arguments.first < best:
                grams = grams_in(question.argument) if grams is None else grams
                found += arguments.near(question, grams)
        return found

    def _first_of(self, node: Node, question: Question, best: int) -> int:
        """The position of the first rule of a node that matches, or `best` if that is before it."""
        rules, buckets = self.rules, node.targets
        for word in buckets.keys() & question.target_words:
            best = _first_in(buckets[word], rules, question, best)
        return best

    def offers(self, question: Question, known: KeysView[str]) -> list[tuple[int, str]]:
        """(position, word) of each rule that decides over the targets which the word stands for.

        The target that is asked for is left out of account; of the words only those in `known`.
        In file order.
        """
        rules, argument, device = self.rules, question.argument, question.device
        limit = len(rules)
        found: dict[str, int] = {}
        nodes = (
            by_source[source]
            for service in service_tokens(question.service)
            if (by_source := self._index.get(service)) is not None
            for source in by_source.keys() & question.source_words
        )
        for node in nodes:
            if not isinstance(node, Node):
                rule = rules[node]
                word = rule.outcome.target or rule.target
                earlier = node < found.get(word, limit)
                if word in known and earlier and rule.takes(argument, device):
                    found[word] = node
                continue
            for word in node.offers.keys() & known:
                best = _first_in(node.offers[word], rules, question, found.get(word, limit))
                if best < limit:
                    found[word] = best
        for position in self._near(question, limit):
            rule = rules[position]
            word = rule.outcome.target or rule.target
            if word not in known or position >= found.get(word, limit):
                continue
            if rule.source in question.source_words and rule.takes(argument, device):
                found[word] = position
        return sorted((position, word) for word, position in found.items())


def _first_in(bucket: Bucket, rules: tuple[Rule, ...], question: Question, best: int) -> int:
    """The position of the first rule whose argument matches, if that is before `best`."""
    for position in (bucket,) if isinstance(bucket, int) else bucket:
        if position >= best:
            break
        if rules[position].takes(question.argument, question.device):
            return position
    return best


# Rules between two calls of `breathe`: a fraction of a millisecond.
_BREATH = 32


class _Builder:
    """Makes the index of a snapshot, with a breath every few rules."""

    def __init__(self, rules: tuple[Rule, ...], breathe: Callable[[], None]) -> None:
        self._rules = rules
        self._breathe = breathe
        self._index: _Index = {}
        # The nodes, and the words in them under which there are several rules so far.
        self._lists: dict[Node, dict[str, list[int]]] = {}
        self._redirecting: set[Node] = set()
        self._taken: set[int] = set()  # those that are found by their argument

    def by_argument(self) -> dict[str, Arguments]:
        positions: dict[str, list[int]] = {}
        for position, rule in enumerate(self._rules):
            if position % _BREATH == 0:
                self._breathe()
            if rule.argument != "*":
                positions.setdefault(rule.service, []).append(position)
        found: dict[str, Arguments] = {}
        for service, some in positions.items():
            arguments, taken = by_argument(self._rules, some, self._breathe)
            if arguments is not None:
                found[service] = arguments
                self._taken |= taken
        return found

    def by_words(self) -> _Index:
        """Of all others."""
        for position, rule in enumerate(self._rules):
            if position % _BREATH == 0:
                self._breathe()
            if position in self._taken:
                continue
            by_source = self._index.setdefault(rule.service, {})
            found = by_source.setdefault(rule.source, position)
            if found == position:
                continue
            if isinstance(found, Node):
                node = found
            else:
                node = by_source[rule.source] = Node(found)
                self._add(node, found)
            self._add(node, position)
        for number, node in enumerate(self._redirecting):
            if number % _BREATH == 0:
                self._breathe()
            self._make_offers(node)
        self._seal()
        return self._index

    def _add(self, node: Node, position: int) -> None:
        rule = self._rules[position]
        bucket = node.targets.setdefault(rule.target, position)
        if bucket != position:
            lists = self._lists.setdefault(node, {})
            # The bucket is the first position for as long as the list is being made.
            lists.setdefault(rule.target, [bucket]).append(position)  # type: ignore[list-item]
        if rule.outcome.target is not None:
            self._redirecting.add(node)

    def _make_offers(self, node: Node) -> None:
        node.offers = {}
        lists = self._lists.get(node, {})
        found: dict[str, list[int]] = {}
        for word, bucket in node.targets.items():
            for position in lists.get(word, (bucket,)):
                assert type(position) is int
                found.setdefault(self._rules[position].outcome.target or word, []).append(position)
        for word, positions in found.items():
            positions.sort()
            node.offers[word] = self._bucket(positions)

    def _seal(self) -> None:
        """Lists of positions become buckets; they are let go of one by one."""
        number = 0
        while self._lists:
            node, lists = self._lists.popitem()
            for word, positions in lists.items():
                number += 1
                if number % _BREATH == 0:
                    self._breathe()
                node.targets[word] = self._bucket(positions)

    def _bucket(self, positions: list[int]) -> Bucket:
        """Without those after one for any argument, which never decide."""
        for number, position in enumerate(positions):
            if self._rules[position].argument == "*":
                del positions[number + 1 :]
                break
        return positions[0] if len(positions) == 1 else tuple(positions)


Snapshot.DENY_ALL = Snapshot(())
