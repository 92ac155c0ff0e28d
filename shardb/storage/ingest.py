"""A transaction's large inserts into one tablet, private until it commits.

Rows gather in a memtable of the transaction's own, their statement's number for a timestamp; one
that has grown large becomes a segment in the background, which the commit only has to link. Nothing
of it is in the tablet before; a transaction that ends otherwise has its files removed.

Belongs to the engine's thread, but for the runs it shows, which a scan may draw from in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

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
from shardb.storage.pieces import Run
from shardb.storage.segmentformat import SegmentMeta
from shardb.storage.tablet import Tablet

UNFLUSHED_MAX = 2  # parts that wait for a worker; above it the inserter waits

Ready = Callable[[StorageError | None], None]


class _Part:
    """A sealed memtable, or the segments it has become. `statements` are whose rows it holds."""

    __slots__ = ("discarded", "memtable", "metas", "segments", "statements", "version")

    def __init__(self, memtable: MemTable | None, version: int, statements: set[int]) -> None:
        self.memtable = memtable
        self.version = version
        self.statements = statements
        self.metas: list[SegmentMeta] = []
        self.segments: list[Segment] = []
        self.discarded = False


class Ingest:
    """`close` must be called once, whatever becomes of the transaction."""

    def __init__(self, engine: Engine, tablet: Tablet) -> None:
        self._engine = engine
        self._tablet = tablet
        self._memtable = MemTable()
        self._counted_bytes = 0  # in engine.private_bytes
        self._version = tablet.memtable_version  # of the memtable's rows
        self._statements: set[int] = set()
        self._parts: list[_Part] = []  # oldest first
        self._sealed: Runs | None = None
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
        version = int.from_bytes(rows[4:6], "little")  # one statement's rows have one layout
        if version != self._version:
            self.seal()
            self._version = version
        self._statements.add(statement)
        earlier = self._sealed_runs().first_existing(keys, count) if self._parts else -1
        before = self._memtable.entries
        put_framed(self._memtable, keys, rows, count, statement)
        if earlier < 0 and self._memtable.entries - before != count:
            earlier = self._repeated(keys, count, statement)
        self._count()
        if self._memtable.memory_bytes >= self._engine.budget.memtable_bytes:
            self.seal()
        return earlier

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
        """The number of the first of these framed keys that is in it, -1 if none."""
        return self._own_runs().first_existing(keys, count)

    def newest(self, key: bytes, version: int = 0) -> bytes | None:
        """The row of a key as a version of the table has it, None if it is not in it."""
        found = self._own_runs(version).newest(key)
        return None if found is None else found[0]

    def _own_runs(self, version: int = 0) -> Runs:
        version = version or self._version
        return Runs(self._tablet.schema.layout(version), self.runs(version))

    def runs(self, version: int = 0) -> list[Run]:
        """The transaction's own runs, newest first, as rows of a version of the table."""
        tablet = self._tablet
        schema = tablet.schema
        version = version or self._version
        runs: list[Run] = []
        if self._memtable.entries:
            runs.append((True, [(self._memtable, schema.map(self._version, version))]))
        for part in reversed(self._parts):
            if part.memtable is not None:
                runs.append((True, [(part.memtable, schema.map(part.version, version))]))
            elif part.metas:
                runs.append((True, [tablet.piece(s, version) for s in self._segments(part)]))
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
        if all(map(wanted, self._statements)) and all(
            wanted(number) for part in self._parts for number in part.statements
        ):
            return
        schema = self._tablet.schema
        version = self._version
        fresh = MemTable()
        kept: list[_Part] = []
        sources: list[Run] = []
        if any(map(wanted, self._statements)):
            sources.append((False, [(self._memtable, None)]))
        statements = {number for number in self._statements if wanted(number)}
        for part in self._parts:
            if all(map(wanted, part.statements)):
                kept.append(part)
                continue
            if any(map(wanted, part.statements)):
                if part.memtable is not None:
                    piece = part.memtable, schema.map(part.version, version)
                    sources.append((False, [piece]))
                else:
                    pieces = [self._tablet.piece(s, version) for s in self._segments(part)]
                    sources.append((False, pieces))
                statements |= {number for number in part.statements if wanted(number)}
            self._discard(part)
        for source in sources:
            runs = Runs(schema.layout(version), [source])
            for key, row, number in RowCursor(runs, b"", b"", ts, False, None):
                if wanted(number):
                    fresh.put(key, row, number)
        self._parts = kept
        self._sealed = None
        self._memtable = fresh
        self._statements = statements
        self._count()

    # --- to disk

    def absorb(self, overlay: Mapping[bytes, bytes | None]) -> None:
        """Takes the transaction's later writes by key as well, so that all goes in one way."""
        self.seal()
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
        for part in self._parts:
            if linked:
                self._engine.release_private(meta.number for meta in part.metas)
            else:
                self._discard(part)
        self._memtable = MemTable()
        self._parts = []
        self._sealed = None
        self._count()

    def _unflushed(self) -> int:
        return sum(part.memtable is not None for part in self._parts)

    def _count(self) -> None:
        """Keeps the engine's count of private memory true."""
        now = self.unsealed_bytes
        now += sum(p.memtable.memory_bytes for p in self._parts if p.memtable is not None)
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
        engine, tablet = self._engine, self._tablet
        memtable, version = self._memtable, self._version
        part = _Part(memtable, version, self._statements)
        self._parts.append(part)
        self._memtable, self._statements = MemTable(), set()
        self._sealed = None
        schema = tablet.schema
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
        self._sealed = None
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
