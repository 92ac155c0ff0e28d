"""Scans of a statement: one request a range at one snapshot, gathered to an Arrow table.

Asked again is only what can have had no effect on a transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec
import pyarrow as pa

from coordinator.plan.plans import ScanStage
from coordinator.rowcall import Txn, as_error
from shardb.errors import SqlError
from shardb.meta.descriptors import Range, Table
from shardb.rpc import messages as m
from shardb.types import arrow_type

if TYPE_CHECKING:
    from coordinator.txn_driver import TxnDriver

RETRY_S: Final = 5.0
RETRYABLE: Final = frozenset({"08006", "57P03", "SH002"})


async def run_scan(
    driver: TxnDriver, txn: Txn | None, stage: ScanStage, read_ts: int = 0
) -> pa.Table:
    """See `TxnDriver.run_scan`."""
    catalog = driver.catalog()
    table = catalog.table(stage.table_id).at(stage.schema_version)
    if not read_ts:
        read_ts = await driver.snapshot(txn)
    if txn is not None and txn.spans is not None:
        txn.spans.add(table.id, stage.key_low, stage.key_high)
    columns = stage.columns
    if not columns and not stage.with_key:
        columns = (0,)  # a table without columns cannot say how many rows it has
    ranges = catalog.ranges_for(table.group_id, stage.key_low, stage.key_high)
    parts = await driver.together(
        [
            _range_batches(driver, txn, _message(stage, table, columns, r, read_ts), r)
            for r in ranges
        ]
    )
    schema = scan_schema(table, columns, stage.with_key)
    batches = [
        batch.cast(schema) if batch.schema != schema else batch for part in parts for batch in part
    ]
    return pa.Table.from_batches(batches, schema)


async def has_rows(driver: TxnDriver, table: Table) -> bool:
    """True if the table has a row now; reads no more than the first ones of each range."""
    stage = ScanStage("scan", table.id, table.primary_key[:1], b"", b"", "")
    read_ts = driver.oracle.issue()
    for item in driver.catalog().ranges_for(table.group_id):
        message = _message(stage, table, stage.columns, item, read_ts)
        if await _range_batches(driver, None, message, item, first=True):
            return True
    return False


def _message(
    stage: ScanStage, table: Table, columns: tuple[int, ...], item: Range, read_ts: int
) -> m.Scan:
    return m.Scan(
        item.id,
        stage.table_id,
        read_ts,
        stage.key_low,
        stage.key_high,
        columns,
        stage.with_key,
        stage.filter,
        None,
        table.schema_version,
        stage.bounds,
    )


async def _range_batches(
    driver: TxnDriver, txn: Txn | None, message: m.Scan, item: Range, first: bool = False
) -> list[pa.RecordBatch]:
    """The batches of one range, or only those of the first chunk."""
    end = driver.loop.time() + RETRY_S
    part = None if txn is None else txn.parts.get(item.id)
    if txn is not None and part is not None:
        ref = m.TxnRef(txn.txn_id, part.state_id, txn.statement, driver.oracle.issued)
        message = msgspec.structs.replace(message, txn=ref)
    while True:
        client = await driver.wait_for(item)
        batches: list[pa.RecordBatch] = []
        try:
            async with aclosing(client.stream(message).items()) as replies:
                async for reply in replies:
                    if isinstance(reply, m.Chunk):
                        with pa.ipc.open_stream(reply.data) as reader:
                            batches.extend(reader)
                        if first:
                            break
                    elif isinstance(reply, m.StreamEnd):
                        driver.saw(reply.newest_ts)
            return batches
        except SqlError as error:
            retry = error.sqlstate in RETRYABLE and driver.loop.time() < end
            if part is not None or not retry:
                if txn is not None and error.sqlstate in ("08006", "40001"):
                    txn.doomed = True
                    raise SqlError("40001", "a shard lost the transaction") from error
                raise as_error(error) from error
            await driver.pause()


def scan_schema(table: Table, columns: Sequence[int], with_key: bool) -> pa.Schema:
    """The Arrow schema of a scan's result."""
    fields = [
        pa.field(
            f"c{position}",
            arrow_type(table.columns[position].type_code, table.columns[position].typmod),
        )
        for position in columns
    ]
    if with_key:
        fields += [pa.field("_key", pa.binary()), pa.field("_ts", pa.uint64())]
    return pa.schema(fields)
