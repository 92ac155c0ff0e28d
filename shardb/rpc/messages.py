"""The messages between coordinators, shards and the metadata service, declared once.

Every request names its reply in `REPLIES`. They travel as msgpack in the frames of
`shardb.rpc.framing`; `Execute` alone has a hand-written binary form there (the hot path).
Timestamps are the oracle's 64-bit values (DESIGN: ms << 18 | logical), 0 means "none".
"""

from __future__ import annotations

import msgspec

from shardb.meta.descriptors import Range, Table
from shardb.program import ProgramSpec


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages; positional on the wire, so new fields go last with a default."""


class Ack(Message, frozen=True, tag=True):
    """Done, nothing to say."""


class Failure(Message, frozen=True, tag=True):
    """The request failed; fields as in `shardb.errors.SqlError`.

    `aborted` says the transaction has a durable abort record or no state at all here. `state_id`:
    the failed statement's transaction goes on here with its locks, in this state ("row changed").
    """

    sqlstate: str
    message: str
    position: int = 0
    detail: str = ""
    hint: str = ""
    where: str = ""
    constraint: str = ""
    aborted: bool = False
    state_id: int = 0


class TxnRef(msgspec.Struct, frozen=True, array_like=True):
    """Which transaction and statement a message belongs to.

    `txn_id` is 16 bytes (`shardb.txn.ids`); `state_id` names the participant's state on this range:
    0 asks for new state (the reply carries its id), else the state must exist (PROTOCOL: all or
    nothing).
    `statement` numbers statements from 1; `txn_ts` is the coordinator's newest timestamp.
    """

    txn_id: bytes
    state_id: int
    statement: int
    txn_ts: int


class Participant(msgspec.Struct, frozen=True, array_like=True):
    """A range of a transaction as others find it: range id, a key in it, the state there."""

    range_id: int
    node_id: int
    key: bytes
    state_id: int


class Span(msgspec.Struct, frozen=True, array_like=True):
    """What a SERIALIZABLE transaction has read: `[low, high)` of a table's keys, rows or none.

    An empty `high` is "to the last key".
    """

    table_id: int
    low: bytes
    high: bytes


class Hello(Message, frozen=True, tag=True):
    """First message on a connection: who speaks and which protocol version.

    `issued`: from a coordinator, an oracle timestamp issued after the connection was made. A range
    serves nothing before one arrives: it bounds all reads its node's former life has served.
    """

    peer: str
    protocol: int
    issued: int = 0


class RegisterProgram(Message, frozen=True, tag=True):
    """Makes `spec` known as `program_id` (a hash of the spec chosen by the coordinator)."""

    program_id: int
    spec: ProgramSpec
    table: Table


class Execute(Message, frozen=True, tag=True):
    """Runs a registered program on one range.

    `formats`: result format of each output column (0 text, 1 binary), or one for all, or none
    (text).
    `commit`: commit in one phase with the statement (autocommit; `txn` then has state_id 0).
    `read_ts` 0: a lone read of the newest committed versions (selects), the newest version under
    lock (what writes or locks). Else it is a snapshot: what writes or locks finds its rows there,
    and fails with 40001 if one has changed since. `txn` None is allowed for selects only.
    `nowait`: 0 wait for locks, 1 NOWAIT, 2 SKIP LOCKED. Params: docs/formats/row.md.
    """

    range_id: int
    program_id: int
    read_ts: int
    floor: int
    known_issued: int
    txn: TxnRef | None
    commit: bool
    nowait: int
    params: bytes
    formats: bytes


class Rows(Message, frozen=True, tag=True):
    """Answer to Execute: ready DataRow messages, the number of rows selected or changed.

    `commit_ts` is set if it committed; `newest_ts` is the largest commit_ts read or overwritten.
    """

    data: bytes
    rows: int
    state_id: int
    commit_ts: int
    newest_ts: int


class Write(Message, frozen=True, tag=True):
    """Buffers writes by key in a transaction on one range (multi-row INSERT, COPY, DML by query).

    `mode`: `insert` (an existing key is 23505), `insert_ignore` (DO NOTHING), `put` (must exist or
    not does not matter), `update` / `delete` (each key's newest commit_ts must equal `expected_ts`,
    else 40001 with message "row changed": the coordinator re-runs the statement).
    `read_ts`: the snapshot of a transaction that keeps one, or 0; for `insert_ignore`, a row in the
    way that came after it is 40001.
    keys/rows: concatenated `u32 length, bytes` items in the same order; rows empty for delete.
    `commit`: as in Execute.
    `lock`: the mode to lock rows in (`shardb.txn.lockmodes`), 0 for the one that goes with `mode`.
    More modes: `lock` locks the rows and writes nothing, checking `expected_ts` as `update` does,
    with `nowait` as in Execute: what SKIP LOCKED skips is told by index and not checked. `unlock`
    goes on with each lock in the mode `lock`, 0 gives it up: for advisory locks only.
    """

    range_id: int
    table_id: int
    read_ts: int
    floor: int
    known_issued: int
    txn: TxnRef
    commit: bool
    mode: str
    count: int
    keys: bytes
    rows: bytes
    expected_ts: tuple[int, ...] = ()
    lock: int = 0
    nowait: int = 0


class Written(Message, frozen=True, tag=True):
    """Answer to Write: rows written, and the indexes of those that insert_ignore or SKIP LOCKED
    skipped."""

    count: int
    skipped: tuple[int, ...]
    state_id: int
    commit_ts: int
    newest_ts: int


class Bound(msgspec.Struct, frozen=True, array_like=True):
    """What a scan's filter implies for one column: its values lie within `[low, high]`.

    Both are keys of that one column (`KeyCodec` with (type_code, typmod, False, False)); an empty
    one does not bound. A row with NULL in the column does not pass the filter either.
    """

    column: int
    low: bytes
    high: bytes


class Scan(Message, frozen=True, tag=True):
    """Reads `[start, end)` of one table in one range at `read_ts`, as a stream of Arrow chunks.

    `columns`: column positions wanted; `with_key` adds binary `_key` and uint64 `_ts` (commit_ts)
    columns at the end. `filter`: engine SQL over the column names `c0, c1, ...` (by table position)
    or empty; bound and printed by the coordinator, never a client's text.
    The transaction's own writes are seen if `txn` is given.
    `schema_version`: the version of the table whose column positions are meant, here and in the
    answer; 0 is the shard's present one. `bounds` follow from the filter and are hints: rows
    outside may be left out early.
    """

    range_id: int
    table_id: int
    read_ts: int
    start: bytes
    end: bytes
    columns: tuple[int, ...]
    with_key: bool
    filter: str
    txn: TxnRef | None
    schema_version: int = 0
    bounds: tuple[Bound, ...] = ()


class Chunk(Message, frozen=True, tag=True):
    """One chunk of a stream: an Arrow IPC stream of its own (schema and batches)."""

    data: bytes
    rows: int


class StreamEnd(Message, frozen=True, tag=True):
    """The stream is complete; an error ends it with Failure instead."""

    rows: int
    newest_ts: int


class CommitOne(Message, frozen=True, tag=True):
    """Commits everything the transaction has on this single range. `statements`: the live ones.

    `spans` as in Prepare.
    """

    range_id: int
    txn: TxnRef
    statements: tuple[int, ...]
    floor: int
    known_issued: int
    snapshot_ts: int = 0
    spans: tuple[Span, ...] = ()


class Prepare(Message, frozen=True, tag=True):
    """Phase one of a commit over several ranges. Answered by Prepared or Failure(aborted=True).

    `snapshot_ts` is that of a SERIALIZABLE transaction, else 0, and `spans` what it has read there
    of this range: nothing in them may have changed since, nor change before its outcome. A range
    that it only has read has no state of it: `txn.state_id` is 0 then.
    """

    range_id: int
    txn: TxnRef
    statements: tuple[int, ...]
    participants: tuple[Participant, ...]
    floor: int
    known_issued: int
    snapshot_ts: int = 0
    spans: tuple[Span, ...] = ()


class Prepared(Message, frozen=True, tag=True):
    """Durably prepared; the commit timestamp will be the maximum over participants."""

    min_commit_ts: int


class Committed(Message, frozen=True, tag=True):
    """Durably committed at `commit_ts`."""

    commit_ts: int


class Decide(Message, frozen=True, tag=True):
    """The outcome of a prepared transaction: commit_ts, or 0 for abort. Answered when durable."""

    range_id: int
    txn_id: bytes
    commit_ts: int


class Rollback(Message, frozen=True, tag=True):
    """Drops a transaction's unprepared state, or (from `statement` > 0) undoes later statements."""

    range_id: int
    txn_id: bytes
    state_id: int
    statement: int = 0


