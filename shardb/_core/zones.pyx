"""What a row group's index says of its rows: bounds of each column, and of the system columns.

Bounds are key encodings (docs/formats/key.md), so that one comparison of bytes serves all types.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from shardb._core.buffer cimport Buf, buf_bytes, buf_free, buf_init, get_be64
from shardb._core.datum cimport (
    T_BOOL, T_BPCHAR, T_BYTEA, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_NUMERIC,
    T_TEXT, T_TIME, T_TIMESTAMP, T_TIMESTAMPTZ, T_UUID, T_VARCHAR, Datum, datum_init,
)
from shardb._core.keycodec cimport KeyColumn, key_append, key_successor
from shardb._core.memtable cimport key_compare
from shardb._core.numeric cimport numeric_typmod_scale
from shardb._core.view cimport View, offsets_fit

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #define SHARDB_VALID(bits, i) (!(bits) || (bits)[(i) >> 3] >> ((i) & 7) & 1)

    /* The bounds of the values that are there, into low[0] and high[0]: their number, but -1 if one
       is not equal to itself (NaN). Values are copied out, since buffers may be unaligned. */
    #define SHARDB_BOUNDS(name, T) \\
    static int64_t name(const char *p, const uint8_t *bits, int64_t rows, char *low, char *high) { \\
        T least, most, v; int64_t seen = 0; int odd = 0; \\
        memset(&least, 0, sizeof(T)); memset(&most, 0, sizeof(T)); \\
        for (int64_t i = 0; i < rows; i++) { \\
            if (!SHARDB_VALID(bits, i)) continue; \\
            memcpy(&v, p + i * sizeof(T), sizeof(T)); \\
            if (!seen++) least = most = v; \\
            odd |= v != v; \\
            least = v < least ? v : least; \\
            most = v > most ? v : most; \\
        } \\
        memcpy(low, &least, sizeof(T)); memcpy(high, &most, sizeof(T)); \\
        return odd ? -1 : seen; \\
    }
    SHARDB_BOUNDS(shardb_bounds_i16, int16_t)
    SHARDB_BOUNDS(shardb_bounds_i32, int32_t)
    SHARDB_BOUNDS(shardb_bounds_i64, int64_t)
    SHARDB_BOUNDS(shardb_bounds_i128, __int128)
    SHARDB_BOUNDS(shardb_bounds_f32, float)
    SHARDB_BOUNDS(shardb_bounds_f64, double)
    """
    bint valid "SHARDB_VALID"(const uint8_t* bits, int64_t i) noexcept nogil
    ctypedef int64_t (*Bounds)(
        const char* p, const uint8_t* bits, int64_t rows, char* low, char* high) noexcept nogil
    int64_t bounds_i16 "shardb_bounds_i16"(
        const char* p, const uint8_t* bits, int64_t rows, char* low, char* high) noexcept nogil
    int64_t bounds_i32 "shardb_bounds_i32"(
        const char* p, const uint8_t* bits, int64_t rows, char* low, char* high) noexcept nogil
    int64_t bounds_i64 "shardb_bounds_i64"(
        const char* p, const uint8_t* bits, int64_t rows, char* low, char* high) noexcept nogil
    int64_t bounds_i128 "shardb_bounds_i128"(
        const char* p, const uint8_t* bits, int64_t rows, char* low, char* high) noexcept nogil
    int64_t bounds_f32 "shardb_bounds_f32"(
        const char* p, const uint8_t* bits, int64_t rows, char* low, char* high) noexcept nogil
    int64_t bounds_f64 "shardb_bounds_f64"(
        const char* p, const uint8_t* bits, int64_t rows, char* low, char* high) noexcept nogil

cdef enum:
    STRING_MAX = 32

STRING_MAX_BYTES = STRING_MAX

# -infinity in Arrow columns that are not ours; rows have the value below it
cdef int64_t FOREIGN_MINUS_INFINITE = -<int64_t> ((1ULL << 63) - 1)


cdef int width_of(int type) noexcept nogil:
    """Bytes of a fixed-width value that has an order; 0 for other types."""
    if type == T_INT2:
        return 2
    if type == T_INT4 or type == T_DATE or type == T_FLOAT4:
        return 4
    if type == T_NUMERIC or type == T_UUID:
        return 16
    if (type == T_INT8 or type == T_FLOAT8 or type == T_TIME or type == T_TIMESTAMP
            or type == T_TIMESTAMPTZ):
        return 8
    return 0


