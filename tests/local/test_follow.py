"""Following a log that other processes write."""

from __future__ import annotations

from pathlib import Path

from pedos_dom0.local.follow import CHUNK, Follower

from tests.failing_calls import each_call_failing


def follow(path: Path) -> tuple[Follower, list[str]]:
    shown: list[str] = []
    return Follower(path, shown.append), shown


def append(path: Path, text: str) -> None:
    with path.open("a") as log:
        log.write(text)


def look(follower: Follower) -> None:
    while follower.look():
        pass


def test_whole_lines_that_are_new_are_shown_without_their_level(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("of an earlier life\n")
    follower, shown = follow(log)
    look(follower)
    append(log, "<6>one\ntw")
    look(follower)
    assert shown == ["one\n"]
    append(log, "o\n")
    look(follower)
    assert shown == ["one\n", "two\n"]


def test_the_file_may_come_later_and_may_be_emptied(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    follower, shown = follow(log)
    look(follower)
    append(log, "one\n")
    look(follower)
    log.write_text("")
    look(follower)
    append(log, "two\n")
    look(follower)
    assert shown == ["one\n", "two\n"]


def test_a_line_without_an_end_is_not_held_back_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    follower, shown = follow(log)
    append(log, "x" * (2 * CHUNK))
    look(follower)
    assert shown == ["x" * (2 * CHUNK) + "\n"]


def test_a_log_that_cannot_be_looked_at_is_not_shown_again(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    follower, shown = follow(log)
    append(log, "one\n")
    look(follower)
    for failing in each_call_failing(lambda: look(follower)):
        with failing:
            look(follower)
    append(log, "two\n")
    look(follower)
    assert shown == ["one\n", "two\n"]
