"""The row encoding (docs/formats/row.md): rows and parameter vectors as bytes."""

from array import array

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from shardb._core.arrowread cimport ArrowBatch, arrow_get
from shardb._core.buffer cimport (
    arena_free, arena_init, arena_reset, buf_bytes, buf_free, buf_init, buf_reserve, core_fail, get_be16,
    raise_core,
)
from shardb._core.coreerror import CoreError
from shardb._core.datum cimport (
    T_BOOL, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INTERVAL, T_JSONB, T_NUMERIC, T_UUID,
    datum_apply_typmod, datum_from_binary, datum_from_text, datum_init, i128, type_is_variable,
)
from shardb._core.numeric cimport numeric_rescale, numeric_typmod_scale
from shardb._core.pyvalue cimport datum_from_object, datum_to_object


cdef uint32_t type_width(int type) noexcept nogil:
    if type == T_BOOL:
        return 1
    if type == T_INT2:
        return 2
    if type == T_INT4 or type == T_DATE or type == T_FLOAT4:
        return 4
    if type == T_NUMERIC or type == T_UUID or type == T_INTERVAL:
        return 16
    return 8


cdef inline uint32_t load32(const char* p) noexcept nogil:
    cdef uint32_t v
    memcpy(&v, p, 4)
    return v


cdef void row_get(const Layout* layout, const char* row, int index, Datum* out) noexcept nogil:
    cdef const ColumnLayout* column = &layout.column[index]
    cdef const char* p
    cdef uint32_t begin, end
    cdef int type = column.type
    cdef int32_t i32
    cdef int16_t i16
    cdef float f
    out.type = column.type
    out.scale = column.scale
    out.null = (<uint8_t>row[layout.bitmap_at + (index >> 3)] >> (index & 7)) & 1
    if column.variable:
        p = row + layout.offsets_at + 4 * column.slot
        begin = load32(p - 4) if column.slot else 0
        end = load32(p)
        out.p = row + layout.data_at + begin
        out.len = <int32_t>(end - begin)
        return
    p = row + column.slot
    if column.width == 8:
        if type == T_FLOAT8:
            memcpy(&out.f, p, 8)
        else:
            memcpy(&out.i, p, 8)
    elif column.width == 4:
        if type == T_FLOAT4:
            memcpy(&f, p, 4)
            out.f = f
        else:
            memcpy(&i32, p, 4)
            out.i = i32
    elif column.width == 16:
        if type == T_NUMERIC:
            memcpy(&out.n, p, 16)
        elif type == T_UUID:
            out.p = p
            out.len = 16
        else:
            memcpy(&out.months, p, 4)
            memcpy(&out.days, p + 4, 4)
            memcpy(&out.i, p + 8, 8)
    elif column.width == 2:
        memcpy(&i16, p, 2)
        out.i = i16
    else:
        out.i = row[column.slot]


cdef Py_ssize_t row_size(const Layout* layout, const Datum* values) noexcept nogil:
    cdef Py_ssize_t size = layout.data_at
    cdef int i
    if layout.variable_columns:
        for i in range(layout.columns):
            if layout.column[i].variable and not values[i].null:
                size += values[i].len
    return size


cdef void row_put(const Layout* layout, const Datum* values, char* out) noexcept nogil:
    cdef const ColumnLayout* column
    cdef const Datum* d
    cdef int index, type
    cdef uint32_t end = 0
    cdef char* p
    cdef int32_t i32
    cdef int16_t i16
    cdef float f
    memset(out, 0, layout.offsets_at)
    memcpy(out, &layout.schema_version, 2)
    for index in range(layout.columns):
        column = &layout.column[index]
        d = &values[index]
        if d.null:
            out[layout.bitmap_at + (index >> 3)] |= <char>(1 << (index & 7))
            if column.variable:
                memcpy(out + layout.offsets_at + 4 * column.slot, &end, 4)
            continue
        if column.variable:
            if d.len:
                memcpy(out + layout.data_at + end, d.p, d.len)
            end += <uint32_t>d.len
            memcpy(out + layout.offsets_at + 4 * column.slot, &end, 4)
            continue
        p = out + column.slot
        type = column.type
        if column.width == 8:
            if type == T_FLOAT8:
                memcpy(p, &d.f, 8)
            else:
                memcpy(p, &d.i, 8)
        elif column.width == 4:
            if type == T_FLOAT4:
                f = <float>d.f
                memcpy(p, &f, 4)
            else:
                i32 = <int32_t>d.i
                memcpy(p, &i32, 4)
        elif column.width == 16:
            if type == T_NUMERIC:
                memcpy(p, &d.n, 16)
            elif type == T_UUID:
                memcpy(p, d.p, 16)
            else:
                memcpy(p, &d.months, 4)
                memcpy(p + 4, &d.days, 4)
                memcpy(p + 8, &d.i, 8)
        elif column.width == 2:
            i16 = <int16_t>d.i
            memcpy(p, &i16, 2)
        else:
            p[0] = 1 if d.i else 0


