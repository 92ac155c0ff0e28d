"""What a transaction has on one range before its outcome: buffered writes, locks, statements.

Writes are numbered by statement so that failed statements and savepoints take back theirs. Few rows
are kept row by row (`overlay`, seen by the transaction's own reads); large batches are the host's
(`BulkWrites`), where the presence of a key stands for its row lock.

Of a table that has both, the overlay's writes came after all of the bulk's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from shardb import limits
from shardb._core.frames import join_items
from shardb.errors import SqlError, StorageError
from shardb.rpc.messages import Message, Participant, Span
from shardb.txn.locks import Key
from shardb.txn.records import Section

ACTIVE: Final = "active"
COMMITTING: Final = "committing"  # one phase, in flight: counts as prepared
PREPARING: Final = "preparing"  # prepare record in flight: counts as prepared
PREPARED: Final = "prepared"
DECIDING: Final = "deciding"  # prepared, the record of its commit in flight
DONE: Final = "done"

Reply = Callable[[Message], None]


class _Missing:
    """Marks that a key had no earlier write of the transaction."""


MISSING: Final = _Missing()
Previous = bytes | None | _Missing


class BulkWrites(Protocol):
    """Large inserts, updates and deletions of one table; their keys are locked.

    A bulk stays with its transaction until `close`.
    """

    @property
    def absorbed(self) -> bool:
        """True if the table's overlay is part of it now."""
        ...

    def holds(self, key: bytes) -> bool:
        """True if it writes this key."""
        ...

    def locks(self, key: bytes) -> bool:
        """The same, or if it did before that was taken back."""
        ...

    def first_held(self, keys: bytes, count: int) -> int:
        """The number of the first of these framed keys that it locks, -1 if none."""
        ...

    def undo(self, statement: int) -> None:
        """Takes back the rows of all statements after `statement`."""
        ...

    def keep(self, live: Iterable[int]) -> None:
        """Drops the rows of all statements but these."""
        ...

    def when_ready(
        self,
        overlay: Mapping[bytes, bytes | None] | None,
        call: Callable[[StorageError | None], None],
    ) -> None:
        """Calls, perhaps at once, when `sections` can be logged, or with the error.

        What needs it is durable then. A large one takes the `overlay` in as well.
        """
        ...

    def sections(self, table_id: int) -> list[Section]:
        """The rows, or the files they are in, as a log record has them."""
        ...

    def close(self, committed: bool) -> None:
        """The transaction has ended; a second call does nothing."""
        ...


