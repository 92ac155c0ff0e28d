"""Memcomparable keys (docs/formats/key.md): byte order of keys is SQL order of the key columns."""

from array import array

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport isnan
from libc.stdint cimport int64_t, uint16_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from shardb._core.buffer cimport (
    arena_alloc, arena_free, arena_init, buf_be16, buf_be32, buf_be64, buf_bytes, buf_free,
    buf_init, buf_put, buf_reserve, buf_u8, core_fail, get_be16, get_be32, get_be64, put_be64,
    raise_core,
)
from shardb._core.coreerror import CoreError
from shardb._core.datum cimport (
    T_BOOL, T_BPCHAR, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INTERVAL, T_JSONB, T_NUMERIC,
    T_TIME, T_UUID, datum_apply_typmod, datum_init, i128, interval_total, join128,
    type_is_variable,
)
from shardb._core.numeric cimport numeric_rescale, numeric_typmod_scale, pow10_i128
from shardb._core.pyvalue cimport datum_from_object, datum_to_object
from shardb._core.rowcodec cimport RowLayout, row_check, row_get

cdef enum:
    PRESENT = 1
    ABSENT = 2

cdef uint64_t SIGN64 = 1ULL << 63
cdef i128 US_PER_DAY = 86400000000LL


cdef inline void append_i128(i128 v, Buf* out) noexcept nogil:
    buf_be64(out, <uint64_t><int64_t>(v >> 64) ^ (1ULL << 63))
    buf_be64(out, <uint64_t>v)


cdef inline void append_escaped(const char* p, size_t n, Buf* out) noexcept nogil:
    cdef size_t i
    if buf_reserve(out, 2 * n + 2) != 0:
        return
    for i in range(n):
        out.data[out.len] = p[i]
        out.len += 1
        if p[i] == 0:
            out.data[out.len] = <char>0xFF
            out.len += 1
    out.data[out.len] = 0
    out.data[out.len + 1] = 1
    out.len += 2


cdef void key_append(const KeyColumn* column, const Datum* d, Buf* out) noexcept nogil:
    cdef size_t start = out.len
    cdef size_t i
    cdef int type = column.type
    cdef int n
    cdef uint64_t bits64
    cdef uint32_t bits32
    cdef double f
    cdef float f4
    if column.nullable:
        buf_u8(out, ABSENT if d.null else PRESENT)
    if d.null:
        pass
    elif type == T_INT4 or type == T_DATE:
        buf_be32(out, <uint32_t><int32_t>d.i ^ 0x80000000U)
    elif type_is_variable(type):
        n = d.len
        if type == T_BPCHAR:
            while n and d.p[n - 1] == c' ':
                n -= 1
        append_escaped(d.p, n, out)
    elif type == T_INT2:
        buf_be16(out, <uint16_t>(<uint16_t><int16_t>d.i ^ 0x8000))
    elif type == T_BOOL:
        buf_u8(out, 1 if d.i else 0)
    elif type == T_FLOAT8:
        f = d.f + 0.0  # -0 becomes +0
        memcpy(&bits64, &f, 8)
        if isnan(f):
            bits64 = 0x7FF8000000000000ULL
        buf_be64(out, ~bits64 if bits64 >> 63 else bits64 ^ (1ULL << 63))
    elif type == T_FLOAT4:
        f4 = <float>(d.f + 0.0)
        memcpy(&bits32, &f4, 4)
        if isnan(f4):
            bits32 = 0x7FC00000U
        buf_be32(out, ~bits32 if bits32 >> 31 else bits32 ^ 0x80000000U)
    elif type == T_NUMERIC:
        append_i128(d.n, out)
    elif type == T_UUID:
        buf_put(out, d.p, 16)
    elif type == T_INTERVAL:
        append_i128(interval_total(d.months, d.days, d.i), out)
    else:
        buf_be64(out, <uint64_t>d.i ^ (1ULL << 63))
    if column.desc and not out.failed:
        for i in range(start, out.len):
            out.data[i] = ~out.data[i]


cdef void key_from_row(const KeyColumn* columns, int count, const Layout* layout,
                       const int* positions, const char* row, Buf* out) noexcept nogil:
    cdef Datum d
    cdef int i
    for i in range(count):
        row_get(layout, row, positions[i], &d)
        key_append(&columns[i], &d, out)


cdef int key_fit(const KeyColumn* column, Datum* d) noexcept nogil:
    cdef i128 unit, whole
    cdef int inexact = 0
    if d.null or column.type != T_NUMERIC or d.scale == column.scale:
        return 0
    if d.scale > column.scale:
        unit = pow10_i128(d.scale - column.scale)
        whole = d.n / unit
        if whole * unit != d.n:
            inexact = 1
            if d.n < 0:
                whole -= 1
        d.n = whole
    elif numeric_rescale(&d.n, d.scale, column.scale) != 0:
        return -1
    d.scale = column.scale
    return inexact


cdef inline uint8_t read_u8(const char* p, uint8_t flip) noexcept nogil:
    return <uint8_t>p[0] ^ flip


