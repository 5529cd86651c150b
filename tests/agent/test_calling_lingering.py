"""Programs that pass descriptors whose close(2) waits: the agent serves all others meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from pedos_host import passed
from pedos_protocol.call_link import Signal, build
from pedos_protocol.errors import CallError
from pedos_vchan.call_pump import CallPump

from tests.agent.calling_world import CALL, Client, Service, World
from tests.lingering import Lingering, closing, until


async def deny(_params: dict[str, Any]) -> dict[str, Any]:
    raise CallError("denied", "no")


def call_with(client: Client, lingering: Lingering) -> None:
    """The agent has the last reference."""
    client.send(CALL, *[lingering.fileno()] * 3)
    lingering.close()


async def test_the_streams_of_a_denied_call(world: World, lingering: Lingering) -> None:
    world.answer = deny
    client = world.connect()
    call_with(client, lingering)
    assert (await client.end()).text == "denied: no"
    await until(lambda: closing() == 1)
    world.answer = world.grant
    assert (await world.run())[0].exit_status == 3


async def test_the_streams_of_a_call_that_cannot_be(world: World, lingering: Lingering) -> None:
    client = world.connect()
    client.send(CALL._replace(version=2), *[lingering.fileno()] * 3)
    lingering.close()
    assert (await client.end()).exit_status == 125
    await until(lambda: closing() == 1)
    assert (await world.run())[0].exit_status == 3


async def test_what_comes_with_a_message_that_has_none(world: World, lingering: Lingering) -> None:
    client = world.connect()
    with client.plain() as plain:
        lingering.pass_by(plain, build(Signal(15)))
    assert await client.hear() is None
    await until(lambda: closing() == 1)
    assert (await world.run())[0].exit_status == 3


async def test_the_streams_of_a_call_that_runs(world: World, lingering: Lingering) -> None:
    """Its own thread waits, and its call with it."""

    async def end(service: Service, pump: CallPump) -> None:
        service.close()
        pump.exit("exited", 7)

    usual, world.behave = world.behave, end
    client = world.connect()
    call_with(client, lingering)
    await world.until(lambda: world.services)
    world.behave = usual
    assert (await world.run())[0].exit_status == 3
    lingering.release()
    assert (await client.end()).exit_status == 7


async def test_a_user_who_holds_up_too_much_is_told_so(
    world: World,
    lingering: Lingering,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.answer = deny
    client = world.connect()
    call_with(client, lingering)
    await client.end()
    await until(lambda: closing() == 1)
    monkeypatch.setattr(passed, "OF_ONE_MAX", 1)
    other = world.connect()
    other.packets._owner = "the test"
    other.call()
    end = await other.end()
    assert end.text.startswith("busy: what programs of this user have passed")
    lingering.release()
    await until(lambda: not closing())
    world.answer = world.grant
    assert (await world.run())[0].exit_status == 3
