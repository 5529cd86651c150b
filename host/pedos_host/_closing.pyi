from collections.abc import Sequence

class Line:
    """An owner's descriptors, which a thread closes."""

    @property
    def open(self) -> int:
        """How many are not closed yet."""

    def close(self, descriptors: Sequence[int], lines_max: int, idle_ms: int, /) -> None:
        """Has those that are not negative closed, while a thread of its own is left or with others
        (`lines_max`), which ends after `idle_ms` without work."""

def open_in_all() -> int:
    """How many of all lines are not closed yet."""
