"""A transaction's large writes to one tablet, private until it commits.

Rows gather in a memtable of the transaction's own, their statement's number for a timestamp; one
that has grown large becomes a segment in the background, which the commit only has to link. Nothing
of it is in the tablet before; a transaction that ends otherwise has its files removed.

Invariants: parts are ordered, of two with one key the later is the newer; a part has a key once, as
the commit gives all of it one timestamp. The presence of a key stands for its row lock, so that
parts with changes of rows stay as `_locked` when they are taken back: a statement that is run again
finds its rows unchanged.

Belongs to the engine's thread, but for the runs it shows, which a scan may draw from in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from shardb._core.coreerror import CoreError
from shardb._core.frames import split_items
from shardb._core.memload import put_framed
from shardb._core.memtable import TS_MAX, MemTable
from shardb._core.rowcursor import RowCursor
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb.errors import SqlError, StorageError
from shardb.storage import jobs
from shardb.storage.engine import Engine
from shardb.storage.failures import storage_error
from shardb.storage.maintenance import metas_of
from shardb.storage.pieces import Piece, Run
from shardb.storage.segmentformat import SegmentMeta
from shardb.storage.tablet import Tablet

UNFLUSHED_MAX = 2  # parts that wait for a worker; above it the inserter waits

Ready = Callable[[StorageError | None], None]


class _Part:
    """A sealed memtable, or the segments it has become. `statements` are whose rows it holds."""

    __slots__ = (
        "changes",
        "discarded",
        "memtable",
        "metas",
        "segments",
        "statements",
        "version",
        "written",
    )

    def __init__(
        self, memtable: MemTable | None, version: int, statements: set[int], changes: bool = False
    ) -> None:
        self.memtable = memtable
        self.version = version
        self.statements = statements
        self.changes = changes  # updates and deletions are among its rows
        self.metas: list[SegmentMeta] = []
        self.segments: list[Segment] = []
        self.discarded = False
        self.written = memtable is None  # or on the way to disk


class Ingest:
    """`close` must be called once, whatever becomes of the transaction."""

    def __init__(self, engine: Engine, tablet: Tablet) -> None:
        self._engine = engine
        self._tablet = tablet
        self._memtable = MemTable()
        self._counted_bytes = 0  # in engine.private_bytes
        self._version = tablet.memtable_version  # of the memtable's rows
        self._statements: set[int] = set()
        self._changes = False  # of rows that were there, in the memtable
        self._parts: list[_Part] = []  # oldest first
        self._locked: list[_Part] = []
        self._sealed: Runs | None = None
        self._own: dict[int, Runs] = {}
        self._waiting: list[Ready] = []
        self._failure: StorageError | None = None
        self._closed = False
        engine.privates.add(self)

    @classmethod
    def restore(cls, engine: Engine, tablet: Tablet, metas: Iterable[SegmentMeta]) -> Ingest:
        """What a prepared transaction had, after a restart.

        Files are opened when they are read: if its decision follows in the log, they may have been
        linked, merged and removed since.
        """
        found = cls(engine, tablet)
        metas = list(metas)
        engine.keep_private(meta.number for meta in metas)
        for meta in metas:
            part = _Part(None, 0, set())
            part.metas = [meta]
            found._parts.append(part)
        return found

    # --- rows

    def add(self, keys: bytes, rows: bytes, count: int, statement: int) -> int:
        """Takes framed rows: -1, or the number of the first whose key came before, here or in what
        was added earlier. Then the statement has to be undone.
        """
        self._begin(rows)
        if self._changes or any(part.changes for part in self._parts):
            earlier = self.own_runs().first_existing(keys, count)
            if earlier >= 0:
                return earlier
            self._seal_before(keys, count)
        else:
            earlier = self._sealed_runs().first_existing(keys, count) if self._parts else -1
        self._statements.add(statement)
        before = self._memtable.entries
        put_framed(self._memtable, keys, rows, count, statement)
        if earlier < 0 and self._memtable.entries - before != count:
            earlier = self._repeated(keys, count, statement)
        self._added()
        return earlier

    def change(self, keys: bytes, rows: bytes | None, count: int, statement: int) -> None:
        """Takes framed rows, or None for deletions, in the place of those that there are."""
        if rows is not None:
            self._begin(rows)
        self._seal_before(keys, count)
        self._statements.add(statement)
        self._changes = True
        put_framed(self._memtable, keys, rows, count, statement)
        self._added()

    def _begin(self, rows: bytes) -> None:
        """Has the memtable take these rows' layout; one statement's rows have one."""
        version = int.from_bytes(rows[4:6], "little")
        if version != self._version:
            self.seal()
            self._version = version
            self._changed()

    def _seal_before(self, keys: bytes, count: int) -> None:
        """Begins a new part if the memtable has one of the keys."""
        if self._memtable.entries:
            layout = self._tablet.schema.layout(self._version)
            runs = Runs(layout, [(False, [(self._memtable, None)])])
            if runs.first_existing(keys, count, deleted=True) >= 0:
                self.seal()

    def _added(self) -> None:
        self._count()
        if self._memtable.memory_bytes >= self._engine.budget.memtable_bytes:
            self.seal()

    def _repeated(self, keys: bytes, count: int, statement: int) -> int:
        """The number of the first of these keys that has come before. They have been added."""
        seen: set[bytes] = set()
        for number, key in enumerate(split_items(keys, count)):
            older = self._memtable.get(key, statement - 1)
            if key in seen or older is not None:
                return number
            seen.add(key)
        raise AssertionError("no key is repeated")

    def first_held(self, keys: bytes, count: int) -> int:
        """The number of the first of these framed keys that is locked by it, -1 if none."""
        found = self.own_runs().first_existing(keys, count, deleted=True)
        if found < 0 and self._locked:
            found = self._locked_runs().first_existing(keys, count, deleted=True)
        return found

    def locks(self, key: bytes) -> bool:
        """True if the key is locked by it."""
        if self.newest(key) is not None:
            return True
        return bool(self._locked) and self._locked_runs().newest(key) is not None

    def newest(self, key: bytes, version: int = 0) -> tuple[bytes | None, int] | None:
        """The row of a key as a version of the table has it, None in its place if it is deleted,
        and its statement; None if the key is not in it.
        """
        return self.own_runs(version).newest(key)

    def own_runs(self, version: int = 0) -> Runs:
        """Its rows at their statements' numbers, as a version of the table has them.

        They stay true as rows are added, until one of them begins a new part.
        """
        version = version or self._version
        found = self._own.get(version)
        if found is None:
            memtable = self._memtable, self._tablet.schema.map(self._version, version)
            runs = [(False, [memtable]), *self._part_runs(self._parts, version, own=False)]
            found = self._own[version] = Runs(self._tablet.schema.layout(version), runs)
        return found

    def _locked_runs(self) -> Runs:
        version = self._version
        runs = self._part_runs(self._locked, version, own=False)
        return Runs(self._tablet.schema.layout(version), runs)

    def runs(self, version: int = 0) -> list[Run]:
        """The transaction's own runs, newest first, as rows of a version of the table."""
        version = version or self._version
        runs: list[Run] = []
        if self._memtable.entries:
            runs.append((True, [(self._memtable, self._tablet.schema.map(self._version, version))]))
        return runs + self._part_runs(self._parts, version, own=True)

    def _part_runs(self, parts: Sequence[_Part], version: int, own: bool) -> list[Run]:
        tablet = self._tablet
        runs: list[Run] = []
        for part in reversed(parts):
            if part.memtable is not None:
                runs.append((own, [(part.memtable, tablet.schema.map(part.version, version))]))
            elif part.metas:
                runs.append((own, [tablet.piece(s, version) for s in self._segments(part)]))
        return runs

    def _segments(self, part: _Part) -> list[Segment]:
        if not part.segments:
            part.segments = [self._engine.open_segment(meta) for meta in part.metas]
        return part.segments

    def _sealed_runs(self) -> Runs:
        if self._sealed is None:
            runs = self.runs()
            layout = self._tablet.schema.layout(self._version)
            self._sealed = Runs(layout, runs[1:] if self._memtable.entries else runs)
        return self._sealed

    # --- statements that are taken back

    def undo(self, statement: int) -> None:
        """Takes back the rows of all statements after `statement`."""
        self._filter(lambda number: number <= statement, statement)

    def keep(self, live: Iterable[int]) -> None:
        """Drops the rows of all statements but these."""
        wanted = set(live)
        self._filter(wanted.__contains__, TS_MAX)

    def _filter(self, wanted: Callable[[int], bool], ts: int) -> None:
        """Keeps the rows of wanted statements. One by one where a part has others too: rare."""
        kept: list[_Part] = []
        for part in self._parts:
            if all(map(wanted, part.statements)):
                kept.append(part)
                continue
            if any(map(wanted, part.statements)):
                kept.append(self._filtered(part, wanted, ts))
            self._take_back(part)
        self._parts = kept
        if self._memtable.entries and not all(map(wanted, self._statements)):
            part = _Part(self._memtable, self._version, self._statements, self._changes)
            rest = self._filtered(part, wanted, ts)
            assert rest.memtable is not None
            self._memtable, self._statements = rest.memtable, rest.statements
            self._changes = rest.changes
            self._take_back(part)
        self._changed()
        for part in (*kept, *self._locked):
            if not part.written:
                self._write(part)
        self._count()

    def _take_back(self, part: _Part) -> None:
        """Its rows are none any more; locks of rows that were there stay."""
        if part.changes:
            self._locked.append(part)
        else:
            self._discard(part)

    def _filtered(self, part: _Part, wanted: Callable[[int], bool], ts: int) -> _Part:
        """A part of only the rows of wanted statements, up to `ts`; it is not written yet."""
        schema, version = self._tablet.schema, part.version
        fresh = MemTable()
        pieces: list[Piece]
        if part.memtable is not None:
            pieces = [(part.memtable, None)]
        else:
            pieces = [self._tablet.piece(s, version) for s in self._segments(part)]
        runs = Runs(schema.layout(version), [(False, pieces)])
        for key, row, number in RowCursor(runs, b"", b"", ts, False, None):
            if wanted(number):
                fresh.put(key, row, number)
        if part.changes:
            columns, most = schema.columns_of(version), self._engine.budget.group_bytes
            for piece in pieces:
                for batch in jobs.merge([piece], runs.layout, columns, 0, False, most):
                    keys, stamps, deleted = (batch.column(at).to_pylist() for at in range(3))
                    for key, number, gone in zip(keys, stamps, deleted, strict=True):
                        if gone and wanted(number):
                            fresh.put(key, None, number)
        return _Part(fresh, version, set(filter(wanted, part.statements)), part.changes)

    # --- to disk

    def absorb(self, overlay: Mapping[bytes, bytes | None]) -> None:
        """Takes the transaction's later writes by key as well, so that all goes in one way."""
        self.seal()
        self._changes = True
        for key, row in overlay.items():
            if row is not None:
                row = self._tablet.as_version(row, self._version)
            self._memtable.put(key, row, 1)
        self._statements.add(1)

    @property
    def failure(self) -> StorageError | None:
        """Why a part could not be written; the transaction cannot commit then."""
        return self._failure

    @property
    def pressed(self) -> bool:
        """True if the inserter should wait before it adds more."""
        return self._unflushed() > UNFLUSHED_MAX and self._failure is None

    def when_room(self, call: Callable[[], None]) -> None:
        """Calls once `pressed` may have ended."""
        self._waiting.append(lambda error: call())

    def when_durable(self, call: Ready) -> None:
        """Has everything written to segments; `call(None)`, perhaps at once, or with the error."""
        self.seal()
        if self._failure is not None or not self._unflushed():
            call(self._failure)
            return
        self._waiting.append(
            lambda error: self.when_durable(call) if error is None else call(error)
        )

    def metas(self) -> list[SegmentMeta]:
        """The segments, oldest first. REQUIRES: everything is durable."""
        assert not self._unflushed() and not self._memtable.entries
        return [meta for part in self._parts for meta in part.metas]

    def close(self, linked: bool) -> None:
        """Lets go; the files are removed unless the tablet has them now."""
        if self._closed:
            return
        self._closed = True
        self._engine.privates.discard(self)
        for part in self._locked:
            self._discard(part)
        for part in self._parts:
            if linked:
                self._tablet.adopt(part.segments)
                self._engine.release_private(meta.number for meta in part.metas)
            else:
                self._discard(part)
        self._memtable = MemTable()
        self._parts = []
        self._locked = []
        self._changed()
        self._count()

    def _changed(self) -> None:
        """Parts, or the memtable, are others now."""
        self._sealed = None
        self._own = {}

    def _unflushed(self) -> int:
        return sum(part.memtable is not None for part in self._parts)

    def _count(self) -> None:
        """Keeps the engine's count of private memory true."""
        now = self.unsealed_bytes
        parts = (*self._parts, *self._locked)
        now += sum(part.memtable.memory_bytes for part in parts if part.memtable is not None)
        self._engine.private_bytes += now - self._counted_bytes
        self._counted_bytes = now

    def _discard(self, part: _Part) -> None:
        part.discarded = True
        self._engine.remove_later(meta.number for meta in part.metas)

    @property
    def unsealed_bytes(self) -> int:
        """What `seal` would have written."""
        return self._memtable.memory_bytes if self._memtable.entries else 0

    def seal(self) -> None:
        """Has a worker make a segment of the memtable."""
        if not self._memtable.entries:
            return
        part = _Part(self._memtable, self._version, self._statements, self._changes)
        self._parts.append(part)
        self._memtable, self._statements, self._changes = MemTable(), set(), False
        self._changed()
        self._write(part)

    def _write(self, part: _Part) -> None:
        engine, tablet = self._engine, self._tablet
        memtable, version, schema = part.memtable, part.version, tablet.schema
        assert memtable is not None
        part.written = True
        columns = schema.columns_of(version)
        layout, group_bytes = schema.layout(version), engine.budget.group_bytes
        work = jobs.merge([(memtable, None)], layout, columns, 0, False, group_bytes)
        target = engine.target(tablet, 0, columns, version)

        def done(segments: list[Segment] | None, error: BaseException | None) -> None:
            self._flushed(part, segments, error)

        engine.background.run(lambda: jobs.make_segments(work, target), done)

    def _flushed(
        self, part: _Part, segments: list[Segment] | None, error: BaseException | None
    ) -> None:
        engine = self._engine
        if segments is not None:
            metas = metas_of(segments)
            if part.discarded:
                engine.remove_later(meta.number for meta in metas)
            else:
                engine.keep_private(meta.number for meta in metas)
                part.segments = segments
                part.metas = metas
                part.memtable = None
        elif not part.discarded:
            assert error is not None
            self._failure = _as_storage_error(error)
        self._changed()
        if not self._closed:
            self._count()
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(self._failure)


def _as_storage_error(error: BaseException) -> StorageError:
    if isinstance(error, OSError):
        return storage_error("write a segment", error)
    if isinstance(error, SqlError | CoreError):
        return StorageError(error.sqlstate, error.message)
    return StorageError("58030", f"could not write a segment: {error!r}")
