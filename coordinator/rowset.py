"""Result rows on their way to a client: cursors that hand out DataRow messages in portions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import pyarrow as pa

from shardb._core.datarow import DataRowWriter
from shardb.program import TypeRef

PORTION_ROWS: Final = 8192  # rows encoded in one go; between portions the client is waited for


class Cursor(Protocol):
    """Rows that are left to send."""

    async def fetch(self, limit: int) -> tuple[bytes, int, bool]:
        """Up to `limit` rows (0: a portion) as DataRow messages, how many, and if none is left.

        As in PostgreSQL a fetch that gets exactly its limit does not look whether more would come.
        """


class ReadyRows:
    """Rows that are DataRow messages already."""

    __slots__ = ("_at", "_data", "_left")

    def __init__(self, data: bytes, rows: int) -> None:
        self._data = data
        self._left = rows
        self._at = 0

    async def fetch(self, limit: int) -> tuple[bytes, int, bool]:
        data, begin = self._data, self._at
        if not limit or limit > self._left:
            rows, self._left = self._left, 0
            self._at = len(data)
            return data[begin:] if begin else data, rows, True
        at = begin
        for _ in range(limit):
            at += 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        self._at = at
        self._left -= limit
        return data[begin:at], limit, False


class BatchRows:
    """Rows of Arrow batches, encoded as they are fetched."""

    __slots__ = ("_batch", "_batches", "_position", "_writer")

    def __init__(
        self,
        batches: pa.Table | pa.RecordBatchReader,
        types: Sequence[TypeRef],
        formats: bytes,
    ) -> None:
        self._writer = DataRowWriter([(ref.code, ref.typmod) for ref in types], formats)
        source = batches.to_batches() if isinstance(batches, pa.Table) else batches
        self._batches: Iterator[pa.RecordBatch] = iter(source)
        self._batch: pa.RecordBatch | None = None
        self._position = 0

    async def fetch(self, limit: int) -> tuple[bytes, int, bool]:
        want = min(limit, PORTION_ROWS) if limit else PORTION_ROWS
        parts: list[bytes] = []
        got = 0
        while got < want:
            if self._batch is None or self._position >= self._batch.num_rows:
                self._batch = next(self._batches, None)
                self._position = 0
                if self._batch is None:
                    return b"".join(parts), got, True
                continue
            piece = self._batch.slice(self._position, want - got)
            parts.append(self._writer.encode(piece))
            self._position += piece.num_rows
            got += piece.num_rows
        return b"".join(parts), got, False


def values_of(row: bytes) -> list[str | None]:
    """The text values of one DataRow message; None for NULL."""
    values: list[str | None] = []
    at = 7
    for _ in range(int.from_bytes(row[5:7], "big")):
        length = int.from_bytes(row[at : at + 4], "big", signed=True)
        at += 4
        values.append(None if length < 0 else row[at : at + length].decode())
        at += max(length, 0)
    return values
