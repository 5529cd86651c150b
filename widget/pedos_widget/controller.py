"""What the windows talk to: shows what there is, carries out clicks, and says what has happened.

Everything runs in one thread, so windows call it directly; nothing in it waits but its tasks. The
tasks begin with `run`; what is asked before that is done then.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING

import trio
from pedos_cli.client import Unreachable
from pedos_protocol.errors import CallError, ProtocolError, RemoteProtocolError
from pedos_protocol.messages import SCHEMA, parse_result
from pedos_vchan.calling import TIMEOUT_MAX

from .calls import reason, reason_alone
from .i18n import _
from .link import Link
from .model.composing import Composer, Known
from .model.looks import Look, Looks
from .model.news import in_words, news
from .model.pairs import Pairs
from .model.picture import Picture
from .model.view import DeviceRef, Result
from .model.work import Work, Works, key_of
from .pairs_file import PairsFile, default_path
from .prompting import Prompter, Prompting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import Any, Literal, NoReturn

    from pedos_protocol.messages import AttachResult, DetachResult, Listed
    from pedos_vchan.peer import Peer

    from .model.view import Happened, View

    State = Literal["working", "done", "failed", "denied"]

__all__ = ["CallError", "Controller", "Prompter", "Unreachable"]

logger = logging.getLogger(__name__)

WORK_S = 75.0
"""Seconds after which a click has failed: a person has given it up by then. The service, which is
told the deadline, gives it up too. Policy may ask first: a question has a minute, and one that
nobody answers must end as that, and one that is answered late leaves time to attach."""

CONFIRM_S = 1.0
"""Seconds for which a result waits for the change that it speaks of, so that nobody is told of what
is not shown yet. Both are sent at the same moment."""

WATCH_S = TIMEOUT_MAX
"""Seconds for an answer to `watch.next`: as long as the protocol has, because each answer that
nothing has changed would wake up the processor for nothing. A service that ends is seen at once,
one that hangs ends itself, and whether it answers is looked at when somebody looks (`opened`)."""

PACE_S = 0.1
"""Seconds between two answers to `watch.next` at least. The service puts all that changes meanwhile
into the next one, so a VM that changes its devices without end takes a bounded part of a processor;
and nobody sees more than ten pictures a second."""

LOOK_S = 10.0
"""Seconds for an answer that the service gives from memory."""

LOOKS_WAITING_MAX = 32
"""Lists of VMs that wait to be asked for, the latest first: a pointer may pass hundreds of devices,
and nobody waits for those that it has left."""


class Controller:
    """The widget's half of the service. `path` is the service's socket, if not the usual one;
    `memory` is the file in which pairs of devices and VMs are remembered."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        program: str = "pedos-widget",
        memory: Path | None = None,
    ) -> None:
        self._known = Known(Picture(), Looks(), Works(), Pairs())
        self._composer = Composer(self._known)
        place = None if path is None else os.fspath(path)
        self._link = Link(place, program, self._follow, self._lost)
        self._prompting = Prompting(place, program, self._refused_as_prompter)
        self._pairs_file = PairsFile(memory or default_path())
        self._view: View | None = None
        self._generation = 0
        self._changed_callbacks: list[Callable[[], None]] = []
        self._happened_callbacks: list[Callable[[Happened], None]] = []
        self._result_callbacks: list[Callable[[Result], None]] = []
        self._early: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._to_look: dict[DeviceRef, None] = {}
        self._look_wanted = trio.Event()
        self._is_policy_wanted = False
        self._moved = trio.Event()  # at the next change of the picture
        self._connections = 0
        self._current_in = 0  # the last connection in which the picture was what there is

    # What is shown

    @property
    def view(self) -> View:
        """What there is to show; the same object until something changes."""
        if self._view is None:
            self._generation += 1
            self._view = self._composer.compose(self._generation)
        return self._view

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have it called when `view` is another one, once for all changes of one turn; until what
        is returned is called."""
        told = partial(callback)  # the same may ask twice, and end one
        self._changed_callbacks.append(told)

        def end() -> None:
            if told in self._changed_callbacks:
                self._changed_callbacks.remove(told)

        return end

    def on_happened(self, callback: Callable[[Happened], None]) -> None:
        """Have it called with each thing that happens."""
        self._happened_callbacks.append(callback)

    def on_result(self, callback: Callable[[Result], None]) -> None:
        """Have it called with what comes of clicks."""
        self._result_callbacks.append(callback)

    # What a person does

    def look(self, ref: DeviceRef) -> None:
        """The list of VMs of this device is opened: its rows come with a change."""
        self._soon(self._begin_look, ref)

    def opened(self) -> None:
        """Somebody begins to look: what is not told of by itself is asked anew."""
        self._soon(self._link.wanted)
        self._soon(self._prompting.wanted)
        self._soon(self._want_policy)

    def attach(self, ref: DeviceRef, vm: str) -> None:
        """Attach the device that was shown; results say what comes of it."""
        self._click(Work(ref, vm, "attach"))

    def detach(self, ref: DeviceRef, vm: str) -> None:
        """Detach the device that was shown; results say what comes of it."""
        self._click(Work(ref, vm, "detach"))

    async def call(
        self, method: str, params: dict[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """What the service answers; an older one is told nothing that it does not know. CallError,
        or Unreachable."""
        params = SCHEMA.params_in(self._link.version, method, params)
        return await self._link.call(method, params, timeout_s=timeout_s)

    def ask_by(self, prompter: Prompter | None) -> None:
        """From now on policy's questions go to `prompter`; None: to other programs."""
        self._soon(self._prompting.ask_by, prompter)

    # Running

    async def run(self) -> None:
        """Follows the service until cancelled."""
        async with trio.open_nursery() as nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._nursery = nursery
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._prompting.run)
            nursery.start_soon(self._keep_pairs)
            nursery.start_soon(self._look_on)
            early, self._early = self._early, []
            for work, arguments in early:
                self._soon(work, *arguments)
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _keep_pairs(self) -> NoReturn:
        """Reads what is remembered, for which nothing else waits: a disk may hang."""
        pairs, new = await self._pairs_file.read(), self._known.pairs
        pairs.put_all(new)
        self._known.pairs = pairs
        if len(new):
            self._pairs_file.save(pairs)
        self._changed()
        await self._pairs_file.run()

    def _soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have trio call it: windows are no tasks of trio's."""
        if self._token is None:
            self._early.append((work, arguments))
        else:
            self._token.run_sync_soon(work, *arguments)

    def _start(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work, *arguments)

    # Following

    async def _follow(self, peer: Peer) -> None:
        """Folds what the service tells, until the connection ends."""
        picture, anew = self._known.picture, True
        self._connections += 1
        while True:
            question, asked_at = picture.question(anew=anew), trio.current_time()
            question = SCHEMA.params_in(peer.version, "watch.next", question)
            answer = await peer.call("watch.next", question, timeout=WATCH_S)
            anew, version = False, picture.version
            try:
                changes = picture.take(answer)
            except ProtocolError as error:
                raise RemoteProtocolError(str(error)) from error
            self._link.works()
            told_at = trio.current_time()
            is_new = picture.version != version
            if self._known.why:
                self._known.why, is_new = "", True
                self._want_policy()
            if is_new:  # from time to time the service says that nothing has changed
                is_own = partial(self._known.works.is_own, now=told_at)
                for happened in news(changes, picture, is_own):
                    _tell(self._happened_callbacks, happened)
                self._picture_moved()
            if picture.is_complete:
                await trio.sleep_until((told_at if is_new else asked_at) + PACE_S)

    def _picture_moved(self) -> None:
        if self._known.is_current:
            self._current_in = self._connections
        self._moved.set()
        self._moved = trio.Event()
        if (ref := self._known.looks.changed(trio.current_time())) is not None:
            self._want_look(ref)
        self._changed()

    def _lost(self, why: str) -> None:
        if self._known.why != why:
            self._known.why = why
            self._known.looks.clear()
            self._changed()

    def _changed(self) -> None:
        self._view = None
        if self._token is not None:
            self._token.run_sync_soon(self._tell_change, idempotent=True)

    def _tell_change(self) -> None:
        _tell(self._changed_callbacks)

    # Looking

    def _begin_look(self, ref: DeviceRef) -> None:
        self._known.looks.begin(ref, trio.current_time())
        self._want_look(ref)
        self._is_policy_wanted = True

    def _want_look(self, ref: DeviceRef) -> None:
        self._to_look.pop(ref, None)
        self._to_look[ref] = None
        while len(self._to_look) > LOOKS_WAITING_MAX:
            del self._to_look[next(iter(self._to_look))]
        self._look_wanted.set()

    def _want_policy(self) -> None:
        self._is_policy_wanted = True
        self._look_wanted.set()

    async def _look_on(self) -> NoReturn:
        """Asks what is to be asked, one question after the other."""
        while True:
            await self._look_wanted.wait()
            self._look_wanted = trio.Event()
            while self._to_look:
                ref, _none = self._to_look.popitem()
                look = await self._look_at(ref)
                if look is not None:
                    self._known.looks.put(ref, look)
                    self._changed()
            if self._is_policy_wanted:
                self._is_policy_wanted = False
                await self._look_at_policy()

    async def _look_at(self, ref: DeviceRef) -> Look | None:
        key = key_of(ref)
        try:
            told = parse_result(
                "device.targets",
                await self.call("device.targets", key._asdict(), timeout_s=LOOK_S),
            )
        except Unreachable:
            return None  # asked again when there is a connection
        except CallError as error:
            if error.code == "unknown_method":
                why = _("dom0's service is older and cannot say what policy allows.")
                return Look(None, why, may_try=True)
            return Look(None, reason(error))
        except ProtocolError as error:
            logger.warning("the VMs for a device cannot be read: %s", error)
            return Look(None, _("The service's answer cannot be understood."))
        if told.identity != ref.identity:
            return Look(None, _("Another device is there now."))
        return Look(told)

    async def _look_at_policy(self) -> None:
        try:
            answer = await self.call("service.status", {}, timeout_s=LOOK_S)
            self._note_policy(parse_result("service.status", answer).policy.ok)
        except (CallError, Unreachable, ProtocolError) as error:
            logger.debug("the state of the policy is not known: %s", error)
            if isinstance(error, CallError) and error.code == "timeout":
                # It has this at hand, so it hangs, and what is shown may be long past.
                self._link.give_up(_("dom0's service does not answer."))

    def _note_policy(self, is_ok: bool | None) -> None:
        if is_ok is not None and is_ok is not self._known.policy_ok:
            self._known.policy_ok = is_ok
            self._changed()

    def _refused_as_prompter(self, why: str) -> None:
        if self._known.why_not_asked != why:
            self._known.why_not_asked = why
            self._changed()

    # Clicks

    def _click(self, work: Work) -> None:
        known = self._known
        why = known.works.begin(work, known.picture) if known.is_current else self.view.status
        if why is not None:
            self._tell_result(work, "failed", why)
            return
        self._tell_result(work, "working", "")
        self._changed()
        self._soon(self._start, self._carry_out, work)

    async def _carry_out(self, work: Work) -> None:
        state: State = "failed"
        why = _("It takes too long. Whether it is done after all is shown.")
        with trio.move_on_after(WORK_S) as bound:
            state, why = await self._result_of(work)
        if bound.cancelled_caught and not self._known.is_current:
            why = _("The connection broke. Whether it was done is shown when it is back.")
        self._known.works.end(work, trio.current_time(), is_done=state == "done")
        if state == "done" and work.verb == "attach":
            self._remember(work)
        self._changed()
        self._tell_result(work, state, why)

    async def _result_of(self, work: Work) -> tuple[State, str]:
        connection = self._connections
        try:
            attach_or_detach = self._attach if work.verb == "attach" else self._detach
            return await attach_or_detach(work)
        except CallError as error:
            why = reason_alone(error, f"{work.ref.backend}:{work.ref.device}", work.vm)
            return "denied" if error.code == "denied" else "failed", why
        except Unreachable as error:
            if error.lost:
                return await self._result_after_loss(work, connection)
            return "failed", error.why
        except ProtocolError as error:
            logger.warning("the result of a click cannot be read: %s", error)
            return "failed", _("The service's answer cannot be understood. See what is shown.")
        except Exception:
            logger.exception("a click failed unexpectedly")
            return "failed", _("It failed unexpectedly; the log says more.")

    async def _attach(self, work: Work) -> tuple[State, str]:
        params = {
            **key_of(work.ref)._asdict(),
            "vm": work.vm,
            "identity": work.ref.identity,
            "options": {},
            "persistent": False,
        }
        answer = await self.call("device.attach", params, timeout_s=WORK_S)
        result: AttachResult = parse_result("device.attach", answer)
        self._note_policy(result.policy_ok)
        await self._until_shown(work.ref, result.vm or work.vm, is_attached=True)
        if result.vm not in (None, work.vm):
            return "done", _("Policy sent it to {vm}.").format(vm=result.vm)
        return "done", result.note or ""

    async def _detach(self, work: Work) -> tuple[State, str]:
        params = {
            **key_of(work.ref)._asdict(),
            "vm": work.vm,
            "identity": work.ref.identity,
            "force": False,
        }
        answer = await self.call("device.detach", params, timeout_s=WORK_S)
        result: DetachResult = parse_result("device.detach", answer)
        self._note_policy(result.policy_ok)
        own = [
            each
            for each in result.results
            if (each.backend, each.device) == (work.ref.backend, work.ref.device)
        ]
        for each in own:
            if each.error is not None:
                raise CallError(each.error.code, each.error.message)
        await self._until_shown(work.ref, work.vm, is_attached=False)
        for each in own:
            if each.unassigned:
                return "done", _("It is not assigned to {vm} any more, either.").format(vm=work.vm)
        return "done", ""

    async def _result_after_loss(self, work: Work, connection: int) -> tuple[State, str]:
        """The connection broke before the answer: what there is when it is back says what came of
        the click."""
        while self._current_in <= connection:
            await self._moved.wait()
        if self._is_attached(work.ref, work.vm) == (work.verb == "attach"):
            return "done", ""
        return "failed", _("The connection to dom0's service broke meanwhile, and it is not done.")

    async def _until_shown(self, ref: DeviceRef, vm: str, *, is_attached: bool) -> None:
        with trio.move_on_after(CONFIRM_S):
            while self._known.is_current and self._is_attached(ref, vm) != is_attached:
                await self._moved.wait()

    def _is_attached(self, ref: DeviceRef, vm: str) -> bool:
        device = self._known.picture.devices.get(key_of(ref))
        if device is None or (device.present and device.identity != ref.identity):
            return False
        # The service knows who has a device before the VM is back that says what it is.
        return any(each.vm == vm for each in device.attachments)

    def _device_of(self, ref: DeviceRef) -> Listed | None:
        """The device that was shown, if it is still that one."""
        device = self._known.picture.devices.get(key_of(ref))
        return None if device is None or device.identity != ref.identity else device

    def _remember(self, work: Work) -> None:
        device, pairs = self._device_of(work.ref), self._known.pairs
        if device is not None and pairs.note(device, work.vm):
            self._pairs_file.save(pairs)

    def _tell_result(self, work: Work, state: State, why: str) -> None:
        device = self._device_of(work.ref)
        text = "" if device is None else in_words(key_of(work.ref), device)
        result = Result(work.ref, work.vm, work.verb, state, why, text)
        _tell(self._result_callbacks, result)


def _tell(callbacks: list[Callable[..., None]], *values: object) -> None:
    """Whoever is told may fail: the others are told all the same, and nothing else suffers."""
    for callback in list(callbacks):
        try:
            callback(*values)
        except Exception:
            logger.exception("a window failed on what it was told")
