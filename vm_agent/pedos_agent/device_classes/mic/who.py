"""Which user of this VM has its microphones: records what is lent, and hears what is borrowed.

In local mode all programs are of one user. A machine may have several users: the one at its screen
has the microphones, or the one whom its administrator has named. Without a screen it is the first
that comes, and stays it until its session ends.
"""

from __future__ import annotations

import os
import pwd
from functools import partial
from pathlib import Path
from typing import Final

from pedos_host.in_time import in_time
from pedos_host.threads import to_thread
from pedos_protocol.frozen import frozen

from pedos_agent.settings import Settings
from pedos_agent.system.reading import read_field, words

#: The folder with what logind knows of each seat.
SEATS: Final = Path("/run/systemd/seats")
_SEAT: Final = "seat0"
# Persons have these user ids (Debian policy 9.2.2, login.defs); programs have those below.
PERSONS_FROM: Final = 1000
# Users that systemd makes up for services, and nobody (systemd, docs/UIDS-GIDS.md).
_PROGRAMS_TOO: Final = range(61184, 65536)
_ROOT: Final = 0


@frozen
class AtSeat:
    """Who is at the screen. `uid` is None if nobody is, `is_program` if a greeter asks for a
    password there."""

    uid: int | None
    is_program: bool = False


def is_person(uid: int) -> bool:
    """Whether a user id is that of a person."""
    return uid >= PERSONS_FROM and uid not in _PROGRAMS_TOO


def at_seat(seats: Path = SEATS) -> AtSeat:
    """Who is at the screen now; nobody where there is none. OSError."""
    for line in read_field(f"{seats}/{_SEAT}").splitlines():
        name, _, value = line.partition("=")
        if name == "ACTIVE_UID" and value.isdecimal():
            return AtSeat(int(value), is_program=not is_person(int(value)))
    return AtSeat(None)


@frozen
class Rule:
    """Who has the microphones here. `named` is the user whom the administrator has named."""

    own: int | None = None
    named: int | None = None
    seat: AtSeat = AtSeat(None)

    def refusal(self, uid: int) -> str | None:
        """Why this user's session cannot have them; None if it can."""
        why = None
        if self.own is not None:
            why = None if uid == self.own else "the agent is another user's"
        elif uid == _ROOT:
            why = "root has no session with sound"
        elif self.named is not None:
            why = None if uid == self.named else "another user is to have the microphones here"
        elif not is_person(uid):
            why = f"the user {uid} is a program's and no person's"
        elif self.seat.is_program:
            why = "no user is at the screen: a password is being asked for there"
        elif self.seat.uid not in (None, uid):
            why = "another user is at the screen"
        return why

    def may_keep(self, uid: int) -> bool:
        """Whether a session may go on that was allowed when it began: also while its screen is
        locked."""
        greeter = self.own is None and self.named is None and self.seat.is_program
        return greeter or self.refusal(uid) is None


def _named(user: str) -> int:
    """The id of a user who is named by it, or by name. LookupError if there is no such."""
    return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid


async def rule(settings: Settings, seats: Path = SEATS) -> Rule:
    """Who has the microphones now. PermissionError with the reason if that cannot be told."""
    if not settings.xen:
        return Rule(own=os.geteuid())
    try:
        if (user := settings.sound_user) is not None:
            # A server for users' names may not answer.
            ask = partial(in_time, f"who {user} is", partial(_named, user))
            return Rule(named=await to_thread(ask))
        return Rule(seat=at_seat(seats))
    except LookupError:
        raise PermissionError(f"--sound-user {user}: there is no such user") from None
    except OSError as error:
        raise PermissionError(f"who is to have them cannot be told: {words(error)}") from error
