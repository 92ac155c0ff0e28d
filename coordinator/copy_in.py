"""COPY … FROM STDIN: data of the client in bounded chunks, parsed to rows, written through locks.

Everything is written in one transaction (the session's, or one of the COPY's own), so a bad line
leaves nothing behind. While batches are on their way to the shards the next one is parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from coordinator.executor import Executor, TableWriter
from coordinator.plan.checks import checks_of
from coordinator.ports import Shell, Waiter
from coordinator.writes import BulkInsert
from shardb import limits
from shardb._core.copytext import CopyReader
from shardb._core.rowdeal import RowDealer
from shardb.errors import SqlError
from shardb.meta.descriptors import Table

if TYPE_CHECKING:
    from coordinator.conversation import Conversation
    from coordinator.ddl.specs import CopyFrom

_HEADER: Final[dict[object, int]] = {False: 0, True: 1, "match": 2}


class CopyInbox:
    """CopyData messages between the session, which puts them, and the COPY, which takes them."""

    def __init__(self, shell: Shell, wants: Callable[[], None]) -> None:
        self._shell = shell
        self._wants = wants
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False
        self._error: SqlError | None = None
        self._waiter: Waiter | None = None

    def put(self, data: bytes) -> bool:
        """Takes data; False if no more is wanted for now."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= limits.COPY_CHUNK_BYTES:
            self._wake()
        return self._size < limits.COPY_INBOX_MAX_BYTES

    def finish(self, error: SqlError | None) -> None:
        """The client is done, or has failed."""
        self._ended = True
        self._error = error
        self._wake()

    async def take(self) -> list[bytes] | None:
        """A chunk in pieces, or None at the end. Raises what the client's CopyFail says."""
        while not self._ended and self._size < limits.COPY_CHUNK_BYTES:
            self._wants()
            self._waiter = self._shell.waiter()
            await self._waiter
        if self._error is not None:
            raise self._error
        if not self._parts:
            return None
        parts, self._parts = self._parts, []
        self._size = 0
        self._wants()
        return parts

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def copy_from(executor: Executor, session: Conversation, spec: CopyFrom) -> int:
    """Runs one COPY FROM STDIN in the session's task; the number of rows."""
    table = executor.catalog.table(spec.table_id)
    own = session.txn is None and session.status != b"T"
    txn = (
        executor.driver.begin(process_id=session.process_id)
        if own
        else session.txn or session.begin()
    )
    executor.driver.gate.enter(txn, table.id)
    txn.lock_timeout_s = session.settings.lock_timeout_s
    try:
        writer = TableWriter(table)
        checks = checks_of(table, executor.catalog)
        bulk = executor.bulk_insert(session, writer, txn, checks)
        defaults = await _defaults(executor, session, table, spec)
        reader = make_reader(table, spec, executor, bulk.dealer, defaults)
        inbox = session.copy_begin(len(spec.columns))
        await _load(session.shell, reader, inbox, bulk)
        session.copy_end()
        if own:
            await executor.driver.commit(txn)
    except BaseException:
        if own:
            executor.roll_back_later(txn)
        raise
    return bulk.rows


async def _load(shell: Shell, reader: CopyReader, inbox: CopyInbox, bulk: BulkInsert) -> None:
    try:
        while True:
            parts = await inbox.take()
            data, final = parts or (), parts is None
            while not await shell.in_thread(reader.feed, data, final):
                await bulk.put()
                data = ()
            if final:
                break
        await bulk.finish()
    except BaseException:
        await bulk.stop()
        raise


def make_reader(
    table: Table, spec: CopyFrom, executor: Executor, dealer: RowDealer, defaults: bytes
) -> CopyReader:
    """The reader for a COPY's columns and options."""
    rowid = table.primary_key[0] if table.has_hidden_key else -1
    not_null = [
        at
        for at, column in enumerate(table.columns)
        if (column.not_null or at in table.primary_key) and at != rowid
    ]
    options = spec.options
    csv = options.get("format") == "csv"
    quote = str(options.get("quote", '"')).encode()
    return CopyReader(
        dealer,
        table.name,
        [column.name for column in table.columns],
        spec.columns,
        not_null,
        defaults,
        csv=csv,
        delimiter=str(options.get("delimiter", "," if csv else "\t")).encode(),
        quote=quote,
        escape=str(options["escape"]).encode() if "escape" in options else quote,
        null=str(options.get("null", "" if csv else "\\N")).encode(),
        header=_HEADER.get(options.get("header", False), 1),
        force_null=_positions(table, spec, "force_null"),
        force_not_null=_positions(table, spec, "force_not_null"),
        rowid=rowid,
        next_rowid=executor.rowids.take(1) if rowid >= 0 else 0,
    )


def _positions(table: Table, spec: CopyFrom, option: str) -> list[int]:
    names = spec.options.get(option, ())
    if names == "*":
        return list(spec.columns)
    assert isinstance(names, tuple), names
    found = []
    for name in names:
        at = next((i for i in spec.columns if table.columns[i].name == name), -1)
        if at < 0:
            raise SqlError("42P10", f'{option.upper()} column "{name}" not referenced by COPY')
        found.append(at)
    return found


async def _defaults(
    executor: Executor, session: Conversation, table: Table, spec: CopyFrom
) -> bytes:
    """A row with the defaults of the columns that the data lacks, evaluated once."""
    layout = TableWriter(table).layout
    values: list[bytes | None] = [None] * len(table.columns)
    for at, column in enumerate(table.columns):
        if column.default is not None and at not in spec.columns:
            values[at] = await executor.evaluate(
                session, column.default, column.type_code, column.typmod
            )
    return layout.encode_text(values)