class CancelStatement(Message, frozen=True, tag=True):
    """Ends a statement's wait for a lock: it fails with 57014. One that does not wait goes on."""

    range_id: int
    txn_id: bytes
    statement: int


class WaitEdge(msgspec.Struct, frozen=True, array_like=True):
    """One transaction waits for another. `wait` numbers the waits of a node's process from 1.

    `what` is what it waits for, in PostgreSQL's words ("ShareLock on transaction 7").
    """

    wait: int
    waiter: bytes
    blocker: bytes
    what: str


class WatchWaits(Message, frozen=True, tag=True):
    """Asks a node who waits for whom, of the waits that last for WAIT_REPORTED_MS already.

    Answered by WaitReport as soon as that is another report than number `known`; 0: at once.
    """

    known: int


class WaitReport(Message, frozen=True, tag=True):
    """Who waits for whom on a node. `number` is the report's; equal reports have the same."""

    number: int
    edges: tuple[WaitEdge, ...]


class BreakWait(Message, frozen=True, tag=True):
    """Ends a wait with 40P01 and this detail, if it still lasts."""

    wait: int
    detail: str


class ListLocks(Message, frozen=True, tag=True):
    """Asks a node for its row locks, for pg_locks."""


class LockEntry(msgspec.Struct, frozen=True, array_like=True):
    """A row lock that is held (`granted`) or waited for, in a mode of `shardb.txn.lockmodes`."""

    table_id: int
    key: bytes
    txn_id: bytes
    mode: int
    granted: bool


