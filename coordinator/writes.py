"""Writes by key: what they give, and large inserts as a bounded stream of batches to their ranges.

A `BulkInsert` deals rows out to ranges in a thread, while earlier batches are on their way. Of its
statements, each a batch to one range, either all take effect or the transaction has to go.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from coordinator.ports import Cancellable, Driver, Shell, Txn, Waiter
from shardb import limits
from shardb._core.frames import split_items
from shardb._core.rowdeal import RowDealer
from shardb.errors import SqlError, is_row_changed

if TYPE_CHECKING:
    from coordinator.catalog import RangeMap
    from shardb._core.keycodec import KeyCodec
    from shardb._core.rowcodec import RowLayout
    from shardb.checks import RowChecks
    from shardb.meta.descriptors import Table


class WriteResult:
    """Rows written, and the indexes of those an `insert_ignore` skipped."""

    __slots__ = ("count", "skipped")

    def __init__(self, count: int, skipped: tuple[int, ...]) -> None:
        self.count = count
        self.skipped = skipped


class BulkInsert:
    """Inserts many rows: fill the `dealer` and `put`, time and again; `finish`, or `stop`.

    At most `BULK_WRITES_MAX` batches are under way to a range, and one until the range has answered
    for the first time, for only then the transaction's state there is known. The dealer may be
    filled in a thread while earlier batches are sent.
    """

    def __init__(
        self,
        driver: Driver,
        shell: Shell,
        txn: Txn,
        table: Table,
        ranges: RangeMap,
        layout: RowLayout,
        codec: KeyCodec,
        checks: RowChecks | None,
    ) -> None:
        self.dealer = RowDealer(
            layout,
            codec,
            table.primary_key,
            ranges.starts,
            limits.KEY_MAX_BYTES,
            limits.ROW_MAX_BYTES,
            limits.BULK_BATCH_BYTES,
            limits.BULK_HELD_MAX_BYTES,
        )
        self.rows = 0
        self._checks = checks
        self._driver = driver
        self._shell = shell
        self._txn = txn
        self._table_id = table.id
        self._ranges = ranges.ranges
        self._under_way: dict[int, list[Cancellable]] = {}
        self._sent_bytes = 0  # in batches that are under way
        self._answered: set[int] = set()
        self._error: BaseException | None = None
        self._waiter: Waiter | None = None

    async def put(self, everything: bool = False) -> None:
        """Sends the dealer's batches, waiting for room; raises what an earlier one failed with."""
        for at, count, keys, rows in self.dealer.take(everything):
            if self._checks is not None:
                framed = split_items(bytes(rows), count)
                await self._shell.in_thread(self._checks.check_all, framed)
            size = len(keys) + len(rows)
            while not self._has_room(at):
                await self._change()
            self._send(
                at,
                size,
                self._driver.write_dealt(
                    self._txn, self._table_id, self._ranges[at], count, keys, rows
                ),
            )
            self.rows += count

    async def finish(self) -> None:
        """Sends the rest and waits until everything is written; raises if something failed."""
        await self.put(everything=True)
        while self._under_way:
            await self._change()
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Cancels what is under way, after a failure, and waits for its end."""
        for works in self._under_way.values():
            for work in works:
                work.cancel()
        while self._under_way:
            await self._change()

    def _has_room(self, at: int) -> bool:
        if self._error is not None:
            raise self._error
        if self._sent_bytes >= limits.BULK_SENT_MAX_BYTES:
            return False
        under_way = len(self._under_way.get(at, ()))
        return under_way < (limits.BULK_WRITES_MAX if at in self._answered else 1)

    async def _change(self) -> None:
        self._waiter = self._shell.waiter()
        await self._waiter

    def _send(self, at: int, size: int, work: Coroutine[Any, Any, None]) -> None:
        def done(error: BaseException | None) -> None:
            works.remove(task)
            self._sent_bytes -= size
            if not works:
                del self._under_way[at]
            self._answered.add(at)
            if error is not None and self._error is None:
                self._error = error
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

        task = self._shell.spawn(work, done)
        works = self._under_way.setdefault(at, [])
        works.append(task)
        self._sent_bytes += size


async def write_changes(
    driver: Driver,
    txn: Txn,
    table_id: int,
    ranges: int,
    mode: str,
    keys: bytes,
    key_offsets: Any,
    rows: bytes | None,
    row_offsets: Any,
    expected_ts: Sequence[int],
) -> None:
    """Updates or deletes rows that a query has found, in batches of a statement each.

    40001 "row changed" if one is not as it was found. All the others are locked then as well, so
    that they do not change until the query has been run again. Arguments as of `write_encoded`;
    `ranges`: how many a batch is dealt out to.
    """
    key_ends = as_uint64(key_offsets)
    row_ends = None if rows is None else as_uint64(row_offsets)
    most = min(limits.BULK_BATCH_BYTES * ranges, limits.BULK_HELD_MAX_BYTES)
    sized = key_ends if row_ends is None else row_ends
    count = len(key_ends) - 1
    changed: SqlError | None = None
    begin = 0
    while begin < count:
        end = max(bisect_right(sized, sized[begin] + most, begin, count + 1) - 1, begin + 1)
        batch = [_cut(keys, key_ends, begin, end)]
        batch.append(
            (None, None) if rows is None or row_ends is None else _cut(rows, row_ends, begin, end)
        )
        (some_keys, some_ends), (some_rows, some_row_ends) = batch
        assert some_keys is not None
        try:
            await driver.write_encoded(
                txn,
                table_id,
                mode,
                some_keys,
                some_ends,
                some_rows,
                some_row_ends,
                expected_ts[begin:end],
            )
        except SqlError as error:
            if not is_row_changed(error) or txn.doomed:
                raise
            changed = error
        begin = end
    if changed is not None:
        raise changed


def _cut(
    data: bytes, offsets: memoryview | array[int], begin: int, end: int
) -> tuple[bytes | None, array[int] | None]:
    """Items `[begin, end)`, with offsets of their own."""
    first = offsets[begin]
    return data[first : offsets[end]], array("Q", [at - first for at in offsets[begin : end + 1]])


def as_uint64(offsets: Any) -> memoryview | array[int]:
    """Any integer offsets as `split_by_range` takes them, without a copy if they are wide."""
    view = memoryview(offsets)
    if view.itemsize == 8:
        return view.cast("B").cast("Q")
    return array("Q", view.tolist())


def offsets_of(items: Sequence[bytes]) -> array[int]:
    """The offsets of items in a row, one more than there are items."""
    out = array("Q", [0])
    at = 0
    for item in items:
        at += len(item)
        out.append(at)
    return out
