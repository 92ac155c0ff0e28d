"""Carries out schema changes: edits of `coordinator.ddl` applied to shards and to the store.

Order, so that a crash at any point leaves at worst invisible tablets: install new tablets on the
shards (idempotent), publish the edit by one compare-and-swap on `ids/next`, drop old tablets. A
lost race re-plans against the newer catalog. The statement returns when this coordinator sees it.
Changed columns are told to the shards before they are published, too: a shard takes rows and
programs of either schema version.

A table that is dropped, emptied, copied or gets other columns is shut first (`coordinator.gate`):
its writers end and new ones wait, so that nothing is written that the change does not see. Changes
of one coordinator are made one after the other.
"""

from __future__ import annotations

import itertools
import logging
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import pyarrow as pa

from coordinator.catalog import Catalog
from coordinator.ddl import edits
from coordinator.ddl.alter import alter_table
from coordinator.ddl.edits import Edit
from coordinator.ddl.specs import (
    AddPrimaryKey,
    AlterTable,
    ColumnSpec,
    CreateTable,
    DropTable,
    TableName,
    Truncate,
)
from coordinator.executor import TableWriter, pack, unpack
from coordinator.gate import SCHEMA
from coordinator.pgwire import messages
from coordinator.plan.plans import ScanStage, UtilityPlan
from coordinator.ports import Driver
from shardb import limits
from shardb._core.datum import text_to_text
from shardb.errors import SqlError
from shardb.meta import schema
from shardb.meta.descriptors import Group, Range, Table
from shardb.meta.store import Compare, Delete, Operation, Put, Store
from shardb.types import TypeCode as T

if TYPE_CHECKING:
    from coordinator.conversation import Conversation

log = logging.getLogger("coordinator.ddl")

ATTEMPTS_MAX: Final = 20
COPY_ROWS: Final = 100_000  # rows of a rewritten table that are written at a time
SPLIT_ROWS_MIN: Final = 1_000  # a smaller table is not worth spreading over all shards


class Keeper(Protocol):
    """The catalog keeper, as far as schema changes use it."""

    @property
    def catalog(self) -> Catalog: ...
    async def reached(self, revision: int) -> Catalog: ...
    def draft(self, edit: Edit) -> None: ...
    def undraft(self) -> None: ...