cdef int key_width(int type) noexcept nogil:
    if type == T_BOOL:
        return 1
    if type == T_INT2:
        return 2
    if type == T_INT4 or type == T_DATE or type == T_FLOAT4:
        return 4
    if type == T_NUMERIC or type == T_UUID or type == T_INTERVAL:
        return 16
    return 8


cdef int read_escaped(const char* key, Py_ssize_t length, Py_ssize_t* at, uint8_t flip, Datum* out,
                      Arena* arena) noexcept nogil:
    cdef Py_ssize_t i = at[0]
    cdef Py_ssize_t n = 0
    cdef char* p
    cdef uint8_t c
    while True:
        if i + 1 >= length:
            return core_fail(b"XX001", b"key is not well-formed")
        if read_u8(key + i, flip) == 0:
            c = read_u8(key + i + 1, flip)
            if c == 1:
                break
            if c != 0xFF:
                return core_fail(b"XX001", b"key is not well-formed")
            i += 1
        i += 1
        n += 1
    p = arena_alloc(arena, n + 1)
    if p == NULL:
        return core_fail(b"53200", b"out of memory")
    out.p = p
    out.len = <int32_t>n
    i = at[0]
    n = 0
    while n < out.len:
        p[n] = <char>read_u8(key + i, flip)
        i += 2 if p[n] == 0 else 1
        n += 1
    at[0] = i + 2
    return 0


cdef int key_read(const KeyColumn* column, const char* key, Py_ssize_t length, Py_ssize_t* at,
                  Datum* out, Arena* arena) noexcept nogil:
    cdef int type = column.type
    cdef uint8_t flip = 0xFF if column.desc else 0
    cdef uint8_t mark
    cdef char raw[16]
    cdef char* p
    cdef int i, width
    cdef uint64_t bits64
    cdef uint32_t bits32
    cdef float f4
    cdef i128 v, months, days
    datum_init(out, type)
    out.scale = column.scale
    if column.nullable:
        if at[0] >= length:
            return core_fail(b"XX001", b"key is not well-formed")
        mark = read_u8(key + at[0], flip)
        at[0] += 1
        if mark == ABSENT:
            out.null = 1
            return 0
        if mark != PRESENT:
            return core_fail(b"XX001", b"key is not well-formed")
    if type_is_variable(type):
        if read_escaped(key, length, at, flip, out, arena) != 0:
            return -1
        return datum_apply_typmod(out, column.typmod, True, arena) if type == T_BPCHAR else 0
    width = key_width(type)
    if at[0] + width > length:
        return core_fail(b"XX001", b"key is not well-formed")
    for i in range(width):
        raw[i] = <char>read_u8(key + at[0] + i, flip)
    at[0] += width
    if type == T_INT4 or type == T_DATE:
        out.i = <int32_t>(get_be32(raw) ^ 0x80000000U)
    elif type == T_INT2:
        out.i = <int16_t><uint16_t>(get_be16(raw) ^ 0x8000)
    elif type == T_BOOL:
        out.i = raw[0]
    elif type == T_FLOAT8:
        bits64 = get_be64(raw)
        bits64 = bits64 ^ (1ULL << 63) if bits64 >> 63 else ~bits64
        memcpy(&out.f, &bits64, 8)
    elif type == T_FLOAT4:
        bits32 = get_be32(raw)
        bits32 = bits32 ^ 0x80000000U if bits32 >> 31 else ~bits32
        memcpy(&f4, &bits32, 4)
        out.f = f4
    elif type == T_UUID:
        p = arena_alloc(arena, 16)
        if p == NULL:
            return core_fail(b"53200", b"out of memory")
        memcpy(p, raw, 16)
        out.p = p
        out.len = 16
    elif type == T_NUMERIC or type == T_INTERVAL:
        v = join128(get_be64(raw) ^ (1ULL << 63), get_be64(raw + 8))
        if type == T_NUMERIC:
            out.n = v
        else:
            days = v / US_PER_DAY
            months = days / 30
            out.i = <int64_t>(v % US_PER_DAY)
            if months > 2147483647:
                months = 2147483647
            elif months < -2147483647:
                months = -2147483647
            out.months = <int32_t>months
            out.days = <int32_t>(days - months * 30)
    else:
        out.i = <int64_t>(get_be64(raw) ^ (1ULL << 63))
        if type == T_TIME and (out.i < 0 or out.i > <int64_t>US_PER_DAY):
            return core_fail(b"XX001", b"key is not well-formed")
    return 0


cdef size_t key_successor(char* key, size_t length) noexcept nogil:
    while length and <uint8_t>key[length - 1] == 0xFF:
        length -= 1
    if length:
        key[length - 1] = <char>(<uint8_t>key[length - 1] + 1)
    return length


