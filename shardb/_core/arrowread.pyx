"""Cells of Arrow record batches as SQL values, without Python objects.

Besides a type's own Arrow form (shardb/types.py) it reads what an engine may return instead:
integers of another width, decimals of another width or scale, large strings and string views,
timestamps of another unit, dictionaries, uuids as strings. They are cast to the type asked for.
Binary columns of a type that is not bytea hold PostgreSQL text forms, which are checked.
"""

from libc.stdint cimport int8_t, int16_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, strtol
from libc.string cimport memcpy, strncmp

from shardb._core.buffer cimport core_fail
from shardb._core.cast cimport datum_cast
from shardb._core.coreerror import CoreError
from shardb._core.datum cimport (
    T_BOOL, T_BYTEA, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_INTERVAL, T_JSON,
    T_JSONB, T_NUMERIC, T_TEXT, T_TIME, T_TIMESTAMP, T_TIMESTAMPTZ, T_UNKNOWN, T_UUID, T_VARCHAR,
    datum_apply_typmod, datum_from_text, datum_init, i128, type_is_text,
)

cdef enum:
    K_NULL = 1
    K_BOOL
    K_I8
    K_U8
    K_I16
    K_U16
    K_I32
    K_U32
    K_I64
    K_U64
    K_F32
    K_F64
    K_DEC32
    K_DEC64
    K_DEC128
    K_STR32   # strings and binaries with 32-bit offsets
    K_STR64
    K_VIEW
    K_FIXED   # fixed-size binary of 16 bytes
    K_DATE32
    K_TICK32  # times in 32 bits
    K_TICK64  # times, timestamps, durations and date64 in 64 bits
    K_MONTHS
    K_DAY_MS
    K_MONTH_DAY_NANO
    K_DICTIONARY

cdef int64_t INFINITE = <int64_t>((1ULL << 63) - 1)
cdef int64_t MINUS_INFINITE = <int64_t>(1ULL << 63)


cdef int set_unit(ArrowColumn* c, char unit) noexcept nogil:
    if unit == c's':
        c.factor = 1000000
    elif unit == c'm':
        c.factor = 1000
    elif unit == c'u':
        c.factor = 1
    elif unit == c'n':
        c.factor = -1000
    else:
        return -1
    return 0


cdef int kind_of(const char* f, ArrowColumn* c) noexcept nogil:
    """Fills kind, source, scale and factor from an Arrow format string; -1 if unknown."""
    cdef char* end
    cdef long bits = 128
    cdef const char* simple = b"nbcCsSiIlLfg"
    cdef int* kinds = [K_NULL, K_BOOL, K_I8, K_U8, K_I16, K_U16, K_I32, K_U32, K_I64, K_U64,
                       K_F32, K_F64]
    cdef int* sources = [T_UNKNOWN, T_BOOL, T_INT2, T_INT2, T_INT2, T_INT4, T_INT4, T_INT8, T_INT8,
                         T_NUMERIC, T_FLOAT4, T_FLOAT8]
    cdef int i
    if f[1] == 0:
        for i in range(12):
            if f[0] == simple[i]:
                c.kind = kinds[i]
                c.source = sources[i]
                return 0
        if f[0] == c'u' or f[0] == c'z':
            c.kind = K_STR32
        elif f[0] == c'U' or f[0] == c'Z':
            c.kind = K_STR64
        else:
            return -1
        c.source = T_TEXT if (f[0] | 32) == c'u' else T_BYTEA
        return 0
    if f[0] == c'v' and (f[1] == c'u' or f[1] == c'z') and f[2] == 0:
        c.kind = K_VIEW
        c.source = T_TEXT if f[1] == c'u' else T_BYTEA
        return 0
    if strncmp(f, b"w:16", 5) == 0:
        c.kind = K_FIXED
        c.source = T_UUID
        return 0
    if strncmp(f, b"d:", 2) == 0:
        strtol(f + 2, &end, 10)
        c.scale = <int>strtol(end + 1, &end, 10)
        if end[0] == c',':
            bits = strtol(end + 1, &end, 10)
        c.kind = K_DEC128 if bits == 128 else (K_DEC64 if bits == 64 else K_DEC32)
        c.source = T_NUMERIC
        return -1 if bits > 128 or c.scale < 0 or c.scale > 38 else 0
    if strncmp(f, b"tdD", 4) == 0:
        c.kind = K_DATE32
        c.source = T_DATE
        return 0
    if strncmp(f, b"tdm", 4) == 0:
        c.kind = K_TICK64
        c.source = T_TIMESTAMP
        c.factor = 1000
        return 0
    if strncmp(f, b"tt", 2) == 0:
        c.kind = K_TICK32 if f[2] == c's' or f[2] == c'm' else K_TICK64
        c.source = T_TIME
        return set_unit(c, f[2])
    if strncmp(f, b"ts", 2) == 0 and f[2] != 0 and f[3] == c':':
        c.kind = K_TICK64
        c.source = T_TIMESTAMPTZ if f[4] else T_TIMESTAMP
        return set_unit(c, f[2])
    if strncmp(f, b"tD", 2) == 0:
        c.kind = K_TICK64
        c.source = T_INTERVAL
        return set_unit(c, f[2])
    c.source = T_INTERVAL
    if strncmp(f, b"tiM", 4) == 0:
        c.kind = K_MONTHS
    elif strncmp(f, b"tiD", 4) == 0:
        c.kind = K_DAY_MS
    elif strncmp(f, b"tin", 4) == 0:
        c.kind = K_MONTH_DAY_NANO
    else:
        return -1
    return 0


