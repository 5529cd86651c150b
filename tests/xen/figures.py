"""Figures that a run of the bench prints at its end, whether its tests pass or not."""

from __future__ import annotations

_told: list[str] = []


def tell(figure: str) -> None:
    """`figure` is a line of text."""
    _told.append(figure)


def told() -> list[str]:
    """All that was told, in that order."""
    return _told