class State:
    """One transaction on one range."""

    __slots__ = (
        "abandon",
        "after",
        "bulk",
        "bytes",
        "cancel",
        "floor",
        "held",
        "last_reply",
        "last_statement",
        "log",
        "min_commit_ts",
        "most_bytes",
        "overlays",
        "owner",
        "participants",
        "phase",
        "queued",
        "sealing",
        "snapshot_ts",
        "spans",
        "state_id",
        "statements",
        "txn_id",
        "waiters",
    )

    def __init__(
        self,
        txn_id: bytes,
        state_id: int,
        owner: object,
        most_bytes: int = limits.TXN_BUFFER_MAX_BYTES,
    ) -> None:
        self.txn_id = txn_id
        self.state_id = state_id
        self.owner = owner  # the connection it came over, opaque; None after a restart
        self.phase = ACTIVE
        self.statements: set[int] = set()
        self.abandon: Callable[[], None] | None = None  # ends the statement being carried out
        self.cancel: Callable[[int], None] | None = None  # the same, if it has this number
        self.queued: deque[Callable[[], None]] | None = None  # statements that came meanwhile
        self.last_statement = 0
        self.last_reply: Message | None = None
        self.floor = 0  # the largest commit_ts read, locked or overwritten
        self.bytes = 0  # of buffered writes, ever, with what they take beside the rows
        self.most_bytes = most_bytes
        self.log: list[tuple[int, int, bytes, bytes | None, Previous]] = []
        self.overlays: dict[int, dict[bytes, bytes | None]] = {}
        self.bulk: dict[int, BulkWrites] = {}
        self.sealing = False  # its bulk is on the way to disk, for a commit or prepare to follow
        self.held: dict[Key, int] = {}
        self.min_commit_ts = 0
        self.participants: tuple[Participant, ...] = ()
        self.snapshot_ts = 0  # SERIALIZABLE: what it has read must not change after it
        self.spans: tuple[Span, ...] = ()  # read under SERIALIZABLE, held from prepare on
        self.waiters: list[Callable[[], None]] = []  # called once the outcome is applied
        self.after: list[Callable[[], None]] = []  # called once the record in flight is durable

    @property
    def has_writes(self) -> bool:
        return bool(self.log) or bool(self.bulk)

    def next(self) -> None:
        """Begins the statement that came while another was carried out, if there is one."""
        if self.queued:
            self.queued.popleft()()

    def enqueue(self, begin: Callable[[], None]) -> None:
        """Has a statement begin after those that came before."""
        if self.queued is None:
            self.queued = deque()
        self.queued.append(begin)

    def put(self, statement: int, table_id: int, key: bytes, row: bytes | None) -> None:
        """Buffers a write; None deletes. REQUIRES: the key is locked."""
        overlay = self.overlays.get(table_id)
        if overlay is None:
            overlay = self.overlays[table_id] = {}
        self.grow(len(key) + len(row or b""))
        self.log.append((statement, table_id, key, row, overlay.get(key, MISSING)))
        overlay[key] = row

    def take(self, table_id: int) -> list[tuple[int, bytes, bytes | None]]:
        """Lets go of the overlay of a table: its writes, which another has to keep; locks stay."""
        self.overlays.pop(table_id, None)
        taken = [(entry[0], entry[2], entry[3]) for entry in self.log if entry[1] == table_id]
        self.log = [entry for entry in self.log if entry[1] != table_id]
        return taken

    def grow(self, size: int) -> None:
        """Counts bytes of writes kept row by row; 53200 if they become too many."""
        self.bytes += size + limits.TXN_ROW_BYTES
        if self.bytes > self.most_bytes:
            raise SqlError(
                "53200",
                "out of memory",
                detail=f"The transaction has written {len(self.log)} rows one by one to one range.",
                hint="Write fewer rows in a transaction, or raise --memory.",
            )

    def overlay(self, table_id: int) -> dict[bytes, bytes | None] | None:
        """The transaction's own writes to a table by key, or None."""
        return self.overlays.get(table_id)

    def undo(self, statement: int) -> None:
        """Takes back the writes of all statements after `statement`; locks stay."""
        log = self.log
        while log and log[-1][0] > statement:
            _, table_id, key, _, previous = log.pop()
            overlay = self.overlays[table_id]
            if isinstance(previous, _Missing):
                del overlay[key]
            else:
                overlay[key] = previous
        for bulk in self.bulk.values():
            bulk.undo(statement)
        self.statements = {number for number in self.statements if number <= statement}

    def keep(self, statements: Iterable[int]) -> None:
        """Drops the writes of all statements but these; 40001 if one of these is missing here."""
        live = set(statements)
        if not live <= self.statements:
            raise SqlError("40001", "a statement of the transaction did not reach a shard")
        if live == self.statements:
            return
        kept = [entry for entry in self.log if entry[0] in live]
        self.log = []
        self.overlays = {}
        for number, table_id, key, row, _ in kept:
            self.put(number, table_id, key, row)
        for bulk in self.bulk.values():
            bulk.keep(live)
        self.statements = live

    def sections(self) -> list[Section]:
        """The writes as a log record has them."""
        out = []
        for table_id, bulk in self.bulk.items():
            out += bulk.sections(table_id)
        for table_id, overlay in self.overlays.items():
            if table_id in self.bulk and self.bulk[table_id].absorbed:
                continue
            keys = [key for key, row in overlay.items() if row is not None]
            rows = [row for row in overlay.values() if row is not None]
            if keys:
                out.append(Section(table_id, len(keys), join_items(keys), join_items(rows)))
            gone = [key for key, row in overlay.items() if row is None]
            if gone:
                out.append(Section(table_id, len(gone), join_items(gone), None))
        return out

    def writes_key(self, table_id: int, key: bytes) -> bool:
        """True if the outcome may change this key."""
        overlay = self.overlays.get(table_id)
        if overlay is not None and key in overlay:
            return True
        bulk = self.bulk.get(table_id)
        return bulk is not None and bulk.holds(key)

    def writes_interval(self, table_id: int, low: bytes, high: bytes) -> bool:
        """True if the outcome may change a key of `[low, high)`; empty `high`: to the last."""
        if table_id in self.bulk:
            return True
        overlay = self.overlays.get(table_id)
        if not overlay:
            return False
        return any(key >= low and (not high or key < high) for key in overlay)

    def writes_any(self, spans: Iterable[Span]) -> bool:
        """True if the outcome may change a key of one of these."""
        return any(self.writes_interval(span.table_id, span.low, span.high) for span in spans)
