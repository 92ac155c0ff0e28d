"""The shell that carries out what shardb.txn decides: routing, statements on shards, commits.

One driver serves all sessions of a coordinator. Row programs take no task, no coroutine and no
future on their way: `execute_row` sends, and a callback gets the answer. All methods belong to the
event loop's thread.

A transaction's ranges are known here by what they answered: a `Part` holds the state id and the
statements of one range. Retries happen only where nothing can have had an effect: lone reads, and
autocommit statements that certainly aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from coordinator import scans
from coordinator.advisory import SessionLocks
from coordinator.catalog import Catalog
from coordinator.commit import TwoPhaseRun, commit_one, ignore
from coordinator.gate import TableGate
from coordinator.isolation import READ_COMMITTED, SNAPSHOT_LEVELS
from coordinator.oracle import OracleService
from coordinator.plan.plans import RowPlan, ScanStage
from coordinator.range_write import write_message, write_range
from coordinator.rowcall import Part, RowCall, Txn
from coordinator.writes import WriteResult, as_uint64, offsets_of
from shardb._core.frames import split_by_range
from shardb.env import Rng
from shardb.errors import SqlError
from shardb.meta.descriptors import Range, Table
from shardb.program import ProgramSpec
from shardb.rpc import framing
from shardb.rpc import messages as m
from shardb.rpc.transport import LOST, Client
from shardb.txn import ids

if TYPE_CHECKING:
    from typing_extensions import Buffer

RowResult = m.Rows  # .data (ready DataRow messages) and .rows
OnDone = Callable[[RowResult | SqlError], None]

CONNECT_WAIT_S: Final = 5.0  # how long a statement waits for a shard that is away
ANSWER_WAIT_S: Final = 30.0  # how long a commit waits for a lost answer before it is 08007
RETRY_PAUSE_S: Final = 0.02
FORGET_BATCH: Final = 256


class TxnDriver:
    """Transactions over the shards of one cluster.

    `catalog` gives the newest snapshot. REQUIRES: made on a running event loop, `oracle` started.
    """

    def __init__(
        self, catalog: Callable[[], Catalog], oracle: OracleService, rng: Rng, name: str = "c"
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.catalog = catalog
        self.oracle = oracle
        self.newest_seen = 0  # the largest timestamp any answer carried: the next request's floor
        self.gate = TableGate()
        self.session_locks: set[SessionLocks] = set()
        self._name = name
        self._incarnation = int.from_bytes(rng.token(2), "big")
        self._numbers = 0
        self._clients: dict[int, Client] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forget: dict[int, list[bytes]] = {}

    # --- for sessions

    def begin(self, level: str = READ_COMMITTED, process_id: int = 0) -> Txn:
        """A new transaction, of a session if it is one's; nothing is sent before its first
        statement.
        """
        return Txn(self.new_id(process_id), level, process_id)

    def execute_row(
        self,
        txn: Txn | None,
        plan: RowPlan,
        program: Any,
        params: bytes,
        formats: bytes,
        on_done: OnDone,
        process_id: int = 0,
    ) -> RowCall:
        """Runs a row program; `on_done` is called once, never before this returns.

        `process_id` is the session's, for a statement on its own. The call's `cancel` ends a wait.
        REQUIRES: the gate does not bar the statement.
        """
        call = RowCall(self, txn, plan, program, params, formats, on_done, process_id)
        call.start()
        if call.writes:
            if txn is None:
                self.gate.calls.add(call)
            elif plan.program.table_id not in txn.tables:
                self.gate.enter(txn, plan.program.table_id)
        return call

    def needs_fallback(self, plan: RowPlan, program: Any, params: bytes) -> bool:
        """True if `plan.fallback` must be used: several ranges, and no concatenating."""
        spec = plan.program
        if not spec.aggregates and spec.limit is None and spec.offset is None:
            return False
        return spec.kind == "select" and len(self.route(spec, program, params)) > 1

    async def snapshot(self, txn: Txn | None) -> int:
        """A timestamp for the scans of one statement."""
        return self.read_ts_of(txn) or self.oracle.issue()

    def read_ts_of(self, txn: Txn | None) -> int:
        """The snapshot that a transaction keeps, taken with its first statement; 0: it has none."""
        if txn is None or txn.level not in SNAPSHOT_LEVELS:
            return 0
        if not txn.snapshot_ts:
            txn.snapshot_ts = self.oracle.issue()
            txn.floor = max(txn.floor, txn.snapshot_ts)
        return txn.snapshot_ts

    async def run_scan(self, txn: Txn | None, stage: ScanStage, read_ts: int = 0) -> pa.Table:
        """Gathers a stage; its interval and filter are final. `read_ts` 0 takes a snapshot.

        The table has the columns `c<position>` and, with `with_key`, `_key` and `_ts`; positions
        are those of the stage's schema version, which may be an earlier one.
        """
        return await scans.run_scan(self, txn, stage, read_ts)

    async def has_rows(self, table: Table) -> bool:
        """True if the table has a committed row now."""
        return await scans.has_rows(self, table)

    async def write(
        self,
        txn: Txn,
        table_id: int,
        mode: str,
        keys: Sequence[bytes],
        rows: Sequence[bytes],
        expected_ts: Sequence[int] = (),
    ) -> WriteResult:
        """Writes rows by key, each to its range, as one statement (see messages.Write)."""
        row_data = None if mode == "delete" else b"".join(rows)
        row_offsets = None if row_data is None else offsets_of(rows)
        return await self.write_encoded(
            txn,
            table_id,
            mode,
            b"".join(keys),
            offsets_of(keys),
            row_data,
            row_offsets,
            expected_ts,
        )

    async def lock_keys(
        self,
        txn: Txn,
        table_id: int,
        keys: Sequence[bytes],
        expected_ts: Sequence[int],
        mode: int,
        nowait: int,
    ) -> set[bytes]:
        """Locks rows by key; those that `nowait` 2 (SKIP LOCKED) skipped.

        `expected_ts` are the versions they were read in; if one has changed: `is_row_changed`.
        """
        result = await self.write_encoded(
            txn,
            table_id,
            "lock",
            b"".join(keys),
            offsets_of(keys),
            None,
            None,
            expected_ts,
            mode,
            nowait,
        )
        return {keys[index] for index in result.skipped}

    async def unlock_key(self, txn: Txn, table_id: int, key: bytes, mode: int) -> None:
        """Goes on with a lock in a weaker mode, 0 for none (see messages.Write, `unlock`)."""
        offsets = offsets_of([key])
        await self.write_encoded(txn, table_id, "unlock", key, offsets, None, None, (), mode)

    async def write_encoded(
        self,
        txn: Txn,
        table_id: int,
        mode: str,
        keys: bytes,
        key_offsets: Any,
        rows: bytes | None,
        row_offsets: Any,
        expected_ts: Sequence[int] = (),
        lock: int = 0,
        nowait: int = 0,
    ) -> WriteResult:
        """`write` for concatenated keys and rows with n + 1 offsets each (bulk).

        Offsets are integers of 4 or 8 bytes, signed or not; they begin with 0.
        """
        self.check(txn)
        key_offsets = as_uint64(key_offsets)
        row_offsets = None if row_offsets is None else as_uint64(row_offsets)
        catalog = self.catalog()
        table = catalog.table(table_id)
        range_map = catalog.range_maps[table.group_id]
        count = len(key_offsets) - 1
        dealt = split_by_range(keys, key_offsets, rows, row_offsets, range_map.starts)
        txn.statement += 1
        sends = []
        for at, members, framed_keys, framed_rows in dealt:
            expected = tuple(expected_ts)
            if members is not None and expected:
                expected = tuple(expected_ts[i] for i in members)
            size = count if members is None else len(members)
            item = range_map.ranges[at]
            message = write_message(table_id, mode, size, expected, lock, nowait)
            sends.append(
                write_range(
                    self, txn, item, txn.statement, message, framed_keys, framed_rows, members
                )
            )
        results = await self._all_or_stop(sends)
        skipped = sorted(index for result in results for index in result.skipped)
        return WriteResult(sum(result.count for result in results), tuple(skipped))

    async def write_dealt(
        self, txn: Txn, table_id: int, item: Range, count: int, keys: Buffer, rows: Buffer
    ) -> None:
        """Inserts rows of one range, framed already, as a statement of its own.

        Several may be under way, but the first on a range has to end before the next is begun.
        """
        self.check(txn)
        txn.statement += 1
        message = write_message(table_id, "insert", count)
        await write_range(self, txn, item, txn.statement, message, keys, rows, None)

    def mark(self, txn: Txn) -> int:
        """A savepoint: the number of the last statement."""
        return txn.statement

    async def rollback_to(self, txn: Txn, statement: int) -> None:
        """Undoes all statements after `statement` (from `mark`)."""
        if txn.doomed:
            raise SqlError("40001", "the transaction was aborted by a shard")
        sends = []
        for range_id, part in list(txn.parts.items()):
            if part.statements and part.statements[-1] <= statement:
                continue
            part.statements = [number for number in part.statements if number <= statement]
            message = m.Rollback(range_id, txn.txn_id, part.state_id, statement)
            sends.append(self._request(part.range, message))
        try:
            await self.together(sends)
        except SqlError as error:
            txn.doomed = True
            raise SqlError("40001", "a shard lost the transaction") from error

    async def commit(self, txn: Txn) -> None:
        """Commits. Class 40 errors mean certainly aborted; 08007 that the outcome is unknown."""
        if txn.doomed:
            await self.rollback(txn)
            raise SqlError("40001", "the transaction was aborted by a shard")
        try:
            self.oracle.issue()
            parts = self._participants(txn)
        except SqlError:
            self.abandon(txn)  # before anything that could commit it has been sent
            raise
        txn.parts = {}
        try:
            if len(parts) == 1:
                await commit_one(self, txn, parts[0])
            elif parts:
                await TwoPhaseRun(self, txn, parts).run()
        finally:
            self.gate.left(txn)

    def _participants(self, txn: Txn) -> list[Part]:
        """Whom a commit concerns; under SERIALIZABLE also the ranges that were only read.

        42P01 if a table that was read is gone: nobody can say whether it was changed.
        """
        parts = list(txn.parts.values())
        if parts and txn.spans is not None:
            for range_id, (item, spans) in txn.spans.by_range(self.catalog()).items():
                part = txn.parts.get(range_id)
                if part is None:
                    part = Part(item, 0)
                    parts.append(part)
                part.spans = spans
        return parts

    async def rollback(self, txn: Txn) -> None:
        """Drops everything; never fails."""
        self.abandon(txn)

    def abandon(self, txn: Txn) -> None:
        """The same without waiting: later requests overtake nothing on their connections."""
        parts, txn.parts = txn.parts, {}
        entering, txn.entering = txn.entering, {}
        txn.doomed = txn.ended = True
        for item in entering.values():
            message = m.Rollback(item.id, txn.txn_id, 0)
            self.client(item.primary).call(message, ignore)
        for range_id, part in parts.items():
            message = m.Rollback(range_id, txn.txn_id, part.state_id)
            self.client(part.range.primary).call(message, ignore)
        self.gate.left(txn)

    # --- tables

    async def install_table(self, table_id: int) -> None:
        """Makes a table's tablets on its shards (after its descriptors are in the store)."""
        catalog = self.catalog()
        table = catalog.table(table_id)
        await self.install(table, catalog.ranges_for(table.group_id))

    async def install(self, table: Table, ranges: Sequence[Range]) -> None:
        """The same for given descriptors."""
        await self.together([self._request(item, m.InstallTable(item, table)) for item in ranges])

    async def drop_table(self, table: Table, ranges: Sequence[Range]) -> None:
        """Drops a table's tablets (after its descriptors are gone)."""
        await self.together(
            [self._request(item, m.DropTable(item.id, table.id)) for item in ranges]
        )

    async def status(self) -> dict[int, m.StatusReply | SqlError]:
        """Every shard's counters, or why it did not answer."""
        out: dict[int, m.StatusReply | SqlError] = {}
        for node_id in self.catalog().nodes:
            try:
                reply = await self.client(node_id).request(m.Status())
            except SqlError as error:
                out[node_id] = error
                continue
            assert isinstance(reply, m.StatusReply)
            out[node_id] = reply
        return out

    async def list_locks(self) -> list[m.LockEntry]:
        """The row locks of all shards that answer."""
        found: list[m.LockEntry] = []
        for node_id in sorted(self.catalog().nodes):
            try:
                reply = await self.client(node_id).request(m.ListLocks())
            except SqlError:
                continue  # its locks are gone with it, or cannot be told now
            assert isinstance(reply, m.LockList)
            found += reply.entries
        return found

    async def close(self) -> None:
        """Closes the connections."""
        for task in list(self._tasks):
            task.cancel()
        for client in self._clients.values():
            await client.close()

    # --- for row calls

    def client(self, node_id: int) -> Client:
        """The connection to a shard, made if there is none."""
        client = self._clients.get(node_id)
        if client is not None and client.connected:
            return client
        node = self.catalog().nodes.get(node_id)
        if node is None:
            if client is None:
                raise SqlError("57P03", f"shard {node_id} is not known to the cluster")
            return client  # gone from the catalog for now: its old address is the best guess
        if client is None or client.address != node.address:
            if client is not None:
                self.spawn(client.close())
            client = self._clients[node_id] = Client(node.address, self._hello, self.loop)
            client.lost = lambda: self._lost(node_id)
        return client

    def route(self, spec: ProgramSpec, program: Any, params: bytes) -> Sequence[Range]:
        """The ranges a program has to run on, in key order; at least one."""
        catalog = self.catalog()
        table = catalog.tables.get(spec.table_id)
        if table is None:
            raise SqlError("42P01", "the table has been dropped")
        ranges = catalog.range_maps[table.group_id]
        if len(ranges.ranges) == 1:
            return ranges.ranges
        if spec.kind == "insert":
            keys = [key for key, _ in program.insert(params)]
        elif program.is_points:
            keys = program.points(params)
        else:
            interval = program.interval(params)
            if interval is None:
                return ranges.ranges[:1]
            return ranges.meet(*interval) or ranges.ranges[:1]
        if len(keys) == 1:
            return (ranges.find(keys[0]),)
        if not keys:
            return ranges.ranges[:1]
        met = {item.id: item for item in map(ranges.find, keys)}
        return sorted(met.values(), key=lambda item: item.start)

    def saw(self, ts: int) -> None:
        """Learns a timestamp from an answer."""
        if ts > self.newest_seen:
            self.newest_seen = ts

    def joined(
        self, txn: Txn, item: Range, state_id: int, failed: bool = False, statement: int = 0
    ) -> None:
        """A statement has succeeded on a range; if the transaction has ended, it ends there too."""
        if txn.ended:
            message = m.Rollback(item.id, txn.txn_id, state_id)
            self.client(item.primary).call(message, ignore)
        else:
            txn.joined(item, state_id, failed, statement)

    def new_id(self, process_id: int, begin_ts: int = 0) -> bytes:
        """A transaction id; a statement that is run again keeps its `begin_ts`."""
        self._numbers += 1
        begin_ts = begin_ts or self.oracle.issued
        return ids.make(begin_ts, process_id, self._incarnation, self._numbers)

    async def settled(self, future: asyncio.Future[Any]) -> Any:
        """Waits for a future, whatever happens to the waiting task meanwhile.

        A commit that has been sent may take effect: its client has to hear what became of it.
        """
        while True:
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                if future.cancelled():
                    raise

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something in the background."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def check(self, txn: Txn) -> None:
        """40001 if the transaction cannot go on."""
        if txn.doomed:
            raise SqlError("40001", "the transaction was aborted by a shard")

    async def outcome_of(self, item: Range, txn_id: bytes) -> m.Outcome | None:
        """Asks for an outcome until it is known, making it abort if it is open; None: no answer."""
        end = self.loop.time() + ANSWER_WAIT_S
        while self.loop.time() < end:
            client = self.client(item.primary)
            if await client.wait_connected(1.0):
                try:
                    reply = await client.request(m.QueryOutcome(item.id, txn_id, True))
                except SqlError:
                    reply = LOST
                if isinstance(reply, m.Outcome):
                    return reply
            await asyncio.sleep(RETRY_PAUSE_S)
        return None

    async def wait_for(self, item: Range) -> Client:
        """A connection to a range's primary; 57P03 if there is none in time."""
        end = self.loop.time() + CONNECT_WAIT_S
        while True:
            client = self.client(item.primary)
            if await client.wait_connected(0.25):
                return client
            if self.loop.time() > end:
                raise SqlError("57P03", f"shard {item.primary} cannot be reached")

    async def pause(self) -> None:
        """A moment before something is tried again."""
        await asyncio.sleep(RETRY_PAUSE_S)

    async def together(self, work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Runs coroutines at once; all have ended when the first error is raised."""
        if len(work) == 1:
            return [await work[0]]
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return list(results)

    # --- inner workings

    async def _all_or_stop(self, work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """`together`, but the first error ends the waits of the others."""
        if len(work) == 1:
            return [await work[0]]
        tasks = [self.loop.create_task(one) for one in work]

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and task.exception() is not None:
                errors.append(task.exception())
                for other in tasks:
                    other.cancel()

        errors: list[BaseException | None] = []
        for task in tasks:
            task.add_done_callback(ended)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if errors and errors[0] is not None:
            raise errors[0]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return list(results)

    def _lost(self, node_id: int) -> None:
        """A connection is gone, and with it what sessions held on the shard."""
        for locks in list(self.session_locks):
            locks.lose(node_id)

    def _hello(self) -> m.Hello:
        issued = self.oracle.issue()  # an error makes the client try again later
        return m.Hello(f"coordinator {self._name}", framing.PROTOCOL_VERSION, issued)

    async def _request(self, item: Range, message: m.Message) -> m.Message:
        """A request that may be sent again: idempotent ones only."""
        end = self.loop.time() + CONNECT_WAIT_S
        while True:
            client = await self.wait_for(item)
            try:
                return await client.request(message)
            except SqlError as error:
                if error.sqlstate not in ("08006", "57P03") or self.loop.time() > end:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    def acknowledged(self, txn_id: bytes, parts: Sequence[Part]) -> None:
        """All participants know a commit durably: they may forget it, told in batches."""
        for part in parts:
            waiting = self._forget.setdefault(part.range.id, [])
            waiting.append(txn_id)
            if len(waiting) >= FORGET_BATCH:
                del self._forget[part.range.id]
                message = m.Forget(part.range.id, tuple(waiting))
                self.client(part.range.primary).call(message, ignore)
