"""Reasons that more than one component gives, or recognises.

Some reasons of decisions say no more than which rule decided, and how: where rule and verdict are
shown beside the reason, such a reason is left out.
"""

from __future__ import annotations

#: No rule decided.
DEFAULT_DENY = "no rule matched (default deny)"
#: No rule decided about a list of dom0's user.
SEES_ALL = "dom0's user sees every device that no rule hides"

#: Why an attachment ended.
UNPLUGGED = "the device was unplugged"
REPLACED = "the device was replaced by another one"
#: A device of this class that comes back has its old identity, and no other medium in it.
_COMES_BACK = "usb"
CAME_BACK = "the device was plugged in again, or has reset itself"


def why_replaced(device_class: str, before: str | None, now: str) -> str:
    """Why a device is another instance, from its identities."""
    return CAME_BACK if device_class == _COMES_BACK and before == now else REPLACED


def said(rule: object, verdict: object) -> str:
    """`rule` (FILE:LINE) decided, and nothing stands against it."""
    return f"{rule} says {verdict}"


def says_more(reason: object, rule: object, verdict: object) -> bool:
    """Whether a reason says more than rule and verdict do."""
    return reason not in (DEFAULT_DENY, said(rule, verdict))