def prefix_successor(bytes key) -> bytes:
    """The least key above all keys that begin with `key`; empty if there is none."""
    cdef bytes copy = PyBytes_FromStringAndSize(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    cdef Buf out
    buf_init(&out)
    buf_put(&out, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    out.len = key_successor(out.data, out.len)
    try:
        return buf_bytes(&out)
    finally:
        buf_free(&out)


cdef class KeyCodec:
    """Encodes keys; `types` is a sequence of (type_code, typmod, desc, nullable), one a column."""

    def __cinit__(self, types):
        cdef int i
        self.column = NULL
        self.types = tuple((int(c), int(m), bool(d), bool(n)) for c, m, d, n in types)
        self.count = len(self.types)
        self.column = <KeyColumn*>calloc(max(self.count, 1), sizeof(KeyColumn))
        if self.column == NULL:
            raise MemoryError
        for i in range(self.count):
            code, typmod, desc, nullable = self.types[i]
            if not 0 <= code <= T_JSONB:
                raise ValueError(f"type code {code} is unknown")
            self.column[i].type = code
            self.column[i].typmod = typmod
            self.column[i].desc = desc
            self.column[i].nullable = nullable
            if code == T_NUMERIC:
                self.column[i].scale = <int16_t>numeric_typmod_scale(typmod)

    def __dealloc__(self):
        free(self.column)

    def encode(self, values) -> bytes:
        """The key of a full vector of Python values (see pyvalue). NULL in a key column that is
        not nullable raises CoreError 23502."""
        if len(values) != self.count:
            raise ValueError(f"{len(values)} values for {self.count} key columns")
        return self.encode_prefix(values)

    def encode_prefix(self, values) -> bytes:
        """The encoding of the leading key columns; all their keys begin with it."""
        cdef Buf out
        cdef Arena arena
        cdef Datum d
        cdef int i
        if len(values) > self.count:
            raise ValueError(f"{len(values)} values for {self.count} key columns")
        buf_init(&out)
        arena_init(&arena)
        try:
            for i in range(len(values)):
                datum_from_object(self.column[i].type, self.column[i].typmod, values[i], &d, &arena)
                if d.null and not self.column[i].nullable:
                    raise CoreError("23502", "null value in a key column")
                if d.null == 0 and d.type == T_NUMERIC and d.scale != self.column[i].scale:
                    if numeric_rescale(&d.n, d.scale, self.column[i].scale) != 0:
                        raise_core()
                key_append(&self.column[i], &d, &out)
            return buf_bytes(&out)
        finally:
            buf_free(&out)
            arena_free(&arena)

    def decode(self, bytes key) -> tuple:
        """The values of a full key or of a prefix; raises CoreError XX001 if malformed."""
        cdef Arena arena
        cdef Datum d
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t length = PyBytes_GET_SIZE(key)
        cdef int i
        cdef list values = []
        arena_init(&arena)
        try:
            for i in range(self.count):
                if at == length and i:
                    break
                if key_read(&self.column[i], PyBytes_AS_STRING(key), length, &at, &d, &arena) != 0:
                    raise_core()
                values.append(datum_to_object(&d, self.column[i].typmod))
            if at != length:
                raise CoreError("XX001", "key is not well-formed")
            return tuple(values)
        finally:
            arena_free(&arena)

    def key_of_row(self, RowLayout layout, positions, bytes row) -> bytes:
        """The key of one row, whose key columns are at `positions`."""
        keys, _ = self.keys_from_rows(layout, positions, row, array("Q", [0, len(row)]))
        return keys

    def keys_from_rows(self, RowLayout layout, positions, const uint8_t[::1] rows,
                       const uint64_t[::1] offsets) -> tuple:
        """The keys of many rows: (key bytes, offsets); row i is rows[offsets[i]:offsets[i + 1]].

        Rows that are not well-formed raise CoreError XX001, a NULL in a column that is not
        nullable 23502.
        """
        cdef Py_ssize_t count = offsets.shape[0] - 1
        cdef Py_ssize_t i
        cdef int k, why
        cdef int at[64]
        cdef Buf out
        cdef const char* base
        cdef const char* row
        cdef Datum d
        if len(positions) != self.count or self.count > 64:
            raise ValueError("one position for each key column, at most 64")
        for k in range(self.count):
            at[k] = positions[k]
            if not 0 <= at[k] < layout.c.columns or layout.c.column[at[k]].type != self.column[k].type:
                raise ValueError(f"position {at[k]} is not a column of key column {k}'s type")
        if count < 0 or offsets[count] > <uint64_t>rows.shape[0]:
            raise ValueError("row offsets are out of bounds")
        ends = array("Q", bytes(8 * (count + 1)))
        cdef uint64_t[::1] end = ends
        base = <const char*>&rows[0] if rows.shape[0] else NULL
        why = 0
        buf_init(&out)
        try:
            with nogil:
                for i in range(count):
                    if (offsets[i] > offsets[i + 1]
                            or row_check(&layout.c, base + offsets[i], offsets[i + 1] - offsets[i])):
                        why = core_fail(b"XX001", b"row is not well-formed")
                        break
                    row = base + offsets[i]
                    for k in range(self.count):
                        row_get(&layout.c, row, at[k], &d)
                        if d.null and not self.column[k].nullable:
                            why = core_fail(b"23502", b"null value in a key column")
                            break
                        key_append(&self.column[k], &d, &out)
                    if why:
                        break
                    end[i + 1] = out.len
            if why:
                raise_core()
            return buf_bytes(&out), ends
        finally:
            buf_free(&out)