class LockList(Message, frozen=True, tag=True):
    """Answer to ListLocks: at most LOCKS_LISTED_MAX."""

    entries: tuple[LockEntry, ...]


class QueryOutcome(Message, frozen=True, tag=True):
    """What became of a transaction here? With `record`, no trace makes a durable abort."""

    range_id: int
    txn_id: bytes
    record: bool


class Outcome(Message, frozen=True, tag=True):
    """`state`: prepared (with min_commit_ts in `ts`), committed (commit_ts), aborted or unknown."""

    state: str
    ts: int


class InstallTable(Message, frozen=True, tag=True):
    """Creates (idempotently) a range if needed and a table's tablet in it.

    A newer descriptor of a table that is there replaces it: from then on rows and programs of its
    schema version come too, beside those of earlier ones.
    """

    range: Range
    table: Table


class DropTable(Message, frozen=True, tag=True):
    """Drops a table's tablet from a range, and the range with its last tablet."""

    range_id: int
    table_id: int


class Status(Message, frozen=True, tag=True):
    """Asks a node for its counters."""


class StatusReply(Message, frozen=True, tag=True):
    """Counters by name; `ranges` maps range id to rows (versions counted once) and bytes."""

    counters: dict[str, int]
    ranges: dict[int, tuple[int, int]]


class Forget(Message, frozen=True, tag=True):
    """All participants have acknowledged these transactions' outcomes: they may be forgotten."""

    range_id: int
    txn_ids: tuple[bytes, ...]
