"""What storage knows of a table's columns: the present layout, earlier ones, and ways between them.

Rows are never rewritten when a table is altered. A memtable or segment keeps the layout it was made
with; a reader says which version of the table it wants, and gets each row as that version has it.
Columns are the same if they have the same id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardb._core.rowcodec import RowLayout
from shardb._core.rowmap import RowMap
from shardb.errors import StorageError
from shardb.storage.segmentformat import SegmentColumn


class TabletSchema:
    """Immutable. `missing` has, by column id, the text of the value in rows older than the column.

    `earlier` maps the schema versions that were before to their columns. `version` may not be
    published yet, and then another schema may take its place; rows of it exist once it is.
    """

    __slots__ = ("_layouts", "_maps", "codec", "columns", "earlier", "missing", "version")

    def __init__(
        self,
        version: int,
        columns: Sequence[SegmentColumn],
        missing: Mapping[int, str] | None = None,
        earlier: Mapping[int, Sequence[SegmentColumn]] | None = None,
        codec: str = "",
    ) -> None:
        self.version = version
        self.columns = tuple(columns)
        self.missing = dict(missing or {})
        self.earlier = {number: tuple(found) for number, found in (earlier or {}).items()}
        self.codec = codec
        self._layouts: dict[int, RowLayout] = {}
        self._maps: dict[tuple[int, int], RowMap | None] = {}

    @property
    def oldest(self) -> int:
        """The first version there was, as far as is known."""
        return min([self.version, *self.earlier])

    def columns_of(self, version: int) -> tuple[SegmentColumn, ...]:
        """The columns of a version; XX001 if it is none of this table's."""
        if version == self.version:
            return self.columns
        found = self.earlier.get(version)
        if found is None:
            raise StorageError("XX001", f"rows have schema version {version}, which is unknown")
        return found

    def layout(self, version: int) -> RowLayout:
        """The row layout of a version; always the same object."""
        layout = self._layouts.get(version)
        if layout is None:
            types = [(column.type_code, column.typmod) for column in self.columns_of(version)]
            layout = self._layouts[version] = RowLayout(version, types)
        return layout

    def map(self, source: int, target: int) -> RowMap | None:
        """How rows of one version become rows of another; None if they are the same."""
        if source == target:
            return None
        key = source, target
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = self.map_from(
                self.layout(source), self.columns_of(source), target
            )
        return found

    def map_from(self, layout: RowLayout, columns: Sequence[SegmentColumn], target: int) -> RowMap:
        """The same from any columns, in `layout`."""
        at = {column.id: position for position, column in enumerate(columns)}
        wanted = self.columns_of(target)
        to = self.layout(target)
        texts = [self.missing.get(column.id) for column in wanted]
        row = to.encode_text([None if text is None else text.encode() for text in texts])
        return RowMap(layout, to, [at.get(column.id, -1) for column in wanted], row)
