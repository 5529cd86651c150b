"""Which file each worker of pytest-xdist runs next.

There are more workers than processors, because tests of sound wait most of their time: sound comes
at the pace of time. Some of their files run at once while there are any, in workers that have no
others, and the other workers compute meanwhile. Without that, all workers would wait at one time
and want a processor at another; and sound servers that do not get one lose what they play.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # of the version in tools/requirements-run.txt

WAITING = "tests/sound/"
WAITING_AT_ONCE = 2
#: What a worker collects is most of its start: in a run of all tests, the last of the workers run
#: those that wait, and have no others. Their `workerinput` says so under this name.
SHARE = "pedos-share"
OTHERS_AT_LEAST = 2
#: So few tests are left to a worker when it gets its next file: it begins one when it has the
#: next.
NEARLY_NONE = 2
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
    """As with --dist loadfile, a file is one worker's; and so are those that share a house. Workers
    may have collected different shares of the tests: each gets files that it has."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self._at: dict[Any, dict[str, int]] = {}  # where in its own list a worker has each test
        self._files: dict[Any, set[str]] = {}

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return HOUSE if file.startswith(HOUSE) else file

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        if self.collection is not None and set(self.collection) != set(collection):
            raise RuntimeError(f"{node.gateway.id}, which replaces another, has other tests")
        self.registered_collections[node] = list(collection)
        self._at[node] = {test: at for at, test in enumerate(collection)}
        self._files[node] = {*map(self._split_scope, collection)}

    def schedule(self) -> None:
        if self.collection is None:
            shares: dict[object, list[str]] = {}
            for node, tests in self.registered_collections.items():
                if shares.setdefault(node.workerinput.get(SHARE), tests) != tests:
                    raise RuntimeError(f"{node.gateway.id} has collected other tests than its like")
            self.collection = [*dict.fromkeys(itertools.chain(*shares.values()))]
            self.config.pluginmanager.get_plugin("session").testscollected = len(self.collection)
            for test in self.collection:
                self.workqueue.setdefault(self._split_scope(test), {})[test] = False
        for _ in range(2):  # no worker waits for its second file when it has done its first
            for node in self.nodes:
                self._reschedule(node)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        test = self.registered_collections[node][item_index]
        file, work = self._split_scope(test), self.assigned_work[node]
        work[file][test] = True
        if all(work[file].values()):
            del work[file]  # or each look at what is left would look at all that was done
        self._reschedule(node)

    def _reschedule(self, node: Any) -> None:
        if node.shutting_down:
            return
        if not any(file in self._files[node] for file in self.workqueue):
            node.shutdown()
        elif self._pending_of(self.assigned_work[node]) <= NEARLY_NONE:
            self._assign_work_unit(node)

    def _assign_work_unit(self, node: Any) -> None:
        others = [work for other, work in self.assigned_work.items() if other is not node]
        had = [file for file in self.workqueue if file in self._files[node]]
        file = choose(sum(map(waits, others)), had)
        self.assigned_work[node][file] = work = self.workqueue.pop(file)
        at = self._at[node]
        node.send_runtest_some([at[test] for test, is_done in work.items() if not is_done])


def waits(work: Mapping[str, Mapping[str, bool]]) -> bool:
    """Whether a worker's files, with what it has done of each, still have one that waits."""
    return any(
        file.startswith(WAITING) and not all(is_done.values()) for file, is_done in work.items()
    )


def share_of(worker: int, workers: int) -> bool | None:
    """Whether that worker collects the tests that wait or the others; None: it collects all, as one
    does that replaces another."""
    others = workers - WAITING_AT_ONCE
    return None if others < OTHERS_AT_LEAST or worker >= workers else worker >= others


def say_less(worker: Any) -> None:
    """Of each test, a worker of pytest-xdist sends six messages, and most of the time that a run's
    first process takes is reading them: those go that nothing here makes use of."""
    send = worker.sendevent

    def sendevent(name: str, **words: Any) -> None:
        if name in ("logstart", "logfinish"):
            return
        report = words.get("data", {})
        if name == "testreport" and report["when"] != "call" and report["outcome"] == "passed":
            return
        send(name, **words)

    worker.sendevent = sendevent
