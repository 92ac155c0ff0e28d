"""Rows of one layout as rows of another: ALTER TABLE rewrites nothing, readers convert."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport calloc, free, malloc

from shardb._core.buffer cimport buf_bytes, buf_free, buf_init
from shardb._core.datum cimport datum_init
from shardb._core.rowcodec cimport row_append, row_get

cdef enum:
    FEW_COLUMNS = 32   # whose values are gathered on the stack


cdef void row_convert(const ColumnMap* map, const Layout* source, const Layout* target,
                      const char* row, Buf* out) noexcept nogil:
    cdef Datum few[FEW_COLUMNS]
    cdef Datum* values = few
    cdef int index
    if map.columns > FEW_COLUMNS:
        values = <Datum*> malloc(map.columns * sizeof(Datum))
        if values == NULL:
            out.failed = 1
            return
    for index in range(map.columns):
        if map.source[index] < 0:
            values[index] = map.missing[index]
        else:
            row_get(source, row, map.source[index], &values[index])
    row_append(target, values, out)
    if values != few:
        free(values)


cdef class RowMap:
    """How rows of `source` become rows of `target`.

    `source_of` has a column of `source` for each column of `target`, or -1 where there is none:
    such a column is what it is in `missing_row` (a row of `target`), NULL without one. A mapped
    column must have the same type, and a numeric the same scale, in both. Any thread may use it.
    """

    def __cinit__(
        self, RowLayout source not None, RowLayout target not None, source_of,
        bytes missing_row=None,
    ):
        cdef int columns = target.c.columns
        cdef int index
        cdef int position
        self.c.source = NULL
        self.c.missing = NULL
        self.source = source
        self.target = target
        self.missing_row = missing_row
        assert len(source_of) == columns, "a source for each column of the target"
        if missing_row is not None:
            target.check(missing_row)
        self.c.columns = columns
        self.c.source = <int32_t*> calloc(max(columns, 1), sizeof(int32_t))
        self.c.missing = <Datum*> calloc(max(columns, 1), sizeof(Datum))
        if self.c.source == NULL or self.c.missing == NULL:
            raise MemoryError
        self.c.same = (source.c.schema_version == target.c.schema_version
                       and source.c.columns == columns)
        for index in range(columns):
            position = source_of[index]
            assert -1 <= position < source.c.columns, f"no column {position} in the source"
            self.c.source[index] = position
            if position >= 0:
                assert same_values(source, position, target, index), f"column {index} differs"
            if missing_row is not None:
                row_get(&target.c, PyBytes_AS_STRING(missing_row), index, &self.c.missing[index])
            else:
                datum_init(&self.c.missing[index], target.c.column[index].type)
                self.c.missing[index].null = 1
            self.c.same = self.c.same and position == index

    def __dealloc__(self):
        free(self.c.source)
        free(self.c.missing)

    @property
    def source_of(self):
        """For each column of the target: the source's column, or -1."""
        return tuple([self.c.source[index] for index in range(self.c.columns)])

    def convert(self, bytes row not None) -> bytes:
        """The row as the target has it. CoreError XX001: it is not well-formed for the source."""
        cdef Buf out
        self.source.check(row)
        buf_init(&out)
        try:
            row_convert(
                &self.c, &self.source.c, &self.target.c, PyBytes_AS_STRING(row), &out
            )
            return buf_bytes(&out)
        finally:
            buf_free(&out)


cdef bint same_values(RowLayout source, int position, RowLayout target, int index):
    """True if a value of the one column is a value of the other as it is."""
    return (source.c.column[position].type == target.c.column[index].type
            and source.c.column[position].scale == target.c.column[index].scale)
