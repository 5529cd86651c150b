"""dom0's service as a whole: the order in which it opens everything, and how it ends.

Order of the start: it locks the state folder, which also shows whether another service runs, and
binds the sockets; then it reads the store and the journal, before it can ask an agent for anything;
then policy and the hypervisor; then the control connections; and only then it serves the first
client. At the end it detaches nothing: a restart keeps live attachments.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_host import notify
from pedos_host.folder_lock import hold_folder, make_private
from pedos_host.system_errors import what_is_wrong
from pedos_protocol.frozen import frozen

from pedos_dom0.access.audited import AuditedPolicy, facts_audited
from pedos_dom0.attachments.listening import Listening
from pedos_dom0.attachments.muting import Muting
from pedos_dom0.attachments.orphans import Orphans
from pedos_dom0.attachments.reconcile import Reconciler
from pedos_dom0.attachments.teardown import Teardown
from pedos_dom0.attachments.transaction import Transaction
from pedos_dom0.audit.log import Audit
from pedos_dom0.audit.queue import AuditQueue
from pedos_dom0.connections.agent_session import SharedParts
from pedos_dom0.connections.agent_sessions import AgentSessions
from pedos_dom0.connections.desktop_socket import Desktop, desktop_socket
from pedos_dom0.connections.local_socket import LocalSocket, listening
from pedos_dom0.requests.api import Api
from pedos_dom0.requests.operations import Operations
from pedos_dom0.state import State
from pedos_dom0.tables.leases import LeaseTable
from pedos_dom0.tables.registry import Registry
from pedos_dom0.tables.store import open_store
from pedos_dom0.vms.facts import Facts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pedos_dom0.drivers.base import Driver

logger = logging.getLogger(__name__)

# Seconds after which a thread that reads files must yield to the event loop. With Python's own 5
# ms, a request that arrives while a thousand VMs' facts are read would wait that long at every
# step.
SWITCH_INTERVAL = 0.0005


@frozen
class Config:
    """Where everything is; `vms` is the folder of VMs' facts."""

    socket: Path
    state: Path
    policy: Sequence[Path]
    # None: only the hypervisor's facts about VMs are known.
    vms: Path | None = None
    # None: root's own socket is the only one.
    desktop: Desktop | None = None


async def run(
    config: Config,
    driver: Driver,
    *,
    task_status: trio.TaskStatus[State] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until SIGTERM or SIGINT; `started` with its state once clients are served.

    Raises OSError (the socket, the folders), StoreError and HypervisorLost; in exception groups.
    """
    # A user who can open the database can also keep it locked.
    make_private(config.state)
    sys.setswitchinterval(SWITCH_INTERVAL)
    async with (
        _held(config.state),
        listening(str(config.socket)) as listener,
        desktop_socket(config.desktop) as desktop,
        open_store(config.state / "dom0.sqlite") as store,
    ):
        with contextlib.closing(AuditQueue(Audit(config.state / "audit.jsonl"))) as audit:
            policy = AuditedPolicy(config.policy, audit)
            facts = Facts(driver, config.vms)
            facts.on_read = facts_audited(facts, audit)
            state = State(
                driver=driver,
                registry=Registry(),
                leases=LeaseTable(),
                store=store,
                audit=audit,
                policy=policy,
                facts=facts,
            )
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(end_at_signal, nursery.cancel_scope)
                    await nursery.start(audit.run)
                    await nursery.start(policy.run)
                    await nursery.start(facts.run)
                    await nursery.start(driver.run)
                    api = await start_parts(state, nursery)
                    nursery.start_soon(LocalSocket(api).serve, listener)
                    if desktop is not None:
                        nursery.start_soon(desktop.serve, api)
                    audit.write("service", what="started")
                    _say_ready()
                    task_status.started(state)
            finally:
                state.audit_throttle.flush_all()
                state.listening_throttle.flush_all()
                state.call_throttle.flush_all()
                audit.write("service", what="ended")


@contextlib.asynccontextmanager
async def _held(state: Path) -> AsyncIterator[None]:
    """Keeps a second service from these files, even if the files are deleted."""
    with hold_folder(state):
        yield


async def start_parts(state: State, nursery: trio.Nursery) -> Api:
    """Starts all tasks that work on `state` in `nursery`: the whole service but its connections."""
    teardown = Teardown(state, nursery)
    muting = Muting(state, nursery)
    transaction = Transaction(state, teardown, muting)
    reconciler = Reconciler(state, teardown)
    api = Api(state, transaction, teardown, reconciler, muting, Operations(nursery))
    rows = await reconciler.load_journal()
    for device_class, carrier in state.driver.carriers.items():
        of_class = [lease for lease in rows if lease.key.device_class == device_class]
        carrier.adopt([lease for lease in of_class if state.carrier_of(lease) is carrier])
    starts = api.interrupted.load()
    await nursery.start(Orphans(state).run)
    await nursery.start(api.watch.run)
    await nursery.start(api.auto_attach.run)
    sessions = AgentSessions(
        SharedParts(state, teardown, reconciler, muting, Listening(state, nursery), api.calls, api)
    )
    await nursery.start(sessions.run)
    for lease in rows:
        nursery.start_soon(reconciler.settle, lease)
    for start in starts:
        nursery.start_soon(api.interrupted.settle, start)
    nursery.start_soon(api.sleep.finish)
    return api


async def end_at_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancels `scope` when the service is told to end."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            logger.info("ending: %s", signal.Signals(number).name)
            scope.cancel()
            return


def _say_ready() -> None:
    try:
        notify.ready()
    except OSError as error:
        logger.warning(
            "the service manager cannot be told that it is ready: %s", what_is_wrong(error)
        )
    logger.info("ready")
