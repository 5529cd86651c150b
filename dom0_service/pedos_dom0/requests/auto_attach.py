"""Attaches assigned devices by themselves: while their VM runs, whenever they are there and free.

What is to be attached is a function of the tables alone: the devices that are reported, the
assignments, which VMs run, what is lent, and what a person has detached. It is looked at again
whenever one of them changes, in whatever order, and after a restart of the service: nothing is
missed, and nothing is attached twice, since the journal's attachments are leases by then.

No assignment is a permission. Each attach is an ordinary one, in the name of dom0, which policy
decides about at that moment, and in the audit log `auto-attach` asks for it. One that is refused is
not repeated for the same device in the same run of the VM; one that fails because something is busy
is repeated a few times, and one that the store could not note until it can.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_host.throttle import Throttle
from pedos_protocol.errors import CallError

from pedos_dom0.access import questions
from pedos_dom0.access.authorizer import Consents, MustAsk
from pedos_dom0.access.callers import AUTO_ATTACH
from pedos_dom0.access.subjects import DeviceSubject
from pedos_dom0.attachments.fresh import unknown
from pedos_dom0.audit.log import new_request_id
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME, RETRY_SECONDS
from pedos_dom0.errors import NotStoredError, failure, not_to_be_had
from pedos_dom0.requests.auto_attach_try import Try, Wish, was_any, was_denied, was_unasked
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks.rate_limit import RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence

    from pedos_protocol.messages import Device

    from pedos_dom0.access.authorizer import Authorizer, Consent
    from pedos_dom0.access.subjects import Subject
    from pedos_dom0.requests.attach import Attach
    from pedos_dom0.requests.operations import Operations
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.assignment import Assignment, Claim
    from pedos_dom0.tables.registry import DeviceKey

logger = logging.getLogger(__name__)

# Seconds before each try. What is busy is a device whose last attachment is being ended, or that
# the source has just mounted or probed: that takes seconds, and longer under load.
PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)
# What may be over by the next try.
AGAIN = frozenset({"busy", "quota", "timeout", "unavailable"})
# Devices that are attached at once. More at a time only make each other slow, until some are too
# late.
AT_ONCE = 4
# Questions at once: half of those that one asker may have open, so that a command's is asked too.
ASKED_AT_ONCE = 2
# Attachments of a device, each of which ended by itself within STABLE_SECONDS, until it is left
# alone: one that resets itself comes back, and one that never works does not come back for ever.
RETURNS_MAX = 5
STABLE_SECONDS = 60.0
# Tries for the devices of one source at once, and each second in the long run: a person plugs in a
# hub with a few devices. A source can let devices come and go without end.
BURST = 16
PER_SECOND = 0.5

RETURNED = f"it was attached {RETURNS_MAX} times, and did not stay"
VOID = "it has changed meanwhile"
SAID_NO = "dom0's user said no a moment ago"
HELD_BACK = "it was detached, and is attached again when it is plugged in anew or the VM restarts"
#: Refusals that a prompter which comes later may turn into a question.
_UNASKED = (questions.NO_PROMPTER, questions.PROMPTER_GONE)


class AutoAttach:
    """Follows the tables of `state`, and attaches what is to be attached."""

    def __init__(
        self,
        state: State,
        authorizer: Authorizer,
        attach: Attach,
        operations: Operations,
        sleeps: Callable[[DeviceKey, str], bool],
    ) -> None:
        """`sleeps`: whether a device of that identity is attached again after the machine's
        sleep."""
        self._state = state
        self._authorizer = authorizer
        self._attach = attach
        self._operations = operations
        self._sleeps = sleeps
        self._unseen: set[str] = set()  # sources
        self._wake = trio.Event()
        # Those for each device that is there and assigned, by whose wish it is (State.whose).
        self._tries: dict[DeviceKey, dict[str, Try]] = {}
        # What is told of once: the devices that no VM gets, and why.
        self._told: dict[DeviceKey, tuple[object, ...]] = {}
        # When dom0's user said no about a port or for an assignment, for as long as that counts:
        # also of an identity, which a source can let appear at any number of ports.
        self._refused: dict[object, float] = {}
        self._limits: dict[str, RateLimit] = {}
        self._throttle = Throttle()
        self._places = trio.CapacityLimiter(AT_ONCE)
        self._asking = trio.CapacityLimiter(ASKED_AT_ONCE)
        state.registry.follow(self._devices_changed)
        state.agents.follow(self._look)
        state.follow(self._look)
        state.policy.follow(self._rules_changed)
        state.facts.follow(self._rules_changed)

    def _devices_changed(self, keys: Sequence[DeviceKey]) -> None:
        self._unseen.update({key.backend for key in keys})
        self._wake.set()

    def _look(self) -> None:
        """Something may be different that the registry does not tell of: which VMs run, or may be
        given devices."""
        self._unseen.update(self._state.store.sources())
        self._wake.set()

    def prompter_came(self) -> None:
        """What was not asked for lack of a prompter is asked now."""
        for tried in self._all_tries():
            tried.renew(was_unasked)
        self._look()

    def _rules_changed(self) -> None:
        """What policy denied is tried again: the rules, or the facts that they name, are others."""
        for tried in self._all_tries():
            tried.renew(was_denied)
        self._look()

    def again(self, source: str, device: str | None, vm: str) -> None:
        """A person assigns a device of `source` to `vm`: what was given up is tried again. None is
        a device at any port."""
        for tried in self._all_tries():
            key, assignment = tried.wish.key, tried.wish.assignment
            is_it = (key.backend, assignment.vm) == (source, vm) and device in (None, key.device)
            if is_it:
                tried.attached = 0
                tried.renew(was_any)
        self._unseen.add(source)
        self._wake.set()

    def why_not(self, key: DeviceKey, assignment: Assignment) -> str | None:
        """Why a device that is there was not attached by itself for this assignment; None if there
        is no reason, or it was not to be."""
        if self._is_held_back(key, assignment.vm):
            return HELD_BACK
        tried = self._tries.get(key, {}).get(self._state.whose(key, assignment.vm))
        if tried is not None and tried.wish.assignment == assignment and tried.why is not None:
            return tried.why
        device = self._state.registry.get(key)
        if device is None or device.busy is None or self._ready(assignment.vm) is None:
            return None
        error = not_to_be_had(key, device)
        return None if error is None or self._is_lent(key, assignment.vm) else error.message

    def _all_tries(self) -> Iterator[Try]:
        return (tried for of_device in self._tries.values() for tried in of_device.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled."""
        async with trio.open_nursery() as nursery:
            self._look()
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                sources, self._unseen = self._unseen, set()
                for source in sources:
                    with self._bugs_logged():
                        await self._look_at(source, nursery)

    # What is to be

    async def _look_at(self, source: str, nursery: trio.Nursery) -> None:
        """Looks at all devices of a VM that are assigned, held back, or were tried."""
        state = self._state
        keys: set[DeviceKey] = set()
        if state.store.assignments_from(source):
            devices = state.registry.devices_of(source).by_name.values()
            keys = {key for key, _ in devices if state.assignments_to(key)}
        keys |= {key for key in self._tries if key.backend == source}
        keys |= {key for key in self._told if key.backend == source}
        keys |= {row.key for row in state.store.all_held_back() if row.key.backend == source}
        for key in sorted(keys, key=lambda key: (key.device_class, key.device)):
            await trio.lowlevel.checkpoint()  # a source can have thousands
            await self._let_go_if_void(key)
            self._look_at_device(key, nursery)
        if state.is_gone(source):
            self._limits.pop(source, None)

    def _look_at_device(self, key: DeviceKey, nursery: trio.Nursery) -> None:
        if self._state.registry.get(key) is None:
            self._told.pop(key, None)
        wishes = self._wishes(key)
        for whose in {*wishes, *self._tries.get(key, ())}:
            self._look_at_wish(key, whose, wishes.get(whose), nursery)

    def _look_at_wish(
        self, key: DeviceKey, whose: str, wish: Wish | None, nursery: trio.Nursery
    ) -> None:
        tries = self._tries.get(key, {})
        tried = tries.get(whose)
        if tried is not None and wish is not None and tried.wish == wish:
            if not tried.running and not tried.over:
                self._begin(tried, nursery)
            return
        if tried is not None and tried.running:
            # It comes to its end first: no two tasks work on one device for one VM.
            # Nor is anybody asked about what is lent meanwhile.
            vm = tried.wish.assignment.vm
            if not self._stands(tried) or (tried.asking and self._is_lent(key, vm)):
                tried.give_up()
            return
        if tried is not None and self._is_kept(tried):
            return
        if tries.pop(whose, None) is not None and not tries:
            del self._tries[key]
        if wish is not None:
            tried = self._tries.setdefault(key, {})[whose] = Try(wish)
            self._begin(tried, nursery)

    def _begin(self, tried: Try, nursery: trio.Nursery) -> None:
        tried.running = True
        if tried.gone.is_set():
            tried.gone = trio.Event()
        nursery.start_soon(self._fulfil, tried)

    def _wishes(self, key: DeviceKey) -> dict[str, Wish]:
        """What is to be attached now, by whose wish it is."""
        state = self._state
        device = state.registry.get(key)
        if device is None or not self._is_lendable(key, device):
            return {}
        every = state.claims(key)
        claims = {whose: each for whose, each in every.items() if not self._is_lent(key, whose)}
        if claims or not every:
            self._tell_of_conflict(key, claims.values())
        found = {whose: self._wish(key, device, claim) for whose, claim in claims.items()}
        return {whose: wish for whose, wish in found.items() if wish is not None}

    def _wish(self, key: DeviceKey, device: Device, claim: Claim) -> Wish | None:
        """What is to be attached of this claim; None if nothing is."""
        assignment = claim.winner
        link = None if assignment is None else self._ready(assignment.vm)
        if assignment is None or link is None or self._is_held_back(key, assignment.vm):
            return None
        since = self._state.registry.since(key)
        return Wish(key, assignment, device.identity, since, device.instance, link)

    def _is_lendable(self, key: DeviceKey, device: Device) -> bool:
        """Whether a device could be given to some VM that runs, if none has it that may not share
        it."""
        state = self._state
        if unknown(state, key) is not None or key.backend in state.closing:
            return False
        if not state.facts.known:  # rules cannot be asked yet
            return False
        if device.busy is not None:  # in its source, which reports when it is not any more
            return False
        is_live = class_of(key.device_class).description.live
        return is_live and not self._sleeps(key, device.identity)

    def _is_lent(self, key: DeviceKey, vm: str) -> bool:
        """Whether a lease keeps it from a VM. Of its end is told: that of the device itself, or of
        what it shares data with."""
        return self._state.holder(key, vm) is not None

    def _ready(self, vm: str) -> AgentLink | None:
        """The agent of a VM that may be given devices now; None if it may not."""
        state, domain = self._state, self._state.domain(vm)
        if domain is None or domain.domid is None or vm in state.closing:
            return None
        # With what it starts, it gets first.
        if vm in state.facts.starting or any(row.vm == vm for row in state.store.starts()):
            return None
        return state.agents.at(vm, domain.domid)

    def _stands(self, tried: Try) -> bool:
        """Whether a wish that is being fulfilled is still one: it may be attached by now."""
        wish = tried.wish
        key, state = wish.key, self._state
        if state.registry.since(key) != wish.since or wish.link.lost:
            return False
        device = state.registry.get(key)
        if device is None or (device.instance, device.identity) != (wish.instance, wish.identity):
            return False
        return state.claim(key, wish.assignment.vm).winner == wish.assignment

    def _is_kept(self, tried: Try) -> bool:
        """Whether what came of a wish still counts: the device is the same, and so is what it is
        for."""
        return self._stands(tried) and self._ready(tried.wish.assignment.vm) is tried.wish.link

    # What a person has detached

    def _is_held_back(self, key: DeviceKey, vm: str) -> bool:
        row, device = self._state.store.held_back(key), self._state.registry.get(key)
        if row is None or device is None or row.instance != device.instance:
            return False
        domain = self._state.domain(vm)
        return domain is not None and row.runs.get(vm) == domain.domid

    async def _let_go_if_void(self, key: DeviceKey) -> None:
        """Forgets what a person has detached, once that does not matter any more."""
        state = self._state
        row = state.store.held_back(key)
        if row is None:
            return
        device, domains = state.registry.get(key), state.driver.domains()
        is_unplugged = device is None and state.is_known_absent(key)
        is_another = device is not None and device.instance != row.instance
        runs = any(vm in domains and domains[vm].domid == run for vm, run in row.runs.items())
        if is_unplugged or is_another or (not runs and state.driver.knows_all()):
            try:
                await state.store.let_go(key)
            except StoreError as error:
                if (more := self._throttle.more("store")) is not None:
                    logger.error("what is held back cannot be noted: %s%s", error, more)

    # What becomes of it

    async def _fulfil(self, tried: Try) -> None:
        try:
            with self._bugs_logged():
                await self._try(tried)
        finally:
            tried.end()
            # What has changed meanwhile was left for later.
            self._devices_changed([tried.wish.key])

    async def _try(self, tried: Try) -> None:
        """Attaches, or tries to a few times, and notes why not."""
        key, vm = tried.wish.key, tried.wish.assignment.vm
        tried.over = True  # if anything goes wrong in an unforeseen way
        tried.unstored = False
        if tried.attached and trio.current_time() - tried.attached_at >= STABLE_SECONDS:
            tried.attached = 0
        if tried.attached >= RETURNS_MAX:
            self._give_up(tried, RETURNED)
            return
        said: dict[Subject, Consent] = {}  # a person who said yes is not asked again at each try
        for pause in _pauses(tried):
            with tried.waiting():
                await trio.sleep(pause)
                await self._limit(key.backend).turn()
            if self._wishes(key).get(self._state.whose(key, vm)) != tried.wish:
                tried.over = False
                return
            error = await self._once(tried, Consents(said))
            if error is None:
                tried.attached += 1
                tried.attached_at, tried.why, tried.over = trio.current_time(), None, False
                return
            tried.why = _why(error)
            if tried.gone.is_set():  # if the wish is one again later, it is a new one
                tried.over = False
                return
            if isinstance(error, NotStoredError) != tried.unstored:
                tried.unstored = not tried.unstored
                if tried.unstored:
                    self._tell(tried, f"{tried.why}; it is tried again until that is over")
            if error.code not in AGAIN and not tried.unstored:
                break
        self._give_up(tried, tried.why or "")

    async def _once(self, tried: Try, consents: Consents) -> CallError | None:
        """One try; why it failed, or None. `tried.over` if nothing is to be tried any more."""
        wish, request = tried.wish, new_request_id()
        try:
            await self._ask_first(tried, request, consents)

            async def work() -> object:
                return await self._attach.assigned(
                    AUTO_ATTACH, request, wish.key, wish.assignment, wish.identity, tried.gone,
                    consents,
                )  # fmt: skip

            async with self._place(tried, self._places):
                try:
                    await self._operations.run("auto", DOM0_NAME, work, tried.gone)
                except CallError as error:
                    tried.denied = error.code == "denied"
                    raise
        except CallError as error:
            return error
        return None

    async def _ask_first(self, tried: Try, request: str, consents: Consents) -> None:
        """Asks dom0's user if the assignment says so, or the policy. What policy denies is not
        asked about: the attach is denied."""
        wish = tried.wish
        key, vm = wish.key, wish.assignment.vm
        subject = DeviceSubject("attach", key)
        if subject in consents.of:  # whether it still counts, the attach looks at
            return
        decision = self._authorizer.decide(DOM0_NAME, subject, vm)
        is_to_be_asked = "ask" in (wish.assignment.mode, decision.verdict)
        if decision.verdict == "deny" or not is_to_be_asked:
            return
        if decision.verdict == "allow" and decision.target != vm:
            return  # as above
        is_offered = decision.verdict == "allow" or vm in decision.candidates
        candidates = (vm,) if is_offered else ()
        decision = attrs.evolve(decision, candidates=candidates, default_target=None)
        now = trio.current_time()
        self._refused = {k: at for k, at in self._refused.items() if now - at < questions.COOL_DOWN}
        about = ((key, self._state.whose(key, vm)), (vm, wish.assignment.slot))
        if not self._refused.keys().isdisjoint(about):
            raise self._authorizer.denied(subject, vm, decision, SAID_NO)
        async with self._place(tried, self._asking):
            tried.asking = True
            try:
                needed = MustAsk(subject, vm, decision)
                await self._authorizer.ask(
                    *(AUTO_ATTACH, needed, request, consents, tried.gone),
                    assigned=wish.assignment.mode,
                )
            except CallError as error:
                tried.unasked = error.data.get("reason") in _UNASKED
                if error.data.get("reason") == questions.SAID_NO:
                    self._refused.update(dict.fromkeys(about, trio.current_time()))
                raise
            finally:
                tried.asking = False

    @asynccontextmanager
    async def _place(self, tried: Try, places: trio.CapacityLimiter) -> AsyncIterator[None]:
        """One of the `places`; CallError if the wish is void before it gets one."""
        with tried.waiting() as scope:
            await places.acquire()
        if scope.cancelled_caught:
            raise failure("failed", VOID)
        try:
            if not self._stands(tried):
                raise failure("failed", VOID)
            yield
        finally:
            places.release()

    @contextmanager
    def _bugs_logged(self) -> Iterator[None]:
        """A bug in this program must not take down the service with all its leases."""
        try:
            yield
        except Exception:
            if (more := self._throttle.more("bug")) is not None:
                logger.exception("attaching what is assigned failed in an unforeseen way%s", more)

    def _limit(self, source: str) -> RateLimit:
        if source not in self._limits:
            self._limits[source] = RateLimit(burst=BURST, per_second=PER_SECOND)
        return self._limits[source]

    # What is said of it

    def _give_up(self, tried: Try, why: str) -> None:
        tried.over, tried.why = True, why
        self._tell(tried, why)

    def _tell(self, tried: Try, why: str) -> None:
        key, vm = tried.wish.key, tried.wish.assignment.vm
        logger.warning("%s is assigned to %s, and was not attached: %s", key, vm, why)
        self._state.registry.touch(key)

    def _tell_of_conflict(self, key: DeviceKey, claims: Collection[Claim]) -> None:
        """Says once for each device that is plugged in that no VM gets it, and which VMs could."""
        since = self._state.registry.since(key)
        found = next((claim for claim in claims if claim.conflict is not None), None)
        if found is None:
            self._told.pop(key, None)
            return
        conflict, first = found.conflict, found.first
        told = (since, conflict)
        if self._told.get(key) == told or not any(self._ready(each.vm) for each in first):
            return
        self._told[key] = told
        self._state.audit_throttle.write(
            "not_attached",
            of=key.backend,
            throttled=True,
            say=f"{key} is not attached by itself: {conflict}",
            device_class=key.device_class,
            device=str(key),
            vms=sorted({each.vm for each in first})[:TOLD_VMS_MAX],
            reason=conflict,
        )


def _pauses(tried: Try) -> Iterator[float]:
    """Seconds before each try: without an end as long as it is only the store that fails."""
    yield from PAUSES[min(tried.attached, len(PAUSES) - 1) :]
    while tried.unstored:
        yield RETRY_SECONDS


# VMs that one line of the audit log names.
TOLD_VMS_MAX = 16


def _why(error: CallError) -> str:
    """The reason of a failure, in a sentence about a device."""
    if error.code != "denied":
        return error.message
    reason = error.data.get("reason")
    if reason is None and error.data.get("rule") is not None:
        reason = f"{error.data['rule']}"
    return f"denied ({reason})" if reason is not None else "denied by policy (no rule matched)"
