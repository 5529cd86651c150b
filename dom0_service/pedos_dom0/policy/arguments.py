"""How rules are found by their argument, where it tells more than their source and target do.

A rule without `*` in its argument is found under the whole of it; one with `*` under a run of
characters (a gram) that any argument it matches has to contain, of which the one that the fewest
rules have is taken. So ten thousand rules for ten thousand devices cost about what ten do. Rules
whose globs leave no three characters in a row are left to the index by source and target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from .decision import Question
from .model import SELECTOR_PARTS, Rule

# Of one service, up to as many are left to the other index: taking a request's argument apart
# costs as much as looking at them one by one.
SCAN_MAX = 16
# Likewise the rules of a source and a target that have few.
PAIR_MAX = 8
# Characters of a gram: six are enough for a USB vendor with its colons, three for a port like
# `sd*` with the colon before it.
GRAMS = (6, 3)
# Rules between two calls of `breathe`.
_BREATH = 16

Grams = tuple[set[str], ...]


def grams_in(text: str) -> Grams:
    """Every run of so many characters, for each size of GRAMS."""
    return tuple({text[at : at + size] for at in range(len(text) - size + 1)} for size in GRAMS)


class Arguments:
    """Some rules of one service word, by what their arguments have to contain."""

    __slots__ = ("_exact", "_grams", "first")

    def __init__(self, found: dict[str, tuple[int, ...]]) -> None:
        """`found` has positions by one of their `_keys`; `first` is the first of them all."""
        self.first = min(some[0] for some in found.values())
        self._exact: dict[str, tuple[int, ...]] = {}
        self._grams: tuple[dict[str, tuple[int, ...]], ...] = tuple({} for _ in GRAMS)
        for key, positions in found.items():
            of = self._exact if key[0] == "=" else self._grams[GRAMS.index(len(key) - 1)]
            of[key[1:]] = positions

    def near(self, question: Question, grams: Grams) -> Iterable[int]:
        """Positions of all rules whose argument may match, and of few others."""
        found: list[int] = []
        for text in _prefixes(question):
            found += self._exact.get(text, ())
        for by_gram, some in zip(self._grams, grams, strict=True):
            for gram in by_gram.keys() & some:
                found += by_gram[gram]
        return found


def _prefixes(question: Question) -> tuple[str, ...]:
    """Every argument without `*` that this one matches."""
    if question.device is None:
        return (question.argument,)
    backend, port, _ = question.device
    return (question.argument, f"+{backend}:{port}", f"+{backend}")


def _keys(rule: Rule) -> set[str]:
    """`=` and the argument, or `~` and a gram that every argument has which the globs match."""
    text = rule.argument
    if "*" not in text:
        return {"=" + text}
    if text.count(":") < len(SELECTOR_PARTS) - 1:
        text += ":"  # the request has all parts
    return {
        "~" + piece[at : at + size]
        for size in GRAMS
        for piece in text.split("*")
        for at in range(len(piece) - size + 1)
    }


def by_argument(
    rules: tuple[Rule, ...], positions: list[int], breathe: Callable[[], None]
) -> tuple[Arguments | None, set[int]]:
    """The rules of one service word that are found sooner by their argument, and which they are.

    `positions` are those of that service word whose argument is not `*`.
    """
    taken: set[int] = set()
    if len(positions) <= SCAN_MAX:
        return None, taken
    frequency: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for number, position in enumerate(positions):
        if number % _BREATH == 0:
            breathe()
        rule = rules[position]
        frequency.update(_keys(rule))
        pairs[rule.source, rule.target] += 1
    found: dict[str, list[int]] = {}
    given: Counter[str] = Counter()
    for number, position in enumerate(positions):
        if number % _BREATH == 0:
            breathe()
        rule = rules[position]
        keys = _keys(rule)
        if not keys:
            continue
        # Of those that are as rare, the one that the fewest rules have been given so far.
        key = min(keys, key=lambda key: (frequency[key], given[key], key))
        alike = pairs[rule.source, rule.target]
        if alike > PAIR_MAX and frequency[key] < alike:
            given[key] += 1
            found.setdefault(key, []).append(position)
            taken.add(position)
    if not taken:
        return None, taken
    # Tuples of numbers cost the garbage collector nothing; the lists go one by one.
    sealed: dict[str, tuple[int, ...]] = {}
    while found:
        if len(found) % _BREATH == 0:
            breathe()
        key, some = found.popitem()
        sealed[key] = tuple(some)
    return Arguments(sealed), taken
