"""The reasons of decisions that say no more than which rule decided, and how.

Where rule and verdict are shown beside the reason, such a reason is left out.
"""

from __future__ import annotations

#: No rule decided.
DEFAULT_DENY = "no rule matched (default deny)"
#: No rule decided about a list of dom0's user.
SEES_ALL = "dom0's user sees every device that no rule hides"


def said(rule: object, verdict: object) -> str:
    """`rule` (FILE:LINE) decided, and nothing stands against it."""
    return f"{rule} says {verdict}"


def says_more(reason: object, rule: object, verdict: object) -> bool:
    """Whether a reason says more than rule and verdict do."""
    return reason not in (DEFAULT_DENY, said(rule, verdict))
