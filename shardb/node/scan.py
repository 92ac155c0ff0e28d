"""Scans: a snapshot of one table in one range as a stream of Arrow chunks.

The loop thread waits for what is prepared at or before the snapshot and takes the transaction's own
writes; a worker then draws the batches, filters them in the fragment engine and sends them as far
as the reader's credit goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Final

import pyarrow as pa

from shardb.errors import SqlError
from shardb.node.ranges import LocalRange
from shardb.node.statements import too_old
from shardb.rpc import messages as m
from shardb.rpc.transport import ServerStream, error_failure
from shardb.storage.scan import scan_runs
from shardb.storage.tablet import Tablet
from shardb.txn.state import State
from shardb.types import arrow_type

Filter = Callable[[str, pa.RecordBatchReader], pa.RecordBatchReader]
SCAN_NAME: Final = "scan"
_COLUMN: Final = re.compile(r"\bc(\d+)\b")


class ScanJob:
    """One Scan request."""

    def __init__(
        self,
        local: LocalRange,
        message: m.Scan,
        stream: ServerStream,
        reply: Callable[[m.Message], None],
        workers: Executor,
        filter_rows: Filter,
    ) -> None:
        self._local = local
        self._message = message
        self._stream = stream
        self._reply = reply
        self._workers = workers
        self._filter_rows = filter_rows

    def start(self) -> None:
        """Waits for prepared transactions in the way, then hands over to a worker."""
        message = self._message
        local = self._local
        participant = local.participant
        participant.note(message.read_ts)
        state: State | None = None
        if message.txn is not None and message.txn.state_id:
            state = participant.states.get(message.txn.txn_id)
            if state is None or state.state_id != message.txn.state_id:
                self._stream.end(m.Failure("40001", "the transaction was lost by a shard"))
                return
        low = max(message.start, local.low)
        high = _least(message.end, local.high)
        ts = participant.read_at(message.read_ts, 0)
        blocker = participant.blocking(message.table_id, None, (low, high), ts, state)
        if blocker is not None:
            blocker.waiters.append(self._woken)
            return
        tablet = local.tablets.get(message.table_id)
        if tablet is None:  # dropped while this waited
            self._stream.end(m.Failure("42P01", "the table has been dropped"))
            return
        columns = list(message.columns)
        extra = sorted({int(c) for c in _COLUMN.findall(message.filter)} - set(columns))
        try:
            if message.read_ts and message.read_ts < tablet.gc_ts:
                raise too_old(message.read_ts)
            batches = self._batches(tablet, columns + extra, ts, low, high, state)
        except (SqlError, ValueError, MemoryError) as error:
            self._stream.end(error_failure(error))
            return
        local.engine.hold(ts)
        self._workers.submit(self._run, batches, bool(extra), ts)

    def _batches(
        self,
        tablet: Tablet,
        positions: list[int],
        ts: int,
        low: bytes,
        high: bytes,
        state: State | None,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the columns at these positions, as the message's schema version has them."""
        message = self._message
        runs = self._local.runs(message.table_id, message.schema_version, state)
        types = runs.layout.types
        return scan_runs(
            runs,
            positions,
            [arrow_type(*types[position]) for position in positions],
            ts,
            low,
            high,
            message.with_key,
            None if state is None else state.overlay(message.table_id),
            batch_rows=self._local.engine.budget.scan_rows,
            bounds=[(bound.column, bound.low, bound.high) for bound in message.bounds],
            shadows=tablet.shadows,
        )

    def _woken(self) -> None:
        """Goes on after a wait; an error goes to the reader, not to who ended the wait."""
        try:
            self.start()
        except Exception as error:
            self._stream.end(error_failure(error))

    def _run(self, batches: Iterator[pa.RecordBatch], narrow: bool, ts: int) -> None:
        """In a worker: sends everything, then the end."""
        try:
            rows = self._send(self._filtered(batches, narrow))
        except Exception as error:  # whatever it is, the reader has to hear of it
            self._stream.end(error_failure(error))
            return
        finally:
            self._local.engine.release(ts)
        self._stream.end(m.StreamEnd(rows, ts))

    def _filtered(
        self, batches: Iterator[pa.RecordBatch], narrow: bool
    ) -> Iterator[pa.RecordBatch]:
        message = self._message
        if not message.filter:
            return batches
        schema: pa.Schema = batches.schema  # type: ignore[attr-defined]
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        names = [f"c{position}" for position in message.columns]
        if message.with_key:
            names += ["_key", "_ts"]
        wanted = ", ".join(f'"{name}"' for name in names) if narrow or not names else "*"
        sql = f"SELECT {wanted or '1'} FROM {SCAN_NAME} WHERE {message.filter}"
        return iter(self._filter_rows(sql, reader))

    def _send(self, batches: Iterator[pa.RecordBatch]) -> int:
        """Sends batches in chunks of about the budget's `batch_bytes`; the number of rows."""
        rows: int = 0
        waiting: list[pa.RecordBatch] = []
        size = 0
        most = self._local.engine.budget.batch_bytes
        for batch in _cut(batches, most):
            rows += int(batch.num_rows)
            waiting.append(batch)
            size += batch.nbytes
            if size >= most:
                if not self._stream.send(_chunk(waiting)):
                    return rows
                waiting, size = [], 0
        if waiting:
            self._stream.send(_chunk(waiting))
        return rows


def _cut(batches: Iterator[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    """The same rows, none of them in a batch of much more than `most` bytes; none is empty."""
    for batch in batches:
        rows = int(batch.num_rows)
        step = max(rows * most // max(batch.nbytes, 1), 1)
        for first in range(0, rows, step):
            yield batch if step >= rows else batch.slice(first, step)


def _chunk(batches: list[pa.RecordBatch]) -> m.Chunk:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return m.Chunk(sink.getvalue().to_pybytes(), sum(batch.num_rows for batch in batches))


def _least(a: bytes, b: bytes) -> bytes:
    """The lower of two upper bounds; empty is "to the last"."""
    if not a or not b:
        return a or b
    return min(a, b)