cdef bint is_same(ArrowColumn* c) noexcept nogil:
    """Cells are of the asked type as read, so that at most its typmod has to be applied."""
    cdef int t = c.type
    if c.source == t:
        return True
    if c.source == T_TEXT:
        return type_is_text(t)
    if T_INT2 <= c.source <= T_INT8 and T_INT2 <= t <= T_INT8:
        return c.source < t
    if c.source == T_FLOAT4 and t == T_FLOAT8:
        return True
    return (c.source == T_TIMESTAMP or c.source == T_TIMESTAMPTZ) and (
        t == T_TIMESTAMP or t == T_TIMESTAMPTZ)


cdef int read_cell(const ArrowColumn* c, int64_t at, Datum* out) noexcept nogil:
    cdef int kind = c.kind
    cdef int32_t a32, b32
    cdef int64_t a64, b64
    cdef uint64_t u64
    cdef const char* view
    cdef float f
    if kind == K_STR32:
        memcpy(&a32, c.values + 4 * at, 4)
        memcpy(&b32, c.values + 4 * at + 4, 4)
        out.p = c.data + a32
        out.len = b32 - a32
    elif kind == K_I32 or kind == K_DATE32:
        memcpy(&a32, c.values + 4 * at, 4)
        out.i = a32
    elif kind == K_I64:
        memcpy(&out.i, c.values + 8 * at, 8)
    elif kind == K_F64:
        memcpy(&out.f, c.values + 8 * at, 8)
    elif kind == K_DEC128:
        memcpy(&out.n, c.values + 16 * at, 16)
        out.scale = <int16_t>c.scale
    elif kind == K_TICK64 or kind == K_TICK32:
        if kind == K_TICK32:
            memcpy(&a32, c.values + 4 * at, 4)
            out.i = a32
        else:
            memcpy(&out.i, c.values + 8 * at, 8)
        if c.factor > 1:
            if c.source != T_TIME and (out.i == INFINITE or out.i == -INFINITE):
                pass
            elif out.i > INFINITE / c.factor or out.i < -INFINITE / c.factor:
                return core_fail(b"22008", b"timestamp out of range")
            else:
                out.i = out.i * c.factor
        elif c.factor < 0 and out.i != INFINITE and out.i != -INFINITE:
            a64 = out.i % -c.factor
            out.i = out.i / -c.factor - (1 if a64 < 0 else 0)
        if out.i == -INFINITE and c.source != T_TIME:
            out.i = MINUS_INFINITE
    elif kind == K_VIEW:
        view = c.values + 16 * at
        memcpy(&out.len, view, 4)
        if out.len <= 12:
            out.p = view + 4
        else:
            memcpy(&a32, view + 8, 4)
            memcpy(&b32, view + 12, 4)
            out.p = <const char*>c.buffers[2 + a32] + b32
    elif kind == K_STR64:
        memcpy(&a64, c.values + 8 * at, 8)
        memcpy(&b64, c.values + 8 * at + 8, 8)
        if b64 - a64 > 0x3FFFFFFF:
            return core_fail(b"54000", b"value is too long")
        out.p = c.data + a64
        out.len = <int32_t>(b64 - a64)
    elif kind == K_BOOL:
        out.i = (<uint8_t>c.values[at >> 3] >> (at & 7)) & 1
    elif kind == K_I16:
        out.i = (<const int16_t*>c.values)[at]
    elif kind == K_F32:
        memcpy(&f, c.values + 4 * at, 4)
        out.f = f
    elif kind == K_FIXED:
        out.p = c.values + 16 * at
        out.len = 16
    elif kind == K_U64:
        memcpy(&u64, c.values + 8 * at, 8)
        out.n = <i128>u64
    elif kind == K_U32:
        out.i = (<const uint32_t*>c.values)[at]
    elif kind == K_U16:
        out.i = (<const uint16_t*>c.values)[at]
    elif kind == K_I8:
        out.i = (<const int8_t*>c.values)[at]
    elif kind == K_U8:
        out.i = <uint8_t>c.values[at]
    elif kind == K_DEC64:
        memcpy(&a64, c.values + 8 * at, 8)
        out.n = <i128>a64
        out.scale = <int16_t>c.scale
    elif kind == K_DEC32:
        memcpy(&a32, c.values + 4 * at, 4)
        out.n = <i128>a32
        out.scale = <int16_t>c.scale
    elif kind == K_MONTH_DAY_NANO:
        memcpy(&out.months, c.values + 16 * at, 4)
        memcpy(&out.days, c.values + 16 * at + 4, 4)
        memcpy(&out.i, c.values + 16 * at + 8, 8)
        out.i = out.i / 1000
    elif kind == K_MONTHS:
        memcpy(&out.months, c.values + 4 * at, 4)
    elif kind == K_DAY_MS:
        memcpy(&out.days, c.values + 8 * at, 4)
        memcpy(&a32, c.values + 8 * at + 4, 4)
        out.i = <int64_t>a32 * 1000
    return 0


