"""A policy or a fact that could not be read for a moment is an error, and is read again.

Each system call of a reading fails in turn: the result is the content of the files, with all the
folders in which a change matters, or an error, with which the last good one stays in force and the
files are read again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import trio
from pedos_dom0.policy import files, following
from pedos_dom0.policy.loader import PolicyLoader
from pedos_dom0.policy.reading import Loaded, read_policy
from pedos_dom0.vms.facts import Read, read_facts
from trio.abc import Clock

from tests.failing_calls import each_call_failing

RULE = "device.list.*  *  {0}  {0}  allow\n"


def a_policy(root: Path) -> Callable[[], Loaded]:
    for folder in ("run", "etc/include", "elsewhere", "legacy"):
        (root / folder).mkdir(parents=True)
    includes = "!include include/one\n!include-dir include/\n"
    (root / "etc/10-first.policy").write_text(RULE.format("first") + includes)
    (root / "etc/include/one").write_text(RULE.format("included"))
    (root / "etc/include/two.policy").write_text(RULE.format("in-folder"))
    (root / "elsewhere/linked").write_text(RULE.format("linked"))
    (root / "etc/20-linked.policy").symlink_to(root / "elsewhere/linked")
    (root / "etc/30-compat.policy").write_text("!compat-4.0\n")
    (root / "run/05-run.policy").write_text(RULE.format("run"))
    (root / "legacy/some.Service").write_text("one two allow\n")
    return lambda: read_policy([root / "run", root / "etc"], legacy=root / "legacy")


def some_facts(root: Path) -> Callable[[], Read]:
    for folder in ("vms.d", "elsewhere"):
        (root / folder).mkdir()
    (root / "vms.d/a.toml").write_text('[work]\ntags = ["red"]\n')
    (root / "elsewhere/linked").write_text('[vault]\ntags = ["black"]\n')
    (root / "vms.d/b.toml").symlink_to(root / "elsewhere/linked")
    return lambda: read_facts(root / "vms.d")


@pytest.mark.parametrize("make", [a_policy, some_facts])
def test_a_reading_gives_all_that_is_there_or_an_error(
    tmp_path: Path, make: Callable[[Path], Callable[[], Loaded | Read]]
) -> None:
    read = make(tmp_path)

    def said(one: Loaded | Read) -> object:
        return one.rules if isinstance(one, Loaded) else one.said

    right = read()
    assert not right.errors and said(right)
    flawed = 0
    for failing in each_call_failing(read):
        with failing:
            now = read()
        flawed += bool(now.errors)
        if not now.errors:
            assert said(now) == said(right), failing
            assert set(now.watched) == set(right.watched), failing
    assert flawed


async def test_a_policy_that_could_not_be_looked_at_stays_and_is_read_again(
    tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_dom0.policy.loader.in_thread", _at_once)
    (tmp_path / "10-one.policy").write_text(RULE.format("one"))
    loader = PolicyLoader([tmp_path])
    broken = OSError(errno.EIO, os.strerror(errno.EIO))
    async with trio.open_nursery() as nursery:
        await nursery.start(loader.run)
        with monkeypatch.context() as failing:
            failing.setattr(files, "real_path", mock.Mock(side_effect=broken))
            assert loader.reload() is False
            assert "cannot be looked at: Input/output error" in str(loader.errors)
            assert len(loader.snapshot) == 1
            (tmp_path / "20-two.policy").write_text(RULE.format("two"))
            await trio.sleep(following.SETTLE * 2)
            assert len(loader.snapshot) == 1
        await trio.sleep(following.AGAIN + 1)  # and nothing happens in the folder
        assert loader.errors == ()
        assert len(loader.snapshot) == 2
        nursery.cancel_scope.cancel()


async def _at_once(function: Callable[..., object], **_more: object) -> object:
    """A thread would let the clock jump."""
    await trio.lowlevel.checkpoint()
    return function()
