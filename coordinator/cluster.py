"""What a coordinator knows and holds of its cluster: the catalog by watch, the oracle, the driver.

The metadata store is read once, whole, and then followed by a watch; every change of a descriptor
makes a new catalog snapshot, which replaces the plans of the old one. asyncio stays in the shell:
tasks and waiters come from `Loop`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from shardb.engine.fragments import FragmentEngine

from coordinator.catalog import Catalog
from coordinator.ddl.edits import Edit
from coordinator.ddl_exec import DdlExecutor, drafted
from coordinator.executor import Executor
from coordinator.plan.cache import PlanCache
from coordinator.ports import Waiter
from coordinator.sql.catalog_tables import arrow_table
from coordinator.sql.compiler import Compiler
from coordinator.txn_driver import TxnDriver
from shardb import limits
from shardb._core.rowprog import Program
from shardb.errors import SqlError
from shardb.meta import schema
from shardb.meta.registration import Registration
from shardb.meta.remote import RemoteStore
from shardb.meta.store import ChangeSet, Compacted, Compare, Put, Store
from shardb.txn.oracle import STEP, Oracle

log = logging.getLogger("coordinator.cluster")

_FOLLOWED: Final = (schema.TABLES, schema.GROUPS, schema.RANGES, schema.NODES)


class Loop(Protocol):
    """What the cluster needs of the event loop."""

    def background(self, work: Coroutine[Any, Any, None]) -> object: ...
    def waiter(self) -> Waiter: ...
    async def sleep(self, seconds: float) -> None: ...


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
        self.catalog = Catalog.build(0)
        self.routing = self.catalog  # with the table that is being filled, if any

    async def read(self) -> None:
        """Reads everything afresh."""
        snapshot = await self._store.range("")
        self._items = {
            item.key: item.value for item in snapshot.items if item.key.startswith(_FOLLOWED)
        }
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
        self.catalog = Catalog.from_store_items(self._items.items(), revision)
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


class OracleService:
    """The timestamp oracle with its bound in the store, raised ahead of use in the background."""

    def __init__(self, store: Store, loop: Loop, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._loop = loop
        self._now_ms = now_ms
        self._oracle = Oracle(0)
        self._revision = 0

    async def start(self) -> None:
        """Begins above whatever was issued before."""
        found = await self._store.get(schema.ORACLE_BOUND)
        bound = 0 if found is None else int(found.value)
        self._revision = 0 if found is None else found.mod_revision
        self._oracle = Oracle(-(-bound // STEP) * STEP)
        await self._raise()
        self._loop.background(self._keep_raising())

    async def _raise(self) -> None:
        bound = self._oracle.wanted_bound(self._now_ms())
        if not bound:
            return
        result = await self._store.txn(
            [Compare(schema.ORACLE_BOUND, self._revision)],
            [Put(schema.ORACLE_BOUND, str(bound).encode())],
        )
        if not result.succeeded:
            raise SqlError("57P01", "another coordinator has taken over the timestamp oracle")
        self._revision = result.revision
        self._oracle.persisted(bound)

    async def _keep_raising(self) -> None:
        while True:
            await self._loop.sleep(limits.ORACLE_BLOCK_MS / 8000)
            try:
                await self._raise()
            except SqlError as error:
                log.warning("the oracle's bound was not raised: %s", error)
                if error.sqlstate == "57P03":
                    await self._resync()

    async def _resync(self) -> None:
        """After a write of unknown fate: learn what the store holds."""
        try:
            found = await self._store.get(schema.ORACLE_BOUND)
        except SqlError:
            return
        if found is not None:
            self._revision = found.mod_revision
            if int(found.value) > self._oracle.bound:
                self._oracle.persisted(int(found.value))

    def issue(self) -> int:
        """A new timestamp; 57P03 if the store could not be reached for too long."""
        issued = self._oracle.issue(self._now_ms())
        if not issued:
            raise SqlError("57P03", "the timestamp oracle waits for the metadata store")
        return issued

    @property
    def issued(self) -> int:
        """The newest timestamp issued."""
        return self._oracle.issued


class Cluster:
    """A coordinator's connections to its cluster, and the executor for its sessions."""

    def __init__(self, meta: str, listen: str, loop: Loop) -> None:
        self.store = RemoteStore(meta)
        self._loop = loop
        self._listen = listen
        self._registration: Registration | None = None
        self.keeper = CatalogKeeper(self.store, loop, self._use)
        self.oracle = OracleService(self.store, loop, lambda: time.time_ns() // 1_000_000)
        self.coordinator_id = 0
        self.executor: Executor

    async def start(self) -> None:
        """Connects to the store, takes an id, and makes everything that sessions need."""
        await self.store.connect()
        self.coordinator_id = await schema.take_ids(self.store, 1)
        await self.keeper.read()
        await self.oracle.start()
        driver = TxnDriver(lambda: self.keeper.routing, self.oracle)
        plans = PlanCache(Compiler(self.keeper.catalog), Program)
        engine = FragmentEngine()
        self.driver = driver
        self.engine = engine
        self.executor = Executor(
            driver,
            plans,
            engine,
            DdlExecutor(self.store, self.keeper, driver),
            arrow_table,
            self._loop.background,
            self.coordinator_id,
        )
        me = schema.Coordinator(self.coordinator_id, self._listen, os.getpid())
        key = schema.key_of(schema.Coordinator, self.coordinator_id)
        self._registration = Registration(self.store, [(key, schema.encode(me))])
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
            await self.driver.close()
        await self.store.close()

    def _use(self, catalog: Catalog) -> None:
        executor = getattr(self, "executor", None)
        if executor is not None:
            executor.plans.use(Compiler(catalog))