cdef int64_t index_of(const ArrowColumn* c, int64_t at) noexcept nogil:
    cdef Datum d
    read_cell(c, at, &d)
    return <int64_t>d.n if c.kind == K_U64 else d.i


cdef int arrow_get(const ArrowColumn* column, int64_t row, Datum* out, Arena* arena) noexcept nogil:
    cdef int64_t at = column.offset + row
    datum_init(out, column.type)
    if column.kind == K_NULL or (
            column.validity != NULL and not (column.validity[at >> 3] >> (at & 7)) & 1):
        out.null = 1
        return 0
    if column.values_of != NULL:
        return arrow_get(column.values_of, index_of(column, at), out, arena)
    if read_cell(column, at, out) != 0:
        return -1
    if not column.same:
        if column.source == T_BYTEA:
            if column.type == T_UUID and out.len == 16:
                return 0
            # bytes that were never checked: the text of a value, as in COPY
            return datum_from_text(column.type, column.typmod, out.p, out.len, out, arena)
        out.type = <uint8_t>column.source
        return datum_cast(out, column.type, column.typmod, out, arena)
    if column.typmod >= 0:
        return datum_apply_typmod(out, column.typmod, False, arena)
    return 0


cdef int open_column(ArrowColumn* c, ArrowSchema* schema, ArrowArray* array, int type,
                     int typmod) except -1:
    if kind_of(schema.format, c) != 0:
        raise CoreError("0A000", f"Arrow format {schema.format.decode()} is not supported")
    c.type = type
    c.typmod = typmod
    c.offset = array.offset
    c.same = is_same(c)
    c.buffers = array.buffers
    c.validity = NULL
    if c.kind == K_NULL:
        return 0
    if array.null_count != 0:
        c.validity = <const uint8_t*>array.buffers[0]
    c.values = <const char*>array.buffers[1]
    if c.kind == K_STR32 or c.kind == K_STR64:
        c.data = <const char*>array.buffers[2]
        if c.data == NULL:
            c.data = c.values
    return 0


cdef class ArrowBatch:
    """A record batch opened for reading; `types` has a (type_code, typmod) for each column."""

    def __cinit__(self, batch, types):
        cdef int i
        cdef ArrowColumn* c
        self.column = NULL
        self.dictionaries = NULL
        self.array.release = NULL
        self.schema.release = NULL
        batch._export_to_c(<uintptr_t>&self.array, <uintptr_t>&self.schema)
        self.columns = <int>self.array.n_children
        self.rows = self.array.length
        if len(types) != self.columns:
            raise ValueError(f"{len(types)} types for a batch of {self.columns} columns")
        self.column = <ArrowColumn*>calloc(max(self.columns, 1), sizeof(ArrowColumn))
        self.dictionaries = <ArrowColumn*>calloc(max(self.columns, 1), sizeof(ArrowColumn))
        if self.column == NULL or self.dictionaries == NULL:
            raise MemoryError
        for i in range(self.columns):
            code, typmod = types[i]
            c = &self.column[i]
            open_column(c, self.schema.children[i], self.array.children[i], code, typmod)
            c.offset += self.array.offset
            if self.schema.children[i].dictionary != NULL:
                open_column(&self.dictionaries[i], self.schema.children[i].dictionary,
                            self.array.children[i].dictionary, code, typmod)
                c.values_of = &self.dictionaries[i]

    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)
        if self.schema.release != NULL:
            self.schema.release(&self.schema)
        free(self.column)
        free(self.dictionaries)
