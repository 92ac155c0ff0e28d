"""Large writes of one transaction to one table of a range, as the participant sees them.

Few rows go through the log as they came; once they pass INGEST_MIN_BYTES they go to private
segments, which the commit record only names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from shardb import limits
from shardb.errors import StorageError
from shardb.storage.ingest import Ingest
from shardb.storage.pieces import Run
from shardb.storage.segmentformat import SegmentMeta
from shardb.txn.records import Section

_METAS = msgspec.msgpack.Decoder(tuple[SegmentMeta, ...])


def decode_links(links: bytes) -> tuple[SegmentMeta, ...]:
    """The segments that a section names. StorageError XX001 if they are malformed."""
    try:
        return _METAS.decode(links)
    except msgspec.DecodeError as error:
        raise StorageError("XX001", "a log record names its segments badly") from error


class Bulk:
    """See `txn.state.BulkWrites`."""

    def __init__(self, ingest: Ingest, large: bool = False) -> None:
        self.ingest = ingest
        self._large = large
        self._chunks: list[tuple[int, int, bytes, bytes | None]] = []
        self._bytes = 0
        self._absorbed = False

    @property
    def absorbed(self) -> bool:
        return self._absorbed

    def add(self, statement: int, count: int, keys: bytes, rows: bytes) -> int:
        """Takes rows that are locked and not there yet: -1, or the number of a repeated key."""
        repeated = self.ingest.add(keys, rows, count, statement)
        self._note(statement, count, keys, rows)
        return repeated

    def change(self, statement: int, count: int, keys: bytes, rows: bytes | None) -> None:
        """Takes rows, or deletions, in the place of those there are. The keys are locked."""
        self.ingest.change(keys, rows, count, statement)
        self._note(statement, count, keys, rows)

    def _note(self, statement: int, count: int, keys: bytes, rows: bytes | None) -> None:
        if not self._large:
            self._bytes += len(keys) + len(rows or b"")
            self._chunks.append((statement, count, keys, rows))
            if self._bytes >= limits.INGEST_MIN_BYTES:
                self._large = True
                self._chunks = []

    def holds(self, key: bytes) -> bool:
        return self.ingest.newest(key) is not None

    def locks(self, key: bytes) -> bool:
        return self.ingest.locks(key)

    def row(self, key: bytes, version: int) -> tuple[bytes | None, int] | None:
        """See `Ingest.newest`."""
        return self.ingest.newest(key, version)

    def first_held(self, keys: bytes, count: int) -> int:
        return self.ingest.first_held(keys, count)

    def runs(self, version: int = 0) -> list[Run]:
        """Its rows as runs, newest first."""
        return self.ingest.runs(version)

    def undo(self, statement: int) -> None:
        self.ingest.undo(statement)
        self._chunks = [chunk for chunk in self._chunks if chunk[0] <= statement]

    def keep(self, live: Iterable[int]) -> None:
        wanted = set(live)
        self.ingest.keep(wanted)
        self._chunks = [chunk for chunk in self._chunks if chunk[0] in wanted]

    def when_ready(
        self,
        overlay: Mapping[bytes, bytes | None] | None,
        call: Callable[[StorageError | None], None],
    ) -> None:
        if not self._large:
            call(None)
            return
        if overlay:
            self.ingest.absorb(overlay)
        self._absorbed = True
        self.ingest.when_durable(call)

    def sections(self, table_id: int) -> list[Section]:
        if not self._large:
            return [Section(table_id, count, keys, rows) for _, count, keys, rows in self._chunks]
        metas = self.ingest.metas()
        rows = sum(meta.rows for meta in metas)
        return [Section(table_id, rows, b"", None, msgspec.msgpack.encode(metas))] if metas else []

    def close(self, committed: bool) -> None:
        self.ingest.close(committed and self._large)
