"""The reasons of decisions that say no more than which rule decided, and how.

Where rule and verdict are shown beside the reason, such a reason is left out.
"""

from __future__ import annotations

#: No rule decided.
DEFAULT_DENY = "no rule matched (default deny)"


def said(rule: object, verdict: object) -> str:
    """`rule` (FILE:LINE) decided, and nothing stands against it."""
    return f"{rule} says {verdict}"


def says_more(reason: object, rule: object, verdict: object) -> bool:
    """Whether a reason says more than rule and verdict do."""
    return reason not in (DEFAULT_DENY, said(rule, verdict))
