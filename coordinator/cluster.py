"""What a coordinator knows and holds of its cluster: the catalog by watch, the oracle, the driver.

The metadata store is read once, whole, and then followed by a watch; every change of a descriptor
makes a new catalog snapshot, which replaces the plans of the old one. asyncio stays in the shell:
tasks and waiters come from `Loop`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from coordinator.catalog import Catalog
from coordinator.ddl.edits import Edit
from coordinator.ddl_exec import DdlExecutor, drafted
from coordinator.deadlocks import DeadlockWatch
from coordinator.executor import Executor
from coordinator.oracle import OracleService
from coordinator.plan.cache import PlanCache
from coordinator.ports import Waiter
from coordinator.sql.catalog_tables import arrow_table
from coordinator.sql.compiler import Compiler
from coordinator.txn_driver import TxnDriver
from shardb._core.rowprog import Program
from shardb.engine.fragments import FragmentEngine
from shardb.env import Clock, Rng
from shardb.errors import SqlError
from shardb.meta import schema
from shardb.meta.registration import Registration
from shardb.meta.remote import RemoteStore
from shardb.meta.store import ChangeSet, Compacted, Store

log = logging.getLogger("coordinator.cluster")

_FOLLOWED: Final = (schema.TABLES, schema.GROUPS, schema.RANGES, schema.NODES)


class Loop(Protocol):
    """What the cluster needs of the event loop."""

    def background(self, work: Coroutine[Any, Any, None]) -> object: ...
    def waiter(self) -> Waiter: ...


class CatalogKeeper:
    """The newest catalog snapshot, kept by watching the store."""

    def __init__(self, store: Store, loop: Loop, on_change: Callable[[Catalog], None]) -> None:
        self._store = store
        self._loop = loop
        self._on_change = on_change
        self._items: dict[str, bytes] = {}
        self._waiting: list[tuple[int, Waiter]] = []
        self._draft: Edit | None = None
        self.revision = 0
        self._version = 0  # the revision of the newest change of a table, group or range
        self.catalog = Catalog.build(0)
        self.routing = self.catalog  # with the table that is being filled, if any

    async def read(self) -> None:
        """Reads everything afresh."""
        snapshot = await self._store.range("")
        self._items = {
            item.key: item.value for item in snapshot.items if item.key.startswith(_FOLLOWED)
        }
        self._version = snapshot.revision
        self._renew(snapshot.revision)

    async def follow(self) -> None:
        """Follows the store until cancelled."""
        while True:
            watch = self._store.watch("", self.revision + 1)
            try:
                async for changes in watch:
                    self._apply(changes)
            except Compacted:
                await self.read()
            finally:
                watch.close()

    async def reached(self, revision: int) -> Catalog:
        """The snapshot once it is at least as new as `revision`."""
        while self.revision < revision:
            waiter = self._loop.waiter()
            self._waiting.append((revision, waiter))
            await waiter
        return self.catalog

    def _apply(self, changes: ChangeSet) -> None:
        relevant = False
        for change in changes.changes:
            if not change.key.startswith(_FOLLOWED):
                continue
            relevant = True
            if not change.key.startswith(schema.NODES):
                self._version = changes.revision
            if change.value is None:
                self._items.pop(change.key, None)
            else:
                self._items[change.key] = change.value
        if relevant:
            self._renew(changes.revision)
        else:
            self.revision = changes.revision
            self._wake()

    def _renew(self, revision: int) -> None:
        self.revision = revision
        self.catalog = Catalog.from_store_items(self._items.items(), self._version)
        self._route()
        self._on_change(self.catalog)
        self._wake()

    def draft(self, edit: Edit) -> None:
        """Lets rows be routed to tables that are not published yet."""
        self._draft = edit
        self._route()

    def undraft(self) -> None:
        """The tables are published, or given up."""
        self._draft = None
        self._route()

    def _route(self) -> None:
        self.routing = self.catalog
        if self._draft is not None:
            self.routing = drafted(self.catalog, self._draft)

    def _wake(self) -> None:
        left = []
        for revision, waiter in self._waiting:
            if revision > self.revision:
                left.append((revision, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._waiting = left


class Cluster:
    """A coordinator's connections to its cluster, and the executor for its sessions."""

    def __init__(
        self,
        meta: str,
        listen: str,
        loop: Loop,
        engine: FragmentEngine,
        clock: Clock,
        rng: Rng,
        process_id: int,
    ) -> None:
        self.store = RemoteStore(meta)
        self._loop = loop
        self._listen = listen
        self.engine = engine
        self._clock = clock
        self._rng = rng
        self._process_id = process_id
        self._registration: Registration | None = None
        self.keeper = CatalogKeeper(self.store, loop, self._use)
        self.oracle = OracleService(self.store, clock, loop.background, rng.token(8).hex())
        self.coordinator_id = 0
        self.executor: Executor

    async def start(self) -> None:
        """Connects to the store, takes an id, and makes everything that sessions need."""
        await self.store.connect()
        self.coordinator_id = await schema.take_ids(self.store, 1)
        await self.keeper.read()
        await self.oracle.start()
        driver = TxnDriver(
            lambda: self.keeper.routing, self.oracle, self._rng, str(self.coordinator_id)
        )
        plans = PlanCache(Compiler(self.keeper.catalog), Program)
        self.driver = driver
        # The only coordinator of this version is the lead.
        self._deadlocks = DeadlockWatch(driver.loop, lambda: driver.catalog().nodes, driver.client)
        self._deadlocks.start()
        self.executor = Executor(
            driver,
            plans,
            self.engine,
            DdlExecutor(self.store, self.keeper, driver),
            arrow_table,
            self._loop.background,
            self.coordinator_id,
            self._clock.wall_us,
        )
        me = schema.Coordinator(self.coordinator_id, self._listen, self._process_id)
        key = schema.key_of(schema.Coordinator, self.coordinator_id)
        self._registration = Registration(
            self.store,
            [(key, schema.encode(me))],
            clock=lambda: self._clock.monotonic_ms() / 1000,
        )
        await self._registration.start()

    async def watch(self) -> None:
        """Follows the store; ends only by an error."""
        await self.keeper.follow()

    async def stop(self) -> None:
        """Lets go of everything."""
        if self._registration is not None:
            try:
                await self._registration.stop()
            except SqlError as error:
                log.info("not unregistered: %s", error)
        if hasattr(self, "driver"):
            self._deadlocks.stop()
            await self.driver.close()
        await self.store.close()

    def _use(self, catalog: Catalog) -> None:
        executor = getattr(self, "executor", None)
        if executor is not None:
            executor.plans.use(Compiler(catalog))
