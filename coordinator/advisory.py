"""Advisory locks: row locks of the built-in table, held by a transaction or by a session.

A transaction's are locks of it like any others. A session's are those of a transaction of their own
that is never committed: its end releases them. They are counted here; a shard hears of the first
and of the last. If a shard that has some of a session's is lost, so are they, and the session is
ended (57P02), as a crash of PostgreSQL's ends all of its sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from coordinator.ddl.edits import Edit, put
from coordinator.pgwire import messages
from coordinator.ports import Driver, Txn
from coordinator.sql.bind_advisory import AdvisoryCall
from shardb import types
from shardb.errors import SqlError
from shardb.meta.descriptors import Column, Group, Range, Table
from shardb.txn import advisory
from shardb.txn.lockmodes import SHARE, UPDATE
from shardb.types import TypeCode

if TYPE_CHECKING:
    from coordinator.catalog import Catalog
    from coordinator.conversation import Conversation
    from coordinator.executor import Executor
    from coordinator.plan.plans import AdvisoryPlan

SKIP_LOCKED: Final = 2
_PLACES: Final = 1 << 16  # of the keys' hash

TABLE: Final = Table(
    id=advisory.TABLE_ID,
    name=advisory.NAME,
    group_id=advisory.GROUP_ID,
    columns=(Column(1, "key", TypeCode.BYTEA, not_null=True),),
    primary_key=(0,),
    schema=advisory.SCHEMA,
)


class SessionLocks:
    """What one session holds beyond its transactions. `lost` is called if a shard lost some."""

    def __init__(self, driver: Driver, process_id: int, lost: Callable[[], None]) -> None:
        self._driver = driver
        self._process_id = process_id
        self._lost = lost
        self._txn: Txn | None = None
        self._counts: dict[bytes, list[int]] = {}  # by key: how often SHARE, how often UPDATE

    async def acquire(self, key: bytes, shared: bool, wait: bool, lock_timeout_s: float) -> bool:
        """Takes a lock once more; False if it does not wait and somebody is in the way."""
        counts = self._counts.get(key, [0, 0])
        if not any(counts[shared ^ 1 :]):
            if self._txn is None:
                self._txn = self._driver.begin(process_id=self._process_id)
                self._driver.session_locks.add(self)
            self._txn.lock_timeout_s = lock_timeout_s
            try:
                busy = await lock(self._driver, self._txn, key, shared, wait)
            except BaseException:
                if self._txn is not None and not self._txn.doomed:
                    await self._weaken(key, counts)  # perhaps it has been granted meanwhile
                raise
            if busy:
                return False
            counts = self._counts.setdefault(key, [0, 0])
        counts[shared ^ 1] += 1
        return True

    async def release(self, key: bytes, shared: bool) -> bool:
        """Gives a lock up once; False if it is not held like that."""
        counts = self._counts.get(key)
        if counts is None or not counts[shared ^ 1]:
            return False
        counts[shared ^ 1] -= 1
        if not counts[shared ^ 1]:
            if not any(counts):
                del self._counts[key]
            await self._weaken(key, counts)
        return True

    def release_all(self) -> None:
        """Gives everything up, without waiting."""
        self._counts = {}
        self._driver.session_locks.discard(self)
        txn, self._txn = self._txn, None
        if txn is not None:
            self._driver.abandon(txn)

    def lose(self, node_id: int) -> None:
        """A shard is gone, or its connection: what the session held there is lost."""
        txn = self._txn
        if txn is None or all(part.range.primary != node_id for part in txn.parts.values()):
            return
        held = bool(self._counts)
        self.release_all()
        if held:
            self._lost()

    async def _weaken(self, key: bytes, counts: Sequence[int]) -> None:
        mode = UPDATE if counts[1] else SHARE if counts[0] else 0
        await self._driver.unlock_key(self._txn, advisory.TABLE_ID, key, mode)


async def lock(driver: Driver, txn: Txn, key: bytes, shared: bool, wait: bool) -> bool:
    """Takes a lock for a transaction; True if somebody is in the way and it does not wait."""
    mode = SHARE if shared else UPDATE
    busy = await driver.lock_keys(
        txn, advisory.TABLE_ID, [key], (), mode, 0 if wait else SKIP_LOCKED
    )
    return bool(busy)


def make_table(catalog: Catalog, next_id: int) -> Edit:
    """The built-in table, its ranges dealt out to the shards there are by their keys' hash."""
    nodes = sorted(catalog.nodes)
    starts = [_PLACES * at // len(nodes) for at in range(len(nodes))]
    bounds = [b"", *(start.to_bytes(2, "big") for start in starts[1:]), b""]
    ranges = [
        Range(advisory.RANGE_ID + at, TABLE.group_id, low, high, 1, node, (node,), (node,))
        for at, (node, low, high) in enumerate(zip(nodes, bounds, bounds[1:], strict=False))
    ]
    return Edit(
        next_id,
        next_id + 1,
        puts=(
            put("tables", TABLE.id, TABLE),
            put("groups", TABLE.group_id, Group(TABLE.group_id, (TABLE.id,))),
            *(put("ranges", item.id, item) for item in ranges),
        ),
        install=tuple((item, TABLE) for item in ranges),
        table=TABLE,
    )


async def run(
    executor: Executor,
    session: Conversation,
    plan: AdvisoryPlan,
    values: Sequence[Any],
    txn: Txn | None,
) -> pa.Table:
    """The one row of a SELECT of advisory lock functions, after they have been carried out."""
    if advisory.TABLE_ID not in executor.catalog.tables:
        await executor.ddl.make_internal(session, advisory.TABLE_ID, make_table)
    found = await executor.query(session, plan.query, values, txn)
    if not isinstance(found, pa.Table):
        found = await session.shell.in_thread(found.read_all)
    inside = txn
    try:
        arrays = []
        for item, column in zip(plan.items, plan.columns, strict=True):
            if isinstance(item, int):
                arrays.append(found.column(item).combine_chunks())
                continue
            if inside is None and item.function.of_transaction:
                inside = executor.driver.begin(process_id=session.process_id)
            given = [
                arg.value(found.column(arg.at)[0].as_py())
                for arg in item.args
                if found.column(arg.at)[0].is_valid
            ]
            value: object = None
            if len(given) == len(item.args):  # the functions are strict
                value = await _carry_out(session, item, given, inside)
            arrays.append(pa.array([value], types.arrow_type(column.type.code, -1)))
    finally:
        if inside is not None and txn is None:
            executor.roll_back_later(inside)  # it ends with its statement
    return pa.table(arrays, names=[f"c{at}" for at in range(len(arrays))])


async def _carry_out(
    session: Conversation, call: AdvisoryCall, given: list[int], txn: Txn | None
) -> object:
    function = call.function
    locks = session.advisory
    if function.action == "release_all":
        locks.release_all()
        return ""
    key = advisory.key_of_pair(*given) if len(given) == 2 else advisory.key_of_number(given[0])
    if function.action == "release":
        done = await locks.release(key, function.shared)
        if not done:
            kind = "ShareLock" if function.shared else "ExclusiveLock"
            notice = SqlError("01000", f"you don't own a lock of type {kind}")
            session.out.append(messages.notice_response(notice))
        return done
    if function.of_transaction:
        assert txn is not None
        txn.lock_timeout_s = session.settings.lock_timeout_s
        free = not await lock(session.driver, txn, key, function.shared, function.wait)
    else:
        timeout_s = session.settings.lock_timeout_s
        free = await locks.acquire(key, function.shared, function.wait, timeout_s)
    return "" if function.wait else free
