"""Which file each worker of pytest-xdist runs next.

There are more workers than processors, because tests of sound wait most of their time: sound comes
at the pace of time. Some of their files run at once while there are any, and the other workers
compute meanwhile. Without that, all workers would wait at one time and want a processor at another;
and sound servers that do not get one lose what they play.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xdist.scheduler import LoadFileScheduling  # of the version in tools/requirements-run.txt

WAITING = "tests/sound/"
WAITING_AT_ONCE = 2
#: Files whose tests share a running house (tests/sound/conftest.py), so one worker runs them all.
HOUSE = "tests/sound/test_hear_"

#: Files begin in this order, and all others between these two. Long ones come first: a run ends
#: with short ones, and no processor waits for the last of a long file. Within a folder, files that
#: are named come before those that are not.
FIRST = (
    HOUSE,
    "tests/sound/test_pedos_sound_lending.py",
    "tests/sound/test_pipewire_target.py",
    "tests/sound/test_pedos_sound_borrowing.py",
    "tests/sound/",
    "tests/hostile/test_fuzz.py",
    "tests/native/test_rules.py",
    "tests/e2e/",
    "tests/widget/",
    "tests/native/",
    "tests/interleave/",
    "tests/local/",
)
#: All other workers stand still while tests run that are `alone`: they wait least for short ones.
LAST = (
    "tests/hostile/test_sanitized.py",
    "tests/hostile/test_event_loop.py",
)


def in_order(files: Sequence[str]) -> list[str]:
    """These files as they begin; where the tables do not tell, as they came."""
    return sorted(files, key=_turn)


def _turn(file: str) -> int:
    if file in LAST:
        return len(FIRST) + 1
    return next((n for n, start in enumerate(FIRST) if file.startswith(start)), len(FIRST))


def choose(waiting: int, files: Sequence[str]) -> str:
    """The next of these files for a worker, while so many other workers run files that wait."""
    ordered = in_order(files)
    may_wait = waiting < WAITING_AT_ONCE
    fitting = (file for file in ordered if file.startswith(WAITING) == may_wait)
    return next(fitting, ordered[0])


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """As with --dist loadfile, a file is one worker's; and so are those that share a house."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return HOUSE if file.startswith(HOUSE) else file

    def _assign_work_unit(self, node: Any) -> None:
        others = [work for other, work in self.assigned_work.items() if other is not node]
        file = choose(sum(map(waits, others)), list(self.workqueue))
        self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)


def waits(work: Mapping[str, Mapping[str, bool]]) -> bool:
    """Whether a worker's files, with what it has done of each, still have one that waits."""
    return any(
        file.startswith(WAITING) and not all(is_done.values()) for file, is_done in work.items()
    )
