"""What a user types to search a menu. No Qt."""

from __future__ import annotations

QUERY_MAX = 64
"""Characters: the longest id of a device."""


class Query:
    """The text typed so far. Each of its words must occur in what is searched, in any order."""

    def __init__(self) -> None:
        self.text = ""

    def type(self, typed: str) -> bool:
        """Add what a key types; False if it is not for the query: it types nothing, or a blank
        while nothing has been typed, which activates an entry."""
        if not typed or not typed.isprintable() or (not self.text and typed.isspace()):
            return False
        self.text = (self.text + typed)[:QUERY_MAX]
        return True

    def erase(self) -> bool:
        """Take the last character back; False if there is none."""
        had = bool(self.text)
        self.text = self.text[:-1]
        return had

    def clear(self) -> bool:
        """Forget it all; False if there is nothing."""
        had = bool(self.text)
        self.text = ""
        return had

    def fits(self, searched: str) -> bool:
        """`searched` is casefolded."""
        return all(word in searched for word in self.text.casefold().split())
