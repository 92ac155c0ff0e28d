"""The metadata store of one machine: a SQLite file owned by one process.

Invariants: every change is in the file, synced, before it is answered (WAL, synchronous=FULL), and
the history table holds the last `HISTORY_MAX_REVISIONS` revisions, so that watches outlive the
process. Leases are in the file too; after a restart each gets its whole term again, because time
did not pass for us while we were down.

Transactions are short and run on the loop thread: at a few a second that is cheaper than a thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from shardb.errors import SqlError, StorageError
from shardb.meta.store import (
    META_TXN_MAX_OPERATIONS,
    META_VALUE_MAX_BYTES,
    Change,
    ChangeSet,
    Compacted,
    Compare,
    Delete,
    Get,
    KeyValue,
    Operation,
    Put,
    Snapshot,
    Store,
    TxnResult,
    Watch,
)

FORMAT: Final = 1
HISTORY_MAX_REVISIONS: Final = 10_000
HISTORY_TRIM_EVERY: Final = 1_000
WATCH_QUEUE_MAX_REVISIONS: Final = 100_000
LAST_CHAR: Final = chr(0x10FFFF)

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL,
    create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_lease ON kv (lease) WHERE lease <> 0;
CREATE TABLE IF NOT EXISTS history (
    revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES ('revision', 0), ('compacted', 0), ('lease', 0);
"""


class EmbeddedWatch(Watch):
    """A watch of the embedded store: first the kept history, then what the store pushes."""

    def __init__(self, store: EmbeddedStore, prefix: str, backlog: deque[ChangeSet]) -> None:
        self._store = store
        self.prefix = prefix
        self._queue = backlog
        self._wake = asyncio.Event()
        self._error: SqlError | None = None
        self._closed = False

    def push(self, revision: int, changes: Sequence[Change]) -> None:
        """Called by the store after each commit."""
        mine = tuple(change for change in changes if change.key.startswith(self.prefix))
        if not mine or self._closed:
            return
        if len(self._queue) >= WATCH_QUEUE_MAX_REVISIONS:
            self.fail(Compacted(self._queue[0].revision, revision))
            return
        self._queue.append(ChangeSet(revision, mine))
        self._wake.set()

    def fail(self, error: SqlError) -> None:
        """Ends the watch with an error, after what is queued has been dropped."""
        self._error = error
        self._queue.clear()
        self._wake.set()

    async def __anext__(self) -> ChangeSet:
        while not self._queue:
            if self._error is not None:
                self.close()
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()

    def close(self) -> None:
        self._closed = True
        self._store.forget(self)
        self._wake.set()


