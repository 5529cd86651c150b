"""The graphical session of a user, for services that need one (`wait-for-session`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pedos_host.system_errors import what_is_wrong

from pedos_keeper.children import Children
from pedos_keeper.outputs import output_of

log = logging.getLogger(__name__)

#: What logind knows of each session. (Its D-Bus interface says the same, for a library more.)
FOLDER: Final = Path("/run/systemd/sessions")
_GRAPHICAL: Final = frozenset(("x11", "wayland", "mir"))
_THERE: Final = frozenset(("active", "online"))
_SIZE_MAX: Final = 16 * 1024  # bytes of such a file; it has some 500

#: Of the session's environment, which its desktop has told the user's service manager.
_WANTED: Final = frozenset(
    (
        *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "ICEAUTHORITY"),
        *("XDG_CURRENT_DESKTOP", "XDG_SESSION_TYPE", "XDG_SESSION_DESKTOP", "XDG_SESSION_ID"),
        *("DESKTOP_SESSION", "SSH_AUTH_SOCK", "GNOME_KEYRING_CONTROL", "QT_QPA_PLATFORMTHEME"),
    )
)
_ASK: Final = ("/usr/bin/systemctl", "--user", "show-environment")
# Seconds for the user's service manager to say it; it takes milliseconds.
ASK_SECONDS: Final = 3.0


def has_session(uid: int, folder: Path = FOLDER) -> bool:
    """Whether the user has a graphical session now."""
    try:
        names = os.listdir(folder)
    except OSError:  # no logind runs here
        return False
    return any(_is_theirs(folder / name, uid) for name in names if name.isalnum())


def _is_theirs(path: Path, uid: int) -> bool:
    try:
        with path.open("rb") as file:
            text = file.read(_SIZE_MAX).decode("utf-8", "replace")
    except OSError:  # it has just ended
        return False
    found = dict(line.partition("=")[::2] for line in text.splitlines())
    return (
        found.get("UID") == str(uid)
        and found.get("CLASS") == "user"
        and found.get("TYPE") in _GRAPHICAL
        and found.get("STATE") in _THERE
    )


def environment(children: Children, login: Mapping[str, str], uid: int) -> dict[str, str]:
    """What a session adds to the environment after a login."""
    runtime = {"XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    try:
        raw = output_of(children, _ASK, {**login, **runtime}, seconds=ASK_SECONDS)
    except OSError as error:
        log.warning("the environment of the session is not known: %s", what_is_wrong(error))
        return runtime
    pairs = (line.partition("=") for line in os.fsdecode(raw).split("\n"))
    # systemctl quotes what has blanks or worse in it ($'...'); none of these does.
    told = {name: value for name, _, value in pairs if name in _WANTED and "'" not in value}
    return {**runtime, **told}