cdef int row_check(const Layout* layout, const char* row, Py_ssize_t length) noexcept nogil:
    cdef uint32_t before = 0
    cdef uint32_t end = 0
    cdef int i
    cdef uint16_t version
    if length < <Py_ssize_t>layout.data_at:
        return -1
    memcpy(&version, row, 2)
    if version != layout.schema_version:
        return -1
    if layout.columns & 7:  # the bitmap's spare bits are zero
        if <uint8_t>row[layout.bitmap_at + (layout.columns >> 3)] >> (layout.columns & 7):
            return -1
    for i in range(layout.variable_columns):
        end = load32(row + layout.offsets_at + 4 * i)
        if end < before:
            return -1
        before = end
    return 0 if <Py_ssize_t>end == length - <Py_ssize_t>layout.data_at else -1


cdef int row_fit(const Layout* layout, int index, Datum* d, Arena* arena) noexcept nogil:
    cdef const ColumnLayout* column = &layout.column[index]
    if d.null:
        return 0
    if column.typmod >= 0:
        return datum_apply_typmod(d, column.typmod, False, arena)
    if column.type == T_NUMERIC and d.scale != column.scale:
        if numeric_rescale(&d.n, d.scale, column.scale) != 0:
            return -1
        d.scale = column.scale
    return 0


cdef void row_append(const Layout* layout, const Datum* values, Buf* out) noexcept nogil:
    cdef Py_ssize_t size = row_size(layout, values)
    if buf_reserve(out, size) == 0:
        row_put(layout, values, out.data + out.len)
        out.len += size


