"""The group whose members lend devices from dom0's desktop, and call services from there.

To look up a name may wait: names may come over a network.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import pwd


def group_id(group: str) -> int:
    """The group's number, by its name or number. KeyError: there is no such group."""
    return int(group) if group.isascii() and group.isdigit() else grp.getgrnam(group).gr_gid


def desktop_group(group: str) -> int:
    """As `group_id`. PermissionError if it is the own group of a user of that name, as systems make
    one for each person: nobody has said that this user is a member."""
    gid = group_id(group)
    with contextlib.suppress(KeyError):
        if pwd.getpwnam(group).pw_gid == gid:
            raise PermissionError(
                errno.EPERM,
                f"the group '{group}' is the own one of the user '{group}' (docs/desktop.md)",
            )
    return gid