class EmbeddedStore(Store):
    """The store over a SQLite file; `clock` gives monotonic seconds (for leases)."""

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.monotonic) -> None:
        """Opens or creates the file. XX001 if it is no store, 0A000 if its format is newer."""
        self._path = str(path)
        self._clock = clock
        self._watches: dict[EmbeddedWatch, None] = {}  # in the order they began
        self._closed = False
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None)
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if version > FORMAT:
                self._db.close()
                raise SqlError(
                    "0A000",
                    f'metadata "{self._path}" has format {version}, '
                    f"this version reads up to {FORMAT}",
                )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version = {FORMAT}")
            counters = dict(self._db.execute("SELECT name, value FROM counter").fetchall())
        except sqlite3.OperationalError as error:
            message = f'metadata "{self._path}" cannot be opened: {error}'
            raise StorageError("58030", message) from error
        except sqlite3.DatabaseError as error:
            message = f'metadata "{self._path}" is damaged: {error}'
            raise StorageError("XX001", message) from error
        self._revision: int = counters["revision"]
        self._compacted: int = counters["compacted"]
        self._last_lease: int = counters["lease"]
        now = clock()
        self._leases: dict[int, tuple[int, float]] = {
            lease: (ttl_ms, now + ttl_ms / 1000)
            for lease, ttl_ms in self._db.execute("SELECT id, ttl_ms FROM lease")
        }

    @property
    def revision(self) -> int:
        """The revision of the last change."""
        return self._revision

    async def get(self, key: str) -> KeyValue | None:
        self._check_open()
        self.expire_leases()
        return self._read(key)

    async def range(self, prefix: str) -> Snapshot:
        self._check_open()
        self.expire_leases()
        rows = self._db.execute(
            "SELECT key, value, create_revision, mod_revision, lease FROM kv"
            " WHERE key >= ? AND key < ? ORDER BY key",
            (prefix, prefix + LAST_CHAR),
        )
        return Snapshot(self._revision, tuple(KeyValue(*row) for row in rows))

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        self._check_open()
        self.expire_leases()
        return self._commit(compare, then, otherwise)

    def watch(self, prefix: str, from_revision: int) -> Watch:
        self._check_open()
        backlog: deque[ChangeSet] = deque()
        watch = EmbeddedWatch(self, prefix, backlog)
        if from_revision <= self._compacted:
            watch.fail(Compacted(from_revision, self._compacted + 1))
            return watch
        rows = self._db.execute(
            "SELECT revision, key, value FROM history"
            " WHERE revision >= ? AND key >= ? AND key < ? ORDER BY revision, key",
            (from_revision, prefix, prefix + LAST_CHAR),
        )
        for revision, key, value in rows:
            change = Change(key, value, revision)
            if backlog and backlog[-1].revision == revision:
                backlog[-1] = ChangeSet(revision, (*backlog[-1].changes, change))
            else:
                backlog.append(ChangeSet(revision, (change,)))
        self._watches[watch] = None
        return watch

    async def grant_lease(self, ttl_ms: int) -> int:
        self._check_open()
        if ttl_ms <= 0:
            raise SqlError("22023", f"a lease needs a positive term, got {ttl_ms} ms")
        lease = self._last_lease + 1
        self._begin()
        try:
            self._db.execute("UPDATE counter SET value = ? WHERE name = 'lease'", (lease,))
            self._db.execute("INSERT INTO lease VALUES (?, ?)", (lease, ttl_ms))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._last_lease = lease
        self._leases[lease] = (ttl_ms, self._clock() + ttl_ms / 1000)
        return lease

    async def keep_alive(self, lease: int) -> bool:
        self._check_open()
        self.expire_leases()
        found = self._leases.get(lease)
        if found is None:
            return False
        self._leases[lease] = (found[0], self._clock() + found[0] / 1000)
        return True

    async def revoke_lease(self, lease: int) -> None:
        self._check_open()
        if lease in self._leases:
            self._end_lease(lease)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for watch in tuple(self._watches):
            watch.close()
        self._db.close()

    def expire_leases(self) -> None:
        """Ends the leases whose time is up; the owner calls it now and then, every call does."""
        now = self._clock()
        for lease in [lease for lease, (_, end) in self._leases.items() if end <= now]:
            self._end_lease(lease)

    def compact(self, keep_revisions: int = HISTORY_MAX_REVISIONS) -> None:
        """Forgets the history before the last `keep_revisions` revisions."""
        limit = self._revision - keep_revisions
        if limit <= self._compacted:
            return
        self._begin()
        try:
            self._db.execute("DELETE FROM history WHERE revision <= ?", (limit,))
            self._db.execute("UPDATE counter SET value = ? WHERE name = 'compacted'", (limit,))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._compacted = limit

    def forget(self, watch: EmbeddedWatch) -> None:
        """Called by a watch that ends."""
        self._watches.pop(watch, None)

    def _check_open(self) -> None:
        if self._closed:
            raise SqlError("57P01", "the metadata store is closed")

    def _read(self, key: str) -> KeyValue | None:
        row = self._db.execute(
            "SELECT key, value, create_revision, mod_revision, lease FROM kv WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else KeyValue(*row)

    def _begin(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StorageError:
        """Rolls back and names the trouble; nothing of the transaction remains."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        code = "53100" if full else "58030"
        return StorageError(code, f'metadata "{self._path}" cannot be written: {error}')

    def _commit(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]
    ) -> TxnResult:
        held = True
        for condition in compare:
            found = self._read(condition.key)
            if (0 if found is None else found.mod_revision) != condition.mod_revision:
                held = False
                break
        operations = then if held else otherwise
        if len(operations) > META_TXN_MAX_OPERATIONS:
            raise SqlError("54000", f"a metadata transaction has {len(operations)} operations")
        self._check(operations)
        if all(isinstance(operation, Get) for operation in operations):
            reads = tuple(self._read(operation.key) for operation in operations)
            return TxnResult(held, self._revision, reads)
        changes, found_reads = self._write(operations)
        return (
            TxnResult(held, self._revision, found_reads)
            if not changes
            else TxnResult(held, self._publish(changes), found_reads)
        )

    def _check(self, operations: Sequence[Operation]) -> None:
        written: set[str] = set()
        for operation in operations:
            if isinstance(operation, Get):
                continue
            if operation.key in written:
                raise SqlError("22023", f'key "{operation.key}" is written twice at once')
            written.add(operation.key)
            if isinstance(operation, Put):
                if len(operation.value) > META_VALUE_MAX_BYTES:
                    raise SqlError("54000", f'the value of "{operation.key}" is too long')
                if operation.lease and operation.lease not in self._leases:
                    raise SqlError("55000", f"lease {operation.lease} has ended")

    def _write(
        self, operations: Sequence[Operation]
    ) -> tuple[list[Change], tuple[KeyValue | None, ...]]:
        """Writes in one synced SQLite transaction; the changes (none if nothing changed)."""
        revision = self._revision + 1
        changes: list[Change] = []
        reads: list[KeyValue | None] = []
        self._begin()
        try:
            for operation in operations:
                if isinstance(operation, Put):
                    self._db.execute(
                        "INSERT INTO kv VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
                        " value = excluded.value, mod_revision = excluded.mod_revision,"
                        " lease = excluded.lease",
                        (operation.key, operation.value, revision, revision, operation.lease),
                    )
                    changes.append(Change(operation.key, operation.value, revision))
                elif isinstance(operation, Delete):
                    gone = self._db.execute("DELETE FROM kv WHERE key = ?", (operation.key,))
                    if gone.rowcount:
                        changes.append(Change(operation.key, None, revision))
                else:
                    reads.append(self._read(operation.key))
            if not changes:
                self._db.execute("ROLLBACK")
                return changes, tuple(reads)
            self._db.executemany(
                "INSERT INTO history VALUES (?, ?, ?)",
                [(revision, change.key, change.value) for change in changes],
            )
            self._db.execute("UPDATE counter SET value = ? WHERE name = 'revision'", (revision,))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return changes, tuple(reads)

    def _publish(self, changes: list[Change]) -> int:
        """Tells the watches of changes that are durable; the new revision."""
        self._revision += 1
        changes.sort(key=lambda change: change.key)
        for watch in tuple(self._watches):
            watch.push(self._revision, changes)
        if self._revision - self._compacted >= HISTORY_MAX_REVISIONS + HISTORY_TRIM_EVERY:
            self.compact()
        return self._revision

    def _end_lease(self, lease: int) -> None:
        keys = [row[0] for row in self._db.execute("SELECT key FROM kv WHERE lease = ?", (lease,))]
        if keys:
            self._publish(self._write([Delete(key) for key in keys])[0])
        self._db.execute("DELETE FROM lease WHERE id = ?", (lease,))
        del self._leases[lease]
