"""Answers of many pages: what is asked, and everything that was answered."""

from __future__ import annotations

from pedos_cli.answers import take_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    Call = Callable[[str, dict[str, object]], dict[str, object]]
    Pages = Generator[
        tuple[str, dict[str, object]],
        dict[str, object],
        tuple[list[dict[str, object]], dict[str, object]],
    ]


def pages_of(
    method: str,
    wanted: Mapping[str, object],
    what: str,
    name_of: Callable[[Mapping[str, object]], object],
) -> Pages:
    """Yield each request, receive its answer, and return everything that is wanted and the last
    answer: whoever drives this can wait for answers as it likes.

    An answer holds some hundred, and says whether more follow its last one, which is named then.
    """
    found: list[dict[str, object]] = []
    after = None
    while True:
        answer = yield method, {**wanted, "after": after}
        page = take_maps(answer, what)
        found += page
        if answer.get("more") is not True or not page:
            return found, answer
        after = name_of(page[-1])


def answered(call: Call, pages: Pages) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Call for each page until there is no more."""
    try:
        asked = next(pages)
        while True:
            asked = pages.send(call(*asked))
    except StopIteration as whole:
        found: tuple[list[dict[str, object]], dict[str, object]] = whole.value
        return found