cdef void bound_read(int type, const char* raw, Datum* d) noexcept nogil:
    cdef int16_t i16
    cdef int32_t i32
    cdef float f32
    datum_init(d, type)
    if type == T_INT2:
        memcpy(&i16, raw, 2)
        d.i = i16
    elif type == T_INT4 or type == T_DATE:
        memcpy(&i32, raw, 4)
        d.i = i32
    elif type == T_FLOAT4:
        memcpy(&f32, raw, 4)
        d.f = f32
    elif type == T_FLOAT8:
        memcpy(&d.f, raw, 8)
    elif type == T_NUMERIC:
        memcpy(&d.n, raw, 16)
    elif type == T_UUID:
        d.p = raw
        d.len = 16
    else:
        memcpy(&d.i, raw, 8)
        if type != T_INT8 and type != T_TIME and d.i == FOREIGN_MINUS_INFINITE:
            d.i -= 1


cdef int64_t uuid_bounds(
    const char* p, const uint8_t* bits, int64_t rows, char* low, char* high
) noexcept nogil:
    cdef int64_t i
    cdef int64_t seen = 0
    for i in range(rows):
        if valid(bits, i):
            if seen == 0 or memcmp(p + 16 * i, low, 16) < 0:
                memcpy(low, p + 16 * i, 16)
            if seen == 0 or memcmp(p + 16 * i, high, 16) > 0:
                memcpy(high, p + 16 * i, 16)
            seen += 1
    return seen


cdef int64_t fixed_bounds(
    int type, const char* p, const uint8_t* bits, int64_t rows, char* low, char* high
) noexcept nogil:
    if type == T_INT2:
        return bounds_i16(p, bits, rows, low, high)
    if type == T_INT4 or type == T_DATE:
        return bounds_i32(p, bits, rows, low, high)
    if type == T_FLOAT4:
        return bounds_f32(p, bits, rows, low, high)
    if type == T_FLOAT8:
        return bounds_f64(p, bits, rows, low, high)
    if type == T_NUMERIC:
        return bounds_i128(p, bits, rows, low, high)
    if type == T_UUID:
        return uuid_bounds(p, bits, rows, low, high)
    return bounds_i64(p, bits, rows, low, high)


cdef void fixed_zone(const KeyColumn* column, const char* p, const uint8_t* bits, int64_t rows,
                     Buf* low, Buf* high) noexcept nogil:
    cdef char least[16]
    cdef char most[16]
    cdef Datum d
    if fixed_bounds(column.type, p, bits, rows, least, most) > 0:
        bound_read(column.type, least, &d)
        key_append(column, &d, low)
        bound_read(column.type, most, &d)
        key_append(column, &d, high)


cdef void bool_zone(const KeyColumn* column, const uint8_t* p, const uint8_t* bits, int64_t rows,
                    Buf* low, Buf* high) noexcept nogil:
    cdef Datum d
    cdef bint found[2]
    cdef int64_t i
    found[0] = found[1] = False
    for i in range(rows):
        if valid(bits, i):
            found[(p[i >> 3] >> (i & 7)) & 1] = True
    if found[0] or found[1]:
        datum_init(&d, T_BOOL)
        d.i = not found[0]
        key_append(column, &d, low)
        d.i = found[1]
        key_append(column, &d, high)


cdef inline uint64_t prefix_of(const char* p, size_t n, const char* end) noexcept nogil:
    """The first 8 bytes as a big-endian number, zero padded; nothing from `end` on is read."""
    cdef char padded[8]
    if n >= 8:
        return get_be64(p)
    if n == 0:
        return 0
    if end - p >= 8:
        return get_be64(p) >> (64 - 8 * n) << (64 - 8 * n)
    memcpy(padded, b"\\0\\0\\0\\0\\0\\0\\0\\0", 8)
    memcpy(padded, p, n)
    return get_be64(padded)


cdef void string_zone(const int32_t* at, const char* p, size_t size, bint blanks,
                      const uint8_t* bits, int64_t rows, Buf* low, Buf* high) noexcept nogil:
    """`blanks`: trailing ones do not count."""
    cdef const char* value
    cdef const char* least = NULL
    cdef const char* most = NULL
    cdef size_t least_n = 0
    cdef size_t most_n = 0
    cdef size_t n
    cdef uint64_t prefix
    cdef uint64_t least_prefix = 0
    cdef uint64_t most_prefix = 0
    cdef int64_t i
    cdef bint seen = False
    for i in range(rows):
        if not valid(bits, i):
            continue
        value = p + at[i]
        n = at[i + 1] - at[i]
        while blanks and n and value[n - 1] == c' ':
            n -= 1
        prefix = prefix_of(value, n, p + size)
        if not seen or prefix < least_prefix or (
                prefix == least_prefix and key_compare(value, n, least, least_n) < 0):
            least, least_n, least_prefix = value, n, prefix
        if not seen or prefix > most_prefix or (
                prefix == most_prefix and key_compare(value, n, most, most_n) > 0):
            most, most_n, most_prefix = value, n, prefix
        seen = True
    if seen:
        string_bound(least, least_n, False, low)
        string_bound(most, most_n, True, high)


