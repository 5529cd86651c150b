"""The policy's and the facts' files under a running service: broken, repaired, and reported."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.policy.whole_file import BEING_WRITTEN
from pedos_dom0.requests.listing import POLICY_ERRORS_MAX
from pedos_dom0.service import Config, run
from pedos_dom0.state import State
from pedos_host.plain_unix import short_path
from pedos_host.unix import connect_unix
from pedos_protocol.fields import TEXT_MAX
from pedos_vchan.peer import Peer, open_peer

from tests.dom0.fakes import ALLOW_DOM0, FakeAgent, FakeDriver
from tests.patience import PATIENCE

# Seconds, many times what any step takes, also of a clock that jumps while files are read.


@pytest.fixture
def config(tmp_path: Path) -> Config:
    policy = tmp_path / "policy.d"
    policy.mkdir()
    (tmp_path / "vms.d").mkdir()
    (policy / "30-test.policy").write_text(ALLOW_DOM0)
    return Config(
        socket=tmp_path / "dom0.sock",
        state=tmp_path / "state",
        policy=[policy],
        vms=tmp_path / "vms.d",
    )


def policy_lines(config: Config) -> list[dict[str, Any]]:
    lines = (config.state / "audit.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["event"] == "policy"]


class Served:
    """A running service and a client of it."""

    def __init__(self, state: State, peer: Peer) -> None:
        self._peer = peer
        self._news = trio.Event()
        self._audit = state.audit
        write = state.audit.write

        def write_and_tell(event: str, **fields: object) -> None:
            write(event, **fields)
            if event == "policy":
                self._news.set()

        state.audit.write = write_and_tell  # type: ignore[method-assign]

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._peer.call(method, params, timeout=PATIENCE)

    async def status(self) -> dict[str, Any]:
        """The policy's status; by then the file has the audit log's lines about it."""
        status: dict[str, Any] = (await self.call("service.status"))["policy"]
        await self._audit.written()
        return status

    async def verdict(self, source: str = "dom0", target: str = "work") -> str:
        question = {"service": "device.attach.block", "argument": "+sys-usb:x", "source": source}
        return (await self.call("policy.explain", **question, target=target))["verdict"]  # type: ignore[no-any-return]

    async def until(self, *, ok: bool, words: str = "") -> dict[str, Any]:
        """The status as soon as it is reached, with these words in one of its errors."""
        with trio.fail_after(PATIENCE):
            while True:
                news = self._news = trio.Event()
                now = await self.status()
                said = [
                    f"{error['file']}:{error['line']}: {error['message']}"
                    for error in now["errors"]
                ]
                if now["ok"] is ok and (not words or any(words in each for each in said)):
                    return now
                await news.wait()


@contextlib.asynccontextmanager
async def served(config: Config) -> AsyncIterator[Served]:
    """The service, and a client of it."""
    driver = FakeDriver()
    driver.add("work", running=False)
    driver.add("vault", running=False)
    async with trio.open_nursery() as inner:
        # Without dom0's own agent a listing waits for it.
        dom0 = driver.agents["dom0"] = FakeAgent("dom0")
        dom0.nursery = inner
        state: State = await inner.start(run, config, driver)
        stream = await connect_unix(config.socket)
        async with open_peer(stream, program="test", handlers={}) as peer:
            yield Served(state, peer)
        inner.cancel_scope.cancel()


async def test_a_first_start_with_a_broken_policy_denies_everything_and_says_so(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    good = config.policy[0] / "30-test.policy"
    broken = config.policy[0] / "40-test.policy"
    broken.write_text("device.attach.block * * * perhaps\n")
    async with served(config) as service:
        now = await service.status()
        assert (now["ok"], now["loaded_at"], now["rules"]) == (False, "", 0)
        (error,) = now["errors"]
        assert (error["file"], error["line"]) == ("40-test.policy", 1)
        assert error["text"] == "device.attach.block * * * perhaps" and error["help"]
        assert await service.verdict() == "deny"
        line, _facts = policy_lines(config)
        assert (line["outcome"], line["in_force"]) == ("refused", "nothing; everything is denied")
        assert "40-test.policy:1" in line["errors"][0]
        assert "everything is denied" in caplog.text
        broken.unlink()
        await service.until(ok=True)
        assert await service.verdict() == "allow"
        assert policy_lines(config)[-1]["outcome"] == "taken"
        # From now on a broken edit changes nothing.
        good.write_text("nonsense\n")
        now = await service.until(ok=False)
        assert now["loaded_at"] and now["rules"] == 1
        assert await service.verdict() == "allow"
    last = policy_lines(config)[-1]
    assert (last["outcome"], last["in_force"]) == ("refused", now["loaded_at"])


async def test_a_first_start_with_broken_facts_denies_everything_and_says_so(
    config: Config,
) -> None:
    assert config.vms is not None
    facts = config.vms / "10-x.toml"
    facts.write_text("[work]\ntags = 5\n")
    async with served(config) as service:
        now = await service.status()
        # The rules are good, but nothing is decided by them.
        assert (now["ok"], now["loaded_at"], now["rules"]) == (False, "", 0)
        (error,) = now["errors"]
        assert (error["file"], error["line"], error["text"]) == ("vms.d/10-x.toml", 2, "tags = 5")
        assert await service.verdict() == "deny"
        # In one step: a file that is still open for writing may be read, and refused, once more.
        corrected = config.vms.with_name("corrected")
        corrected.write_text('[work]\ntags = ["office"]\n[vault]\ninternal = true\n')
        corrected.replace(facts)
        await service.until(ok=True)
        assert await service.verdict() == "allow"
        vms = await service.call("policy.system", after=None)
    assert [(vm["name"], vm["type"], vm["tags"], vm["internal"]) for vm in vms["vms"]] == [
        ("dom0", "AdminVM", [], False),
        ("vault", "AppVM", [], True),
        ("work", "AppVM", ["office"], False),
    ]
    outcomes = [(line["what"], line["outcome"]) for line in policy_lines(config)]
    assert outcomes == [("rules", "taken"), ("facts", "refused"), ("facts", "taken")]


def syntax(file: Path) -> None:
    file.write_text("perhaps [")


def fifo(file: Path) -> None:
    os.mkfifo(file)


def sock(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, short_path(str(file)) as short:
        made.bind(short)


def folder(file: Path) -> None:
    file.mkdir()


def loop(file: Path) -> None:
    file.symlink_to(file.name)


def nowhere(file: Path) -> None:
    file.symlink_to("nowhere")


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def huge(file: Path) -> None:
    with file.open("wb") as made:
        made.truncate(1 << 40)


def binary(file: Path) -> None:
    file.write_bytes(b"\xff\0")


def misnamed(file: Path) -> None:
    file.with_stem("Foo").write_text("")


BREAKS: dict[Callable[[Path], None], str] = {
    syntax: "40-test",
    fifo: "is not a regular file",
    sock: "cannot be read: No such device",
    folder: "is not a regular file",
    loop: "cannot be read: its symbolic links lead in a circle",
    nowhere: "cannot be read: No such file",
    endless: "is not a regular file",
    huge: "more than",
    binary: "not UTF-8",
    misnamed: "Foo",
}


@pytest.fixture
def vms(config: Config) -> Path:
    assert config.vms is not None
    (config.vms / "30-test.toml").write_text('[work]\ntags = ["office"]\n')
    return config.vms


@pytest.mark.parametrize("make", BREAKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("what", ["rules", "facts"])
async def test_a_broken_file_changes_nothing_and_is_seen_everywhere(
    config: Config,
    vms: Path,
    what: str,
    make: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = config.policy[0] / "40-test.policy" if what == "rules" else vms / "40-test.toml"
    async with served(config) as service:
        before = await service.status()
        make(file)
        now = await service.until(ok=False, words=BREAKS[make])
        assert (now["loaded_at"], now["rules"]) == (before["loaded_at"], before["rules"])
        assert await service.verdict() == "allow"
        last = policy_lines(config)[-1]
        assert (last["what"], last["outcome"]) == (what, "refused")
        assert BREAKS[make] in last["errors"][0]
        assert "stay" in caplog.messages[-1] and BREAKS[make] in caplog.messages[-1]
        for made in {*file.parent.glob("40-*"), *file.parent.glob("Foo*")}:
            made.rmdir() if made.is_dir() else made.unlink()
        await service.until(ok=True)
        assert policy_lines(config)[-1]["outcome"] == "taken"


@pytest.mark.parametrize("what", ["rules", "facts"])
@pytest.mark.parametrize("instead", [None, "file", "loop", "fifo"])
async def test_a_folder_that_goes_takes_nothing_away_and_comes_back(
    config: Config,
    vms: Path,
    what: str,
    instead: str | None,
    autojump_clock: trio.testing.MockClock,
) -> None:
    # A loop cannot be watched, so its end is found when it is looked at again.
    autojump_clock.autojump_threshold = 0.2
    path = config.policy[0] if what == "rules" else vms
    (path / "40-test.policy").write_text("device.attach.block * @tag:office work deny\n")
    async with served(config) as service:
        path.rename(path.with_name("away"))
        if instead is not None:
            {"file": syntax, "loop": loop, "fifo": fifo}[instead](path)
        await service.until(ok=False)
        assert await service.verdict() == "allow"
        assert await service.verdict("work") == "deny"
        path.unlink(missing_ok=True)
        path.with_name("away").rename(path)
        await service.until(ok=True)


@pytest.mark.parametrize("how", ["new", "in place"])
async def test_a_file_that_is_written_in_pieces_counts_when_it_is_whole(
    config: Config, how: str
) -> None:
    file = config.policy[0] / ("20-test.policy" if how == "new" else "30-test.policy")
    lines = "device.attach.block * * work deny\n" + ALLOW_DOM0 + "!include inc\n"
    (config.policy[0] / "inc").write_text("")
    async with served(config) as service:
        with file.open("w") as writer:
            # Half of it would be a policy too, and each wake-up a reading.
            writer.write(lines[: len(lines) // 2])
            writer.flush()
            (config.policy[0] / "inc").write_text("# another edit")
            now = await service.until(ok=False, words=f"{file.name}:0: {BEING_WRITTEN}")
            assert now["rules"] == 1
            assert await service.verdict() == "allow"
            writer.write(lines[len(lines) // 2 :])
        await service.until(ok=True)
        assert await service.verdict() == "deny"


async def test_facts_that_are_written_in_pieces_count_when_they_are_whole(
    config: Config, vms: Path
) -> None:
    (config.policy[0] / "30-test.policy").write_text(
        "device.attach.block * @tag:office work deny\ndevice.attach.block * * work allow\n"
    )
    async with served(config) as service:
        with (vms / "30-test.toml").open("w") as writer:
            writer.write('[work]\ntags = ["off')
            writer.flush()
            (vms / "40-test.toml").write_text("")
            await service.until(ok=False, words=BEING_WRITTEN)
            assert await service.verdict("work") == "deny"
            writer.write('er"]\n')
        await service.until(ok=True)
        assert await service.verdict("work") == "allow"


async def test_files_that_include_each_other_are_refused_with_the_chain(config: Config) -> None:
    (config.policy[0] / "inc").mkdir()
    (config.policy[0] / "inc" / "a").write_text("!include inc/b\n")
    (config.policy[0] / "inc" / "b").write_text("")
    (config.policy[0] / "40-test.policy").write_text("!include inc/a\n")
    async with served(config) as service:
        (config.policy[0] / "inc" / "b").write_text("!include inc/a\n")
        await service.until(ok=False, words="inc/a:1 -> inc/b:1 -> inc/a")
        (config.policy[0] / "inc" / "b").write_text("")
        await service.until(ok=True)


async def test_a_policy_with_very_many_errors_is_still_told_of_in_one_answer(
    config: Config,
) -> None:
    long = "x" * 900
    lines = "".join(f"device.attach.block * {long} {long} allow\n" for _ in range(300))
    (config.policy[0] / "40-test.policy").write_text(lines)
    async with served(config) as service:
        status = await service.status()
        errors = status["errors"]
        assert 10 < len(errors) < 100
        assert len(errors) + status["errors_left_out"] == 300
        assert all(len(error["text"]) <= TEXT_MAX for error in errors)
        params = {"device_class": "block", "vms": None, "exclude": [], "after": None}
        listed = await service.call("device.list", **params)
        errors = listed["policy"]["errors"]
        assert 0 < len(errors) <= POLICY_ERRORS_MAX
        assert len(errors) + listed["policy"]["errors_left_out"] == 300
