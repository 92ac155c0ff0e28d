"""A run of a tablet as an input of a merge (see the .pxd)."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free

from shardb._core.datum cimport Datum
from shardb._core.rowcodec cimport row_get
from shardb._core.rowcolumns cimport row_column
from shardb._core.segment cimport (
    DELETED_COLUMN, KEY_COLUMN, SYSTEM_COLUMNS, TS_COLUMN, Chunk, RowGroup,
)


cdef class GroupView:
    """What an entered row group's columns point to, kept while it is referenced.

    The pointers are copies: the segment's own may change when its decompressed columns are trimmed
    and loaded again.
    """

    def __cinit__(self, int columns):
        self.c.column = <ViewColumn*> calloc(max(columns, 1), sizeof(ViewColumn))
        if self.c.column == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.c.column)


cdef class RunSource:
    """Run number `rank` of a merge, a memtable or a segment, and how its rows become `target`'s."""

    def __cinit__(self, int rank, run not None, RowMap map, RowLayout target not None):
        self.c.column = NULL
        self.identity = NULL
        self.c.rank = rank
        self.map = map
        self.target = target
        if isinstance(run, MemTable):
            self.memtable = run
            self.c.memtable = True
        else:
            self.segment = <Segment?> run
            layout = self.segment.layout if map is None else map.source
            types = target.types if map is None else map.source.types
            assert self.segment.layout.types == types, "the segment has another layout"
        if map is not None:
            assert map.target.types == target.types, "the map leads to another layout"
        self.describe()

    def __dealloc__(self):
        free(self.c.column)
        free(self.identity)

    cdef int describe(self) except -1:
        """Finds out where each column of the target comes from."""
        cdef RowLayout layout = self.target if self.map is None else self.map.source
        cdef int columns = self.target.c.columns
        cdef int index
        cdef Datum missing
        self.c.layout = &layout.c
        self.c.column = <RowColumn*> calloc(max(columns, 1), sizeof(RowColumn))
        self.identity = <int32_t*> calloc(max(columns, 1), sizeof(int32_t))
        if self.c.column == NULL or self.identity == NULL:
            raise MemoryError
        for index in range(columns):
            self.identity[index] = index
        self.c.source_of = self.identity if self.map is None else self.map.c.source
        self.null_row = layout.encode([None] * layout.c.columns)
        self.c.null_row = PyBytes_AS_STRING(self.null_row)
        if self.map is not None:
            self.missing_row = self.map.missing_row
        if self.missing_row is None:
            self.missing_row = self.target.encode([None] * columns)
        self.c.missing_row = PyBytes_AS_STRING(self.missing_row)
        for index in range(columns):
            if self.c.source_of[index] >= 0:
                self.c.column[index] = row_column(layout, self.c.source_of[index])
                continue
            self.c.column[index] = row_column(self.target, index)
            if self.target.c.column[index].variable:
                row_get(&self.target.c, self.c.missing_row, index, &missing)
                self.c.missing_bytes += missing.len
        return 0

    cdef int open(self, bytes start, bytes end) except -1:
        cdef int64_t first
        cdef RowGroup* group
        self.end_key = end
        self.c.end_key = PyBytes_AS_STRING(end)
        self.c.end_length = <uint32_t> PyBytes_GET_SIZE(end)
        self.c.end_prefix = key_prefix(self.c.end_key, self.c.end_length)
        if self.c.memtable:
            return to_node(
                &self.c, self.memtable.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
            )
        first = 0
        self.c.rows_end = self.segment.rows
        if start:
            first = self.segment.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        if end:
            self.c.rows_end = self.segment.seek(self.c.end_key, self.c.end_length)
        if first >= self.c.rows_end:
            return 0
        self.c.next_group = self.segment.group_of(first)
        self.enter()
        group = &self.segment.group[self.c.next_group - 1]
        to_row(&self.c, <uint32_t> (first - <int64_t> group.first_row))
        return 1

    cdef int enter(self) except -1:
        cdef RowGroup* group
        cdef int64_t rows
        self.view = None
        self.c.view = NULL
        if self.c.next_group == self.segment.group_count:
            return 0
        group = &self.segment.group[self.c.next_group]
        rows = self.c.rows_end - <int64_t> group.first_row
        if rows <= 0:
            return 0
        self.c.end = group.rows if rows > group.rows else <uint32_t> rows
        self.view = self.load(self.c.next_group)
        self.c.view = &self.view.c
        self.c.used = False
        self.c.next_group += 1
        to_row(&self.c, 0)
        return 1

    cdef GroupView load(self, int group):
        """The row group with all that the merge reads of it."""
        cdef RowGroup* of = &self.segment.group[group]
        cdef int columns = self.target.c.columns
        cdef GroupView view = GroupView(columns)
        cdef ViewColumn* column
        cdef Chunk* chunk
        cdef int index
        cdef bint whole = False
        cdef list wanted = [
            SYSTEM_COLUMNS + self.c.source_of[index]
            for index in range(columns) if self.c.source_of[index] >= 0
        ]
        while not whole:
            # A load may let go of the GIL, and a trim meanwhile take what was loaded before.
            self.segment.load_system(group)
            for index in wanted:
                self.segment.load(group, index)
            whole = of.chunk[KEY_COLUMN].ready
            whole = whole and (self.segment.link_ts or of.chunk[TS_COLUMN].ready)
            whole = whole and (not of.tombstones or of.chunk[DELETED_COLUMN].ready)
            for index in wanted:
                whole = whole and of.chunk[index].ready
        view.held = self.segment.hold(group)
        view.c.tombstones = of.tombstones
        view.c.versions = of.versions
        view.c.link_ts = self.segment.link_ts
        view.c.keys = of.chunk[KEY_COLUMN].values
        view.c.key_offsets = of.chunk[KEY_COLUMN].offsets
        view.c.stamps = <const uint64_t*> of.chunk[TS_COLUMN].values
        view.c.deleted = <const uint8_t*> of.chunk[DELETED_COLUMN].values
        for index in range(columns):
            column = &view.c.column[index]
            column.missing = self.c.source_of[index] < 0
            if not column.missing:
                chunk = &of.chunk[SYSTEM_COLUMNS + self.c.source_of[index]]
                column.validity = chunk.validity
                column.offsets = chunk.offsets
                column.values = chunk.values
        return view