class DdlExecutor:
    """Schema changes of one coordinator."""

    def __init__(self, store: Store, keeper: Keeper, driver: Driver) -> None:
        self._store = store
        self._keeper = keeper
        self._driver = driver

    async def run(self, session: Conversation, plan: UtilityPlan) -> str:
        """Carries out a DDL statement; its command tag.

        55P03 if transactions that wrote the tables do not end in time.
        """
        if session.status == b"T":
            session.out.append(
                messages.notice_response(
                    SqlError("01000", f"{plan.tag} takes effect at once and cannot be rolled back")
                )
            )
        spec = plan.args[0]
        shut = await self._shut(session, plan.tag, _replaced(spec))
        try:
            return await self._change(session, plan, spec)
        finally:
            for table_id in shut:
                self._driver.gate.open(table_id)

    async def make_internal(
        self, session: Conversation, table_id: int, make: Callable[[Catalog, int], Edit]
    ) -> None:
        """Makes a table of our own if it is not there: `make` gives its edit."""
        shut = await self._shut(session, "", ())
        try:
            if table_id not in self._keeper.catalog.tables:
                await self._apply(session, make)
        finally:
            for each in shut:
                self._driver.gate.open(each)

    async def _shut(
        self, session: Conversation, tag: str, names: Sequence[TableName]
    ) -> tuple[int, ...]:
        """Shuts the tables of these names, and the schema against other changes."""
        gate, shell = self._driver.gate, session.shell
        limit = session.settings.lock_timeout_s
        drain_s = limit or limits.WRITERS_DRAIN_MS / 1000
        while True:
            shut: list[int] = []
            wanted = self._ids(names)
            if session.txn is not None and not session.txn.tables.isdisjoint(wanted):
                name = next(n for n in names if not session.txn.tables.isdisjoint(self._ids([n])))
                raise SqlError(
                    "55006",
                    f'cannot {tag} "{name.name}" because it is being used by active queries in '
                    "this session",
                    hint="Commit the transaction that wrote the table first.",
                )
            try:
                for table_id in wanted:
                    await gate.close(shell, table_id, drain_s)
                    shut.append(table_id)
                await gate.close(shell, SCHEMA, limit or limits.SCHEMA_CHANGE_WAIT_MS / 1000)
                shut.append(SCHEMA)
                if self._ids(names) == wanted:
                    found, shut = tuple(shut), []
                    return found
            finally:
                for table_id in shut:
                    gate.open(table_id)

    def _ids(self, names: Sequence[TableName]) -> list[int]:
        """The ids of the tables that exist, in the order in which they are shut."""
        catalog = self._keeper.catalog
        found = [catalog.lookup(name.name, name.schema) for name in names]
        return sorted({table.id for table in found if table is not None})

    async def _change(self, session: Conversation, plan: UtilityPlan, spec: object) -> str:
        if isinstance(spec, AddPrimaryKey):
            await self._add_primary_key(spec)
            return plan.tag
        if isinstance(spec, AlterTable):
            await self._alter(session, spec)
            return plan.tag
        make: Callable[[Catalog, int], Edit]
        if isinstance(spec, CreateTable):
            make = lambda catalog, number: edits.create_table(spec, catalog, number)  # noqa: E731
        elif isinstance(spec, DropTable):
            make = lambda catalog, number: edits.drop_table(spec, catalog, number)  # noqa: E731
        else:
            assert isinstance(spec, Truncate), spec
            make = lambda catalog, number: edits.truncate(spec, catalog, number)  # noqa: E731
        await self._apply(session, make)
        return plan.tag

    async def _apply(self, session: Conversation, make: Callable[[Catalog, int], Edit]) -> None:
        """Installs, publishes and drops what an edit says, made anew if others were faster."""
        for _ in range(ATTEMPTS_MAX):
            number, revision = await self._next_id()
            edit = make(self._keeper.catalog, number)
            self._keeper.draft(edit)
            try:
                await self._install(edit)
                if await self._publish(edit, revision):
                    _notices(session, edit)
                    return
            finally:
                self._keeper.undraft()
            await self._drop(edit.install)
        raise SqlError("40001", "the schema was changed by others at the same time")

    async def _next_id(self) -> tuple[int, int]:
        """`ids/next` and its revision, with a catalog at least as new."""
        found = await self._store.get(schema.NEXT_ID)
        if found is None:
            return schema.FIRST_ID, 0
        await self._keeper.reached(found.mod_revision)
        return int(found.value), found.mod_revision

    async def _publish(self, edit: Edit, revision: int) -> bool:
        """Commits an edit and waits until it is seen here; False if another change came first."""
        if edit.after_id == edit.next_id:
            return True
        then: list[Operation] = [Put(schema.NEXT_ID, str(edit.after_id).encode())]
        then += [Delete(_key(key)) for key in edit.deletes]
        then += [Put(_key(key), value) for key, value in edit.puts]
        result = await self._store.txn([Compare(schema.NEXT_ID, revision)], then)
        if not result.succeeded:
            return False
        await self._keeper.reached(result.revision)
        await self._drop(edit.drop)
        return True

    async def _install(self, edit: Edit) -> None:
        """Makes the tablets of an edit, which must be drafted."""
        for table_id in dict.fromkeys(table.id for _, table in edit.install):
            await self._driver.install_table(table_id)

    async def _drop(self, tablets: Sequence[tuple[Range, Table]]) -> None:
        """Drops tablets; a shard that cannot be reached only keeps what nobody will ask for."""
        for table in dict.fromkeys(table.id for _, table in tablets):
            mine = [pair for pair in tablets if pair[1].id == table]
            try:
                await self._driver.drop_table(mine[0][1], [item for item, _ in mine])
            except SqlError as error:
                log.warning("tablets of table %d were not dropped: %s", table, error)

    # --- ALTER TABLE of columns and options

    async def _alter(self, session: Conversation, spec: AlterTable) -> None:
        missing = {
            add.column.name: await _evaluated(session, add.column)
            for add in spec.adds
            if add.column.default is not None
        }
        for _ in range(ATTEMPTS_MAX):
            number, revision = await self._next_id()
            catalog = self._keeper.catalog
            edit = alter_table(spec, catalog, number, missing)
            if edit.table is not None:
                if edit.unfilled and await self._driver.has_rows(catalog.table(edit.table.id)):
                    raise SqlError(
                        "23502",
                        f'column "{edit.unfilled}" of relation "{edit.table.name}" contains null '
                        "values",
                    )
                await self._driver.install(edit.table, [item for item, _ in edit.install])
            if await self._publish(edit, revision):
                _notices(session, edit)
                return
        raise SqlError("40001", "the schema was changed by others at the same time")

    # --- ALTER TABLE ADD PRIMARY KEY

    async def _add_primary_key(self, spec: AddPrimaryKey) -> None:
        for _ in range(ATTEMPTS_MAX):
            number, revision = await self._next_id()
            catalog = self._keeper.catalog
            edits.add_primary_key(spec, catalog, number)  # refuses before anything is read
            old = catalog.lookup(spec.name.name, spec.name.schema)
            assert old is not None
            if await self._rewrite(spec, old, number, revision):
                return
        raise SqlError("40001", "the schema was changed by others at the same time")

    async def _rewrite(self, spec: AddPrimaryKey, old: Table, number: int, revision: int) -> bool:
        """Copies the old table into a keyed one and lets that take its name."""
        catalog = self._keeper.catalog
        fresh = edits.keyed_table(spec, old, number)
        writer = TableWriter(fresh)
        rows = await self._read(old)
        writer.check_not_null(rows, "contains null values")
        data, offsets, keys, key_offsets = writer.encode(rows)
        edit = edits.add_primary_key(
            spec, catalog, number, self._splits(keys, key_offsets, len(catalog.nodes))
        )
        assert edit.table is not None
        self._keeper.draft(edit)
        try:
            await self._install(edit)
            await self._copy(edit.table, data, offsets, keys, key_offsets)
            published = await self._publish(edit, revision)
        except BaseException:
            await self._drop(edit.install)
            raise
        finally:
            self._keeper.undraft()
        if not published:
            await self._drop(edit.install)
        return published

    async def _read(self, table: Table) -> pa.Table:
        """All rows of a table, without its hidden key."""
        at = tuple(i for i, column in enumerate(table.columns) if not column.hidden)
        return await self._driver.run_scan(
            None, ScanStage("scan", table.id, at, b"", b"", "", schema_version=table.schema_version)
        )

    @staticmethod
    def _splits(keys: bytes, offsets: array[int], nodes: int) -> list[bytes]:
        count = len(offsets) - 1
        if count < SPLIT_ROWS_MIN or nodes < 2:
            return []
        step = max(1, count // 10_000)
        sample = sorted(keys[offsets[i] : offsets[i + 1]] for i in range(0, count, step))
        return edits.quantile_splits(sample, nodes)

    async def _copy(
        self,
        table: Table,
        data: bytes,
        offsets: array[int],
        keys: bytes,
        key_offsets: array[int],
    ) -> None:
        count = len(offsets) - 1
        self._check_unique(table, keys, key_offsets)
        for begin in range(0, count, COPY_ROWS):
            end = min(begin + COPY_ROWS, count)
            rows_at, keys_at = offsets[begin], key_offsets[begin]
            txn = self._driver.begin()
            try:
                await self._driver.write_encoded(
                    txn,
                    table.id,
                    "insert",
                    keys[keys_at : key_offsets[end]],
                    array("Q", (at - keys_at for at in key_offsets[begin : end + 1])),
                    data[rows_at : offsets[end]],
                    array("Q", (at - rows_at for at in offsets[begin : end + 1])),
                )
                await self._driver.commit(txn)
            except BaseException:
                await self._driver.rollback(txn)
                raise

    @staticmethod
    def _check_unique(table: Table, keys: bytes, offsets: array[int]) -> None:
        ordered = sorted(unpack(keys, offsets))
        for one, other in itertools.pairwise(ordered):
            if one == other:
                name = table.primary_key_name or f"{table.name}_pkey"
                raise SqlError("23505", f'could not create unique index "{name}"', constraint=name)


def _key(key: str) -> str:
    """A descriptor's key as `shardb.meta.schema` writes it, with its id padded."""
    kind, _, number = key.partition("/")
    return f"{kind}/{int(number):010d}"


def _replaced(spec: object) -> tuple[TableName, ...]:
    """The tables that a statement takes away from writers.

    A transaction goes on under one layout of a table: a change of columns waits for its end.
    """
    if isinstance(spec, AddPrimaryKey):
        return (spec.name,)
    if isinstance(spec, AlterTable):
        return (spec.name,) if spec.adds or spec.drops else ()
    return spec.names if isinstance(spec, DropTable | Truncate) else ()


async def empty_in_transaction(session: Conversation, spec: Truncate) -> None:
    """TRUNCATE within a transaction: a delete of all rows there are, undone by ROLLBACK.

    Unlike the replacement of the table it does not keep rows out that others insert meanwhile.
    """
    driver = session.driver
    gate = driver.gate
    for name in dict.fromkeys(spec.names):
        while True:
            table = session.executor.catalog.lookup(name.name, name.schema)
            if table is None:
                raise SqlError("42P01", f'relation "{name}" does not exist')
            if not gate.bars(table.id, session.txn):
                break
            await session.pass_gate(table.id)
        txn = session.txn
        if txn is None:
            txn = session.begin()
        gate.enter(txn, table.id)
        txn.lock_timeout_s = session.settings.lock_timeout_s
        stage = ScanStage("scan", table.id, (), b"", b"", "", with_key=True)
        keys = (await driver.run_scan(txn, stage)).column("_key")
        for begin in range(0, len(keys), COPY_ROWS):
            packed, offsets = pack(keys.slice(begin, COPY_ROWS).to_pylist())
            await driver.write_encoded(txn, table.id, "delete", packed, offsets, None, None)


async def _evaluated(session: Conversation, column: ColumnSpec) -> str | None:
    """A column's default now, as rows have it that were there before the column."""
    assert column.default is not None
    code, typmod = column.type_code, column.typmod
    # A string that is too long is refused, where the cast of the evaluation would cut it.
    wanted = (T.TEXT, -1) if code in (T.VARCHAR, T.BPCHAR) else (code, typmod)
    text = await session.executor.evaluate(session, column.default, *wanted)
    return None if text is None else text_to_text(code, typmod, text).decode()


def _notices(session: Conversation, edit: Edit) -> None:
    for text in edit.notices:
        session.out.append(messages.notice_response(SqlError("00000", text), "NOTICE"))


def drafted(catalog: Catalog, edit: Edit) -> Catalog:
    """The catalog with the tables that an edit will bring: found by id, not by name."""
    tables = {table.id: table for _, table in edit.install}
    ranges = {item.id: item for item, _ in edit.install}
    groups = {item.group_id for item in ranges.values()}
    mine = Catalog.build(
        catalog.version,
        tables.values(),
        [Group(number, ()) for number in groups],
        ranges.values(),
    )
    return Catalog(
        version=catalog.version,
        tables={**catalog.tables, **mine.tables},
        groups={**mine.groups, **catalog.groups},
        range_maps={**mine.range_maps, **catalog.range_maps},
        nodes=catalog.nodes,
        names=catalog.names,
    )
