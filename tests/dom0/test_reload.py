"""The policy's and the facts' files under a running service: broken, mended, and said so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.listing import POLICY_ERRORS_MAX
from pedos_dom0.service import Config, run
from pedos_protocol.fields import TEXT_MAX
from pedos_vchan.peer import Peer, open_peer
from pedos_vchan.unix import connect_unix

from tests.dom0.fakes import ALLOW_DOM0, FakeAgent, FakeDriver


@pytest.fixture
def config(tmp_path: Path) -> Config:
    policy = tmp_path / "policy.d"
    policy.mkdir()
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


@contextlib.asynccontextmanager
async def served(config: Config) -> AsyncIterator[Peer]:
    """The service, and a client of it."""
    driver = FakeDriver()
    driver.add("work", running=False)
    driver.add("vault", running=False)
    async with trio.open_nursery() as inner:
        # Without dom0's own agent a listing waits for it.
        dom0 = driver.agents["dom0"] = FakeAgent("dom0")
        dom0.nursery = inner
        inner.start_soon(run, config, driver)
        with trio.fail_after(10):
            while not config.socket.exists():  # noqa: ASYNC110 - as any client would
                await trio.sleep(0.01)
        stream = await connect_unix(config.socket)
        async with open_peer(stream, program="test", handlers={}) as peer:
            yield peer
        inner.cancel_scope.cancel()


async def status(peer: Peer) -> dict[str, Any]:
    return (await peer.call("service.status", {}, timeout=5))["policy"]  # type: ignore[no-any-return]


async def verdict(peer: Peer, source: str = "dom0", target: str = "work") -> tuple[str, str]:
    question = {"service": "device.attach.block", "argument": "+sys-usb:x", "source": source}
    answer = await peer.call("policy.explain", {**question, "target": target}, timeout=5)
    return answer["verdict"], answer["reason"]


async def until(peer: Peer, *, ok: bool) -> dict[str, Any]:
    with trio.fail_after(10):
        while (now := await status(peer))["ok"] is not ok:  # noqa: ASYNC110 - files, no event
            await trio.sleep(0.01)
    return now


async def test_a_first_start_with_a_broken_policy_denies_everything_and_says_so(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    good = config.policy[0] / "30-test.policy"
    broken = config.policy[0] / "40-test.policy"
    broken.write_text("device.attach.block * * * perhaps\n")
    async with served(config) as peer:
        now = await status(peer)
        assert (now["ok"], now["loaded_at"], now["rules"]) == (False, "", 0)
        (error,) = now["errors"]
        assert (error["file"], error["line"]) == ("40-test.policy", 1)
        assert error["text"] == "device.attach.block * * * perhaps" and error["help"]
        assert (await verdict(peer))[0] == "deny"
        line, _facts = policy_lines(config)
        assert (line["outcome"], line["in_force"]) == ("refused", "nothing; everything is denied")
        assert "40-test.policy:1" in line["errors"][0]
        assert "everything is denied" in caplog.text
        broken.unlink()
        await until(peer, ok=True)
        assert (await verdict(peer))[0] == "allow"
        assert policy_lines(config)[-1]["outcome"] == "taken"
        # From now on a broken edit changes nothing.
        good.write_text("nonsense\n")
        now = await until(peer, ok=False)
        assert now["loaded_at"] and now["rules"] == 1
        assert (await verdict(peer))[0] == "allow"
    last = policy_lines(config)[-1]
    assert (last["outcome"], last["in_force"]) == ("refused", now["loaded_at"])


async def test_a_first_start_with_broken_facts_denies_everything_and_says_so(
    config: Config,
) -> None:
    assert config.vms is not None
    config.vms.mkdir()
    facts = config.vms / "10-x.toml"
    facts.write_text("[work]\ntags = 5\n")
    async with served(config) as peer:
        now = await status(peer)
        # The rules are good, but nothing is decided by them.
        assert (now["ok"], now["loaded_at"], now["rules"]) == (False, "", 0)
        (error,) = now["errors"]
        assert (error["file"], error["line"], error["text"]) == ("vms.d/10-x.toml", 2, "tags = 5")
        assert (await verdict(peer))[0] == "deny"
        facts.write_text('[work]\ntags = ["office"]\n[vault]\ninternal = true\n')
        await until(peer, ok=True)
        assert (await verdict(peer))[0] == "allow"
        vms = await peer.call("policy.system", {"after": None}, timeout=5)
    assert [(vm["name"], vm["type"], vm["tags"], vm["internal"]) for vm in vms["vms"]] == [
        ("dom0", "AdminVM", [], False),
        ("vault", "AppVM", [], True),
        ("work", "AppVM", ["office"], False),
    ]
    outcomes = [(line["what"], line["outcome"]) for line in policy_lines(config)]
    assert outcomes == [("rules", "taken"), ("facts", "refused"), ("facts", "taken")]


async def test_a_policy_with_very_many_errors_is_still_told_of_in_one_answer(
    config: Config,
) -> None:
    long = "x" * 900
    lines = "".join(f"device.attach.block * {long} {long} allow\n" for _ in range(300))
    (config.policy[0] / "40-test.policy").write_text(lines)
    async with served(config) as peer:
        errors = (await status(peer))["errors"]
        assert 10 < len(errors) < 100
        assert all(len(error["text"]) <= TEXT_MAX for error in errors)
        params = {"device_class": "block", "vms": None, "exclude": [], "after": None}
        listed = await peer.call("device.list", params, timeout=5)
        assert 0 < len(listed["policy"]["errors"]) <= POLICY_ERRORS_MAX
