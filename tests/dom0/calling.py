"""Agents that call and serve, for tests of calls of services: what they have survives a restart of
dom0's service, as in a real system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pedos_protocol.errors import CallError
from pedos_vchan.peer import Peer

from tests.dom0.fakes import FakeAgent, Params, World, filled_in

POLICY = """
test.Echo    *  work     vault     allow
test.Echo    *  work     halted    allow
test.Echo    *  work     dom0      allow
test.Echo    *  work     work      allow
test.Echo    *  untrusted vault    allow
test.Stopped *  work     halted    allow autostart=no
test.User    *  @anyvm   @anyvm    allow user=mail
test.Moved   *  work     @anyvm    allow target=vault
test.Default *  work     @default  allow target=vault
test.Ask     *  work     @default  ask   default_target=vault
test.Ask     *  work     vault     ask
test.Ask     *  work     untrusted ask
test.Back    *  vault    work      allow
*            *  @adminvm @anyvm    allow
"""


@attrs.define
class Side:
    """One side of a call, as the agent's own table has it."""

    side: str
    params: Params
    port: int
    peer: int
    killed: Params | None = None


class Caller:
    """The part of an agent that is about calls."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        # By port; True while there is no call over it.
        self.ports: dict[int, bool] = {}
        self.sides: dict[str, Side] = {}
        self.closed: list[int] = []
        self.bytes = (0, 0, 0)
        self.ends_when_killed = True
        agent.more = {
            "channel.listen": self._listen,
            "channel.close": self._close,
            "service.start": self._start,
            "service.kill": self._kill,
            "call.running": self._running,
        }

    async def call(self, target: str = "vault", service: str = "test.Echo", **more: Any) -> Params:
        """A program calls; returns dom0's answer."""
        assert self.agent.peer is not None
        asked = {"service": service, "argument": "+", "target": target, **more}
        params = filled_in("service.call", asked)
        answer = await self.agent.peer.call("service.call", params, timeout=900)
        self.ports[answer["port"]] = False
        self.sides[answer["call"]] = Side("caller", params, answer["port"], answer["peer"])
        return answer

    async def end(
        self,
        call: str,
        kind: str = "exited",
        status: int = 0,
        *,
        reusable: bool = True,
        **more: Any,
    ) -> None:
        """Its side of a call is over."""
        assert self.agent.peer is not None
        side = self.sides.pop(call)
        if reusable:
            self.ports[side.port] = True
        else:
            self.ports.pop(side.port, None)
        said = {
            "call": call,
            "kind": kind,
            "status": status,
            "text": "",
            "stdin": 1,
            "stdout": 2,
            "stderr": 3,
            "started_s": 0.001 if kind in ("exited", "signalled") else None,
            "seconds": 0.5,
            "reusable": reusable,
            "reason": "" if reusable else "it is over",
            **more,
        }
        await self.agent.peer.notify("service.ended", filled_in("service.ended", said))

    def only(self) -> str:
        """The id of the one call that it has."""
        (call,) = self.sides
        return call

    # What dom0 asks

    async def _do(self, method: str, params: Params) -> Params | None:
        return await self.agent._do(method, params)

    async def _listen(self, _peer: Peer, params: Params) -> Params:
        await self._do("channel.listen", params)
        assert params["port"] not in self.ports, "the port is in use"
        self.ports[params["port"]] = True
        return {}

    async def _close(self, _peer: Peer, params: Params) -> Params:
        self.closed.append(params["port"])
        await self._do("channel.close", params)
        self.ports.pop(params["port"], None)
        return {}

    async def _start(self, _peer: Peer, params: Params) -> Params:
        answer = await self._do("service.start", params)
        self.ports[params["port"]] = False
        self.sides[params["call"]] = Side("service", params, params["port"], params["peer"])
        return answer or {"started": True}

    async def _kill(self, _peer: Peer, params: Params) -> Params:
        await self._do("service.kill", params)
        side = self.sides.get(params["call"])
        if side is not None:
            side.killed = params
            if self.ends_when_killed:
                self.agent.nursery.start_soon(self._end_killed, params)
        return {}

    async def _end_killed(self, params: Params) -> None:
        await self.end(params["call"], params["kind"], reusable=False, text=params["text"])

    async def _running(self, _peer: Peer, params: Params) -> Params:
        answer = await self._do("call.running", params)
        if answer is not None:
            return answer
        after = params["after"] or ""
        calls = [
            {
                "call": call,
                "side": side.side,
                "service": side.params["service"],
                "argument": side.params["argument"],
                "user": side.params["user"],
                "peer": side.peer,
                "port": side.port,
                "seconds": 5.0,
                "stdin": self.bytes[0],
                "stdout": self.bytes[1],
                "stderr": self.bytes[2],
            }
            for call, side in sorted(self.sides.items())
            if call > after
        ]
        ports = [port for port, is_idle in self.ports.items() if is_idle]
        return {"calls": calls[:2], "ports": ports, "more": len(calls) > 2}

    def kill(self) -> None:
        """The agent dies with all that it has."""
        self.sides.clear()
        self.ports.clear()
        self.agent.kill()


@attrs.frozen
class Calling:
    """A world with agents that call: work may call vault, halted and dom0."""

    world: World
    work: Caller
    vault: Caller
    untrusted: Caller
    halted: Caller
    dom0: Caller

    @property
    def all(self) -> tuple[Caller, ...]:
        return self.work, self.vault, self.untrusted, self.halted, self.dom0

    def domid(self, name: str) -> int | None:
        return self.world.driver.infos[name].domid

    def assert_nothing_left(self) -> None:
        """No call at any agent, nor at dom0; channels are idle alone."""
        broker = self.world.api.calls.broker
        assert list(broker.table) == []
        assert all(channel.idle_since is not None for channel in broker.channels)
        for caller in self.all:
            assert caller.sides == {}, caller.agent.name
        idle = {channel.port for channel in broker.channels}
        for caller in self.all:
            assert set(caller.ports) <= idle, caller.agent.name
        assert broker.slots.count() == 0


def calling_world(world: World) -> Calling:
    """Its VMs; the service is not started yet."""
    agents = [
        world.vm("work"),
        world.vm("vault"),
        world.vm("untrusted"),
        world.vm("halted", running=False),
        world.dom0_agent(),
    ]
    return Calling(world, *map(Caller, agents))


@pytest.fixture
async def calling(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Calling]:
    world = World(tmp_path, nursery, POLICY)
    calling = calling_world(world)
    await world.start()
    yield calling
    await world.kill()


async def quiet() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def ended(calling: Calling, server: Caller | None = None, **more: Any) -> None:
    """Both sides of the only call end well."""
    call = calling.work.only()
    await (server or calling.vault).end(call, **more)
    await calling.work.end(call, **more)
    await quiet()


def lines(calling: Calling, event: str) -> list[Params]:
    return calling.world.audit(event)


async def refused(caller: Caller, *arguments: Any, **more: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await caller.call(*arguments, **more)
    return caught.value