cdef void string_bound(const char* p, size_t n, bint up, Buf* out) noexcept nogil:
    """Appends the encoding of the string, cut if it is long; then upwards if `up`."""
    cdef KeyColumn column
    cdef Datum d
    cdef char cut[STRING_MAX]
    # char is encoded as text, so that a blank that the cut left or made at the end counts
    column.type = T_TEXT
    column.desc = 0
    column.nullable = 0
    column.typmod = -1
    datum_init(&d, T_TEXT)
    if n > STRING_MAX:
        memcpy(cut, p, STRING_MAX)
        p = cut
        n = key_successor(cut, STRING_MAX) if up else STRING_MAX
        if n == 0:
            return
    d.p = p
    d.len = <int32_t> n
    key_append(&column, &d, out)


cdef bint is_string(int type) noexcept nogil:
    return type == T_TEXT or type == T_VARCHAR or type == T_BPCHAR or type == T_BYTEA


def zone_map(int type_code, int typmod, uint32_t rows, validity, offsets, values):
    cdef View there = View(validity)
    cdef View at = View(offsets)
    cdef View data = View(values)
    cdef const uint8_t* bits = <const uint8_t*> there.p
    cdef int width = width_of(type_code)
    cdef KeyColumn column
    cdef Buf low, high
    if width == 0 and type_code != T_BOOL and not is_string(type_code):
        return b"", b""
    if bits != NULL and there.n < (<size_t> rows + 7) // 8:
        raise ValueError("the validity bitmap is too short")
    if is_string(type_code):
        if not offsets_fit(at, rows, data.n):
            raise ValueError("offsets do not fit the values")
    elif data.n < ((<size_t> rows + 7) // 8 if width == 0 else <size_t> rows * width):
        raise ValueError("the values are too short")
    column.type = <uint8_t> type_code
    column.desc = 0
    column.nullable = 0
    column.typmod = typmod
    column.scale = <int16_t> numeric_typmod_scale(typmod) if type_code == T_NUMERIC else 0
    buf_init(&low)
    buf_init(&high)
    try:
        with nogil:
            if width:
                fixed_zone(&column, data.p, bits, rows, &low, &high)
            elif type_code == T_BOOL:
                bool_zone(&column, <const uint8_t*> data.p, bits, rows, &low, &high)
            else:
                string_zone(<const int32_t*> at.p, data.p, data.n, type_code == T_BPCHAR, bits,
                            rows, &low, &high)
        return buf_bytes(&low), buf_bytes(&high)
    finally:
        buf_free(&low)
        buf_free(&high)


ctypedef struct Scan:
    uint64_t tombstones
    uint64_t min_ts
    uint64_t max_ts
    bint versions
    int64_t disorder


cdef void scan(uint32_t rows, const int32_t* at, const char* keys, const uint64_t* ts,
               const uint8_t* deleted, bint follows, const char* before, size_t before_n,
               uint64_t before_ts, Scan* out) noexcept nogil:
    """`follows`: there is a row before, with the key `before`."""
    cdef uint32_t i
    cdef size_t n
    cdef int order
    for i in range(rows):
        n = at[i + 1] - at[i]
        if follows:
            order = key_compare(before, before_n, keys + at[i], n)
            if order == 0:
                out.versions = True
            if out.disorder < 0 and (order > 0 or (order == 0 and before_ts <= ts[i])):
                out.disorder = i
        follows = True
        before = keys + at[i]
        before_n = n
        before_ts = ts[i]
        out.tombstones += (deleted[i >> 3] >> (i & 7)) & 1
        out.min_ts = min(out.min_ts, before_ts)
        out.max_ts = max(out.max_ts, before_ts)


def scan_rows(uint32_t rows, offsets, keys, timestamps, deleted, bytes last_key, uint64_t last_ts):
    cdef View at = View(offsets)
    cdef View data = View(keys)
    cdef View ts = View(timestamps)
    cdef View gone = View(deleted)
    cdef const char* before = NULL
    cdef size_t before_n = 0
    cdef bint follows = last_key is not None
    cdef Scan found
    if not offsets_fit(at, rows, data.n):
        raise ValueError("offsets do not fit the values")
    if ts.n < 8 * <size_t> rows or gone.n < (<size_t> rows + 7) // 8:
        raise ValueError("the values are too short")
    if follows:
        before = PyBytes_AS_STRING(last_key)
        before_n = PyBytes_GET_SIZE(last_key)
    found.tombstones = 0
    found.min_ts = <uint64_t> -1 if rows else 0
    found.max_ts = 0
    found.versions = False
    found.disorder = -1
    with nogil:
        scan(rows, <const int32_t*> at.p, data.p, <const uint64_t*> ts.p,
             <const uint8_t*> gone.p, follows, before, before_n, last_ts, &found)
    return found.tombstones, found.min_ts, found.max_ts, bool(found.versions), found.disorder