cdef class RowLayout:
    """The layout of rows of one schema version; `types` is a sequence of (type_code, typmod)."""

    def __cinit__(self, int schema_version, types):
        cdef int n = len(types)
        cdef int i
        cdef uint32_t at
        cdef ColumnLayout* column
        self.c.column = NULL
        if not 0 <= schema_version <= 0xFFFF:
            raise ValueError(f"schema version {schema_version} is not a uint16")
        if n > 0xFFFF:
            raise ValueError(f"{n} columns are too many")
        self.types = tuple((int(code), int(typmod)) for code, typmod in types)
        self.c.schema_version = <uint16_t>schema_version
        self.c.columns = <uint16_t>n
        self.c.variable_columns = 0
        self.c.bitmap_at = 2
        self.c.column = <ColumnLayout*>calloc(max(n, 1), sizeof(ColumnLayout))
        if self.c.column == NULL:
            raise MemoryError
        at = 2 + (n + 7) // 8
        for i in range(n):
            code, typmod = self.types[i]
            if not 0 <= code <= T_JSONB:
                raise ValueError(f"type code {code} is unknown")
            column = &self.c.column[i]
            column.type = code
            column.typmod = typmod
            column.variable = type_is_variable(code)
            if column.variable:
                column.slot = self.c.variable_columns
                self.c.variable_columns += 1
                continue
            if code == T_NUMERIC:
                column.scale = <int16_t>numeric_typmod_scale(typmod)
                if column.scale > 38:
                    raise ValueError(f"numeric scale {column.scale} is over 38")
            column.slot = at
            column.width = type_width(code)
            at += column.width
        self.c.offsets_at = at
        self.c.data_at = at + 4 * self.c.variable_columns

    def __dealloc__(self):
        free(self.c.column)

    def encode(self, values) -> bytes:
        """A row of Python values, one a column (see pyvalue)."""
        cdef Row row = Row(self, len(values))
        cdef int i
        for i in range(self.c.columns):
            datum_from_object(self.c.column[i].type, self.c.column[i].typmod, values[i],
                              &row.values[i], &row.arena)
            if row_fit(&self.c, i, &row.values[i], &row.arena) != 0:
                raise_core()
        return row.encoded()

    def decode(self, bytes row) -> tuple:
        """The Python values of a row; raises CoreError XX001 if it is not well-formed."""
        cdef Datum d
        cdef int i
        cdef list values = []
        self.check(row)
        for i in range(self.c.columns):
            row_get(&self.c, PyBytes_AS_STRING(row), i, &d)
            values.append(datum_to_object(&d, self.c.column[i].typmod))
        return tuple(values)

    def check(self, bytes row) -> None:
        """Raises CoreError XX001 if `row` is not well-formed for this layout."""
        if row_check(&self.c, PyBytes_AS_STRING(row), PyBytes_GET_SIZE(row)) != 0:
            raise CoreError("XX001", "row is not well-formed")

    def encode_params(self, formats, values) -> bytes:
        """The parameter row from wire values (None is NULL).

        `formats` has no entry (all text), one for all, or one each; 0 is text, 1 binary.
        """
        cdef Row row = Row(self, len(values))
        cdef Py_ssize_t count = len(formats)
        cdef int i
        cdef int format = 0
        cdef object value
        if count > 1 and count != self.c.columns:
            raise CoreError("08P01", f"bind message has {count} parameter formats but "
                            f"{self.c.columns} parameters")
        if count == 1:
            format = formats[0]
        for i in range(self.c.columns):
            if count > 1:
                format = formats[i]
            if format != 0 and format != 1:
                raise CoreError("22023", f"unsupported format code: {format}")
            value = values[i]
            if value is None:
                datum_init(&row.values[i], self.c.column[i].type)
                row.values[i].null = 1
                continue
            row_take(self, row, i, format, <bytes?>value)
        return row.encoded()

    def encode_text(self, values) -> bytes:
        """A row of values in text form (None is NULL)."""
        return self.encode_params((), values)


    def encode_arrow(self, batch) -> tuple:
        """Many rows from a pyarrow.RecordBatch with a column for each of the layout's, in order.

        Returns (row bytes, offsets as array 'Q'); row i is data[offsets[i]:offsets[i + 1]]. Works
        without the GIL. An error carries the `row` and `column` it was found at.
        """
        cdef ArrowBatch cells = ArrowBatch(batch, self.types)
        cdef Row row = Row(self, self.c.columns)
        cdef Buf out
        cdef int64_t at = 0
        cdef int i = 0
        cdef int why = 0
        ends = array("Q", bytes(8 * (cells.rows + 1)))
        cdef uint64_t[::1] end = ends
        buf_init(&out)
        try:
            with nogil:
                for at in range(cells.rows):
                    for i in range(self.c.columns):
                        why = arrow_get(&cells.column[i], at, &row.values[i], &row.arena)
                        if why == 0 and self.c.column[i].typmod < 0:
                            why = row_fit(&self.c, i, &row.values[i], &row.arena)
                        if why != 0:
                            break
                    if why != 0:
                        break
                    row_append(&self.c, row.values, &out)
                    end[at + 1] = out.len
                    arena_reset(&row.arena)
            if why != 0:
                try:
                    raise_core()
                except CoreError as error:
                    error.row = at
                    error.column = i
                    raise
            return buf_bytes(&out), ends
        finally:
            buf_free(&out)


cdef inline int row_take(RowLayout layout, Row row, int i, int format, bytes value) except -1:
    cdef const char* p = PyBytes_AS_STRING(value)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    cdef ColumnLayout* column = &layout.c.column[i]
    cdef int why
    if format:
        why = datum_from_binary(column.type, column.typmod, p, n, &row.values[i], &row.arena)
    else:
        why = datum_from_text(column.type, column.typmod, p, n, &row.values[i], &row.arena)
    if why != 0 or row_fit(&layout.c, i, &row.values[i], &row.arena) != 0:
        raise_core()
    return 0


cdef class Row:
    """One row's values while it is made."""

    cdef RowLayout layout
    cdef Datum* values
    cdef Datum few[8]
    cdef Arena arena

    def __cinit__(self, RowLayout layout, Py_ssize_t given):
        self.values = self.few
        arena_init(&self.arena)
        self.layout = layout
        if given != layout.c.columns:
            raise CoreError("08P01", f"{given} values for {layout.c.columns} columns")
        if given > 8:
            self.values = <Datum*>malloc(given * sizeof(Datum))
            if self.values == NULL:
                raise MemoryError

    def __dealloc__(self):
        if self.values != self.few:
            free(self.values)
        arena_free(&self.arena)

    cdef bytes encoded(self):
        cdef Py_ssize_t size = row_size(&self.layout.c, self.values)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        row_put(&self.layout.c, self.values, PyBytes_AS_STRING(out))
        return out
