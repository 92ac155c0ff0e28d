"""SQL values in C: their text and binary forms, their order and their type modifiers.

Python callers get only what tests and slow paths need (`text_to_text`, `text_to_binary`,
`binary_to_text`, `compare_text`); compiled code uses the C functions of the .pxd.
"""

from libc.math cimport isnan
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from shardb._core.buffer cimport (
    arena_alloc, arena_free, arena_init, buf_be16, buf_be32, buf_be64, buf_bytes, buf_free,
    buf_init, buf_put, buf_reserve, buf_u8, core_fail, core_fail_value, get_be16, get_be32,
    get_be64,
)
from shardb._core.dateparse cimport date_from_text, time_from_text, timestamp_from_text
from shardb._core.datetimes cimport (
    DATE_INFINITY, DATE_MINUS_INFINITY, TS_INFINITY, TS_MINUS_INFINITY, date_to_text,
    interval_to_text, round_fraction, round_timestamp, time_to_text, timestamp_to_text,
)
from shardb._core.intervals cimport interval_from_text
from shardb._core.jsontext cimport json_check, jsonb_normalize
from shardb._core.scalars cimport (
    bool_from_text, bytea_from_text, fail_utf8, float_from_text, float_text, int_from_text,
    put_int, put_uuid, uuid_from_text,
)
from shardb._core.numeric cimport (
    numeric_apply_typmod, numeric_cmp, numeric_from_binary, numeric_from_text, numeric_to_binary,
    numeric_to_text,
)

cdef int64_t TS_EPOCH_SHIFT = 946684800000000LL  # 2000-01-01 in us since 1970-01-01
cdef int DATE_EPOCH_SHIFT = 10957
cdef int64_t US_PER_DAY = 86400000000LL
cdef const char* HEX = b"0123456789abcdef"
cdef int64_t INT64_LEAST = <int64_t>(1ULL << 63)
cdef int64_t INT64_MOST = 9223372036854775807LL


cdef int datum_to_text(const Datum* d, int typmod, Buf* out) noexcept nogil:
    cdef char text[64]
    cdef int i
    cdef int type = d.type
    if T_INT2 <= type <= T_INT8:
        buf_put(out, text, put_int(d.i, text))
    elif type_is_text(type) or type == T_JSON or type == T_JSONB:
        buf_put(out, d.p, d.len)
    elif type == T_NUMERIC:
        numeric_to_text(d.n, d.scale, typmod < 4, out)
    elif type == T_BOOL:
        buf_u8(out, c't' if d.i else c'f')
    elif type == T_FLOAT4 or type == T_FLOAT8:
        buf_put(out, text, float_text(d.f, type == T_FLOAT4, text))
    elif type == T_DATE:
        date_to_text(d.i, out)
    elif type == T_TIME:
        time_to_text(d.i, out)
    elif type == T_TIMESTAMP or type == T_TIMESTAMPTZ:
        timestamp_to_text(d.i, type == T_TIMESTAMPTZ, out)
    elif type == T_INTERVAL:
        interval_to_text(d.months, d.days, d.i, out)
    elif type == T_UUID:
        put_uuid(d.p, out)
    elif type == T_BYTEA:
        if buf_reserve(out, 2 + 2 * <size_t>d.len) == 0:
            out.data[out.len] = c'\\'
            out.data[out.len + 1] = c'x'
            out.len += 2
            for i in range(d.len):
                out.data[out.len] = HEX[(<uint8_t>d.p[i]) >> 4]
                out.data[out.len + 1] = HEX[d.p[i] & 15]
                out.len += 2
    else:
        return core_fail(b"XX000", b"a value of an unknown type")
    return 0


cdef int datum_to_binary(const Datum* d, int typmod, Buf* out) noexcept nogil:
    cdef int type = d.type
    cdef uint64_t bits64
    cdef uint32_t bits32
    cdef float f
    if type == T_INT4:
        buf_be32(out, <uint32_t><int32_t>d.i)
    elif type == T_INT8 or type == T_TIME:
        buf_be64(out, <uint64_t>d.i)
    elif type == T_INT2:
        buf_be16(out, <uint16_t><int16_t>d.i)
    elif type == T_BOOL:
        buf_u8(out, 1 if d.i else 0)
    elif type == T_FLOAT8:
        memcpy(&bits64, &d.f, 8)
        buf_be64(out, bits64)
    elif type == T_FLOAT4:
        f = <float>d.f
        memcpy(&bits32, &f, 4)
        buf_be32(out, bits32)
    elif type == T_NUMERIC:
        numeric_to_binary(d.n, d.scale, typmod < 4, out)
    elif type == T_JSONB:
        buf_u8(out, 1)
        buf_put(out, d.p, d.len)
    elif type_is_variable(type):
        buf_put(out, d.p, d.len)
    elif type == T_UUID:
        buf_put(out, d.p, 16)
    elif type == T_DATE:
        if d.i == DATE_INFINITY:
            buf_be32(out, 0x7FFFFFFF)
        elif d.i == DATE_MINUS_INFINITY or d.i == -DATE_INFINITY:
            buf_be32(out, 0x80000000U)
        else:
            buf_be32(out, <uint32_t><int32_t>(d.i - DATE_EPOCH_SHIFT))
    elif type == T_TIMESTAMP or type == T_TIMESTAMPTZ:
        if d.i == TS_INFINITY:
            buf_be64(out, <uint64_t>INT64_MOST)
        elif d.i == TS_MINUS_INFINITY or d.i == -TS_INFINITY:
            buf_be64(out, <uint64_t>INT64_LEAST)
        elif d.i < INT64_LEAST + TS_EPOCH_SHIFT:
            return core_fail(b"22008", b"timestamp out of range")
        else:
            buf_be64(out, <uint64_t>(d.i - TS_EPOCH_SHIFT))
    elif type == T_INTERVAL:
        buf_be64(out, <uint64_t>d.i)
        buf_be32(out, <uint32_t>d.days)
        buf_be32(out, <uint32_t>d.months)
    else:
        return core_fail(b"XX000", b"a value of an unknown type")
    return 0


# --- input

cdef int jsonb_into(const char* s, Py_ssize_t n, Datum* out, Arena* arena) noexcept nogil:
    cdef Buf text
    cdef char* p
    cdef int why
    buf_init(&text)
    why = jsonb_normalize(s, n, &text)
    if why == 0:
        p = arena_alloc(arena, text.len)
        if p == NULL or text.failed:
            why = core_fail(b"53200", b"out of memory")
        else:
            memcpy(p, text.data, text.len)
            out.p = p
            out.len = <int32_t>text.len
    buf_free(&text)
    return why


cdef int text_into(int type, int typmod, const char* s, Py_ssize_t n, Datum* out,
                   Arena* arena) noexcept nogil:
    cdef Py_ssize_t bad
    if n > 0x3FFFFFFF:
        return core_fail(b"54000", b"value is too long")
    bad = utf8_check(s, n)
    if bad >= 0:
        return fail_utf8(s, n, bad)
    out.p = s
    out.len = <int32_t>n
    if type == T_JSON:
        return json_check(s, n)
    if type == T_JSONB:
        return jsonb_into(s, n, out, arena)
    return datum_apply_typmod(out, typmod, False, arena)


cdef int datum_from_text(int type, int typmod, const char* s, Py_ssize_t n, Datum* out,
                         Arena* arena) noexcept nogil:
    cdef char* p
    cdef int size
    cdef int why = 0
    datum_init(out, type)
    if T_INT2 <= type <= T_INT8:
        return int_from_text(type, s, n, &out.i)
    if type_is_text(type) or type == T_JSON or type == T_JSONB:
        return text_into(type, typmod, s, n, out, arena)
    if type == T_NUMERIC:
        why = numeric_from_text(s, n, &out.n, &out.scale)
        return why if why or typmod < 4 else numeric_apply_typmod(&out.n, &out.scale, typmod)
    if type == T_FLOAT4 or type == T_FLOAT8:
        return float_from_text(type, s, n, &out.f)
    if type == T_BOOL:
        return bool_from_text(s, n, &out.i)
    if type == T_DATE:
        return date_from_text(s, n, &out.i)
    if type == T_TIME:
        why = time_from_text(s, n, &out.i)
    elif type == T_TIMESTAMP or type == T_TIMESTAMPTZ:
        why = timestamp_from_text(s, n, type == T_TIMESTAMPTZ, &out.i)
    elif type == T_INTERVAL:
        return interval_from_text(s, n, &out.months, &out.days, &out.i)
    elif type == T_UUID:
        p = arena_alloc(arena, 16)
        if p == NULL:
            return core_fail(b"53200", b"out of memory")
        out.p = p
        out.len = 16
        return uuid_from_text(s, n, p)
    elif type == T_BYTEA:
        p = arena_alloc(arena, n + 1)
        if p == NULL:
            return core_fail(b"53200", b"out of memory")
        size = bytea_from_text(s, n, p)
        if size < 0:
            return -1
        out.p = p
        out.len = size
        return 0
    else:
        return core_fail(b"XX000", b"a value of an unknown type")
    return why if why else datum_apply_typmod(out, typmod, False, arena)


cdef int fail_width(int type) noexcept nogil:
    cdef char text[120]
    snprintf(text, 120, b"incorrect binary data format for type %s", type_name(type))
    return core_fail(b"22P03", text)


cdef int datum_from_binary(int type, int typmod, const char* s, Py_ssize_t n, Datum* out,
                           Arena* arena) noexcept nogil:
    cdef uint64_t bits64
    cdef uint32_t bits32
    cdef float f
    cdef int why
    datum_init(out, type)
    if type == T_INT4:
        if n != 4:
            return fail_width(type)
        out.i = <int32_t>get_be32(s)
    elif type == T_INT8 or type == T_TIME:
        if n != 8:
            return fail_width(type)
        out.i = <int64_t>get_be64(s)
        if type == T_TIME:
            if out.i < 0 or out.i > US_PER_DAY:
                return core_fail(b"22008", b"time out of range")
            out.i = round_fraction(out.i, typmod)
    elif type == T_INT2:
        if n != 2:
            return fail_width(type)
        out.i = <int16_t>get_be16(s)
    elif type == T_JSONB:
        if n < 1 or s[0] != 1:
            return core_fail(b"22P03", b"unsupported jsonb version number")
        return text_into(type, typmod, s + 1, n - 1, out, arena)
    elif type == T_BYTEA:
        if n > 0x3FFFFFFF:
            return core_fail(b"54000", b"value is too long")
        out.p = s
        out.len = <int32_t>n
    elif type_is_variable(type):
        return text_into(type, typmod, s, n, out, arena)
    elif type == T_BOOL:
        if n != 1:
            return fail_width(type)
        out.i = 1 if s[0] else 0
    elif type == T_FLOAT8:
        if n != 8:
            return fail_width(type)
        bits64 = get_be64(s)
        memcpy(&out.f, &bits64, 8)
    elif type == T_FLOAT4:
        if n != 4:
            return fail_width(type)
        bits32 = get_be32(s)
        memcpy(&f, &bits32, 4)
        out.f = f
    elif type == T_NUMERIC:
        why = numeric_from_binary(s, n, &out.n, &out.scale)
        return why if why or typmod < 4 else numeric_apply_typmod(&out.n, &out.scale, typmod)
    elif type == T_UUID:
        if n != 16:
            return fail_width(type)
        out.p = s
        out.len = 16
    elif type == T_DATE:
        if n != 4:
            return fail_width(type)
        bits32 = get_be32(s)
        if bits32 == 0x7FFFFFFF:
            out.i = DATE_INFINITY
        elif bits32 == 0x80000000U:
            out.i = DATE_MINUS_INFINITY
        else:
            out.i = <int64_t><int32_t>bits32 + DATE_EPOCH_SHIFT
            if out.i > 2145031948LL + DATE_EPOCH_SHIFT or out.i < -2451507 + DATE_EPOCH_SHIFT:
                return core_fail(b"22008", b"date out of range")
    elif type == T_TIMESTAMP or type == T_TIMESTAMPTZ:
        if n != 8:
            return fail_width(type)
        out.i = <int64_t>get_be64(s)
        if out.i != TS_INFINITY and out.i != TS_MINUS_INFINITY:
            if out.i >= INT64_MOST - TS_EPOCH_SHIFT or out.i < -211813488000000000LL:
                return core_fail(b"22008", b"timestamp out of range")
            out.i = round_timestamp(out.i + TS_EPOCH_SHIFT, typmod)
    elif type == T_INTERVAL:
        if n != 16:
            return fail_width(type)
        out.i = <int64_t>get_be64(s)
        out.days = <int32_t>get_be32(s + 8)
        out.months = <int32_t>get_be32(s + 12)
    else:
        return core_fail(b"XX000", b"a value of an unknown type")
    return 0


# --- type modifiers

cdef int datum_apply_typmod(Datum* d, int typmod, bint explicit_cast, Arena* arena) noexcept nogil:
    cdef int limit, chars, cut, i
    cdef char* p
    cdef char text[100]
    if typmod < 0:
        return 0
    if d.type == T_NUMERIC:
        return numeric_apply_typmod(&d.n, &d.scale, typmod)
    if d.type == T_TIME:
        d.i = round_fraction(d.i, typmod)
        return 0
    if d.type == T_TIMESTAMP or d.type == T_TIMESTAMPTZ:
        d.i = round_timestamp(d.i, typmod)
        return 0
    if (d.type != T_VARCHAR and d.type != T_BPCHAR) or typmod < 5:
        return 0
    limit = typmod - 4
    if d.len <= limit and d.type == T_VARCHAR:
        return 0
    chars = 0
    cut = d.len
    for i in range(d.len):
        if (d.p[i] & 0xC0) != 0x80:
            if chars == limit:
                cut = i
                break
            chars += 1
    if cut < d.len:
        if not explicit_cast:
            for i in range(cut, d.len):
                if d.p[i] != c' ':
                    snprintf(text, 100, b"value too long for type %s(%d)", type_name(d.type), limit)
                    return core_fail(b"22001", text)
        d.len = cut
    elif d.type == T_BPCHAR and chars < limit:
        p = arena_alloc(arena, d.len + limit - chars)
        if p == NULL:
            return core_fail(b"53200", b"out of memory")
        memcpy(p, d.p, d.len)
        memset(p + d.len, c' ', limit - chars)
        d.p = p
        d.len += limit - chars
    return 0


# --- order

cdef i128 interval_total(int32_t months, int32_t days, int64_t us) noexcept nogil:
    return (<i128>months * 30 + <i128>days) * <i128>US_PER_DAY + <i128>us


cdef inline int bytes_cmp(const char* a, int a_len, const char* b, int b_len) noexcept nogil:
    cdef int least = a_len if a_len < b_len else b_len
    cdef int order = memcmp(a, b, least) if least else 0
    if order:
        return 1 if order > 0 else -1
    return (a_len > b_len) - (a_len < b_len)


cdef inline int unpadded(const Datum* d) noexcept nogil:
    cdef int n = d.len
    while n and d.p[n - 1] == c' ':
        n -= 1
    return n


cdef int datum_cmp(const Datum* a, const Datum* b) noexcept nogil:
    cdef int type = a.type
    cdef i128 x, y
    if type == T_BPCHAR:
        return bytes_cmp(a.p, unpadded(a), b.p, unpadded(b))
    if type_is_variable(type):
        return bytes_cmp(a.p, a.len, b.p, b.len)
    if type == T_FLOAT4 or type == T_FLOAT8:
        if isnan(a.f) or isnan(b.f):
            return <int>(isnan(a.f) != 0) - <int>(isnan(b.f) != 0)
        return (a.f > b.f) - (a.f < b.f)
    if type == T_NUMERIC:
        return numeric_cmp(a.n, a.scale, b.n, b.scale)
    if type == T_UUID:
        return bytes_cmp(a.p, 16, b.p, 16)
    if type == T_INTERVAL:
        x = interval_total(a.months, a.days, a.i)
        y = interval_total(b.months, b.days, b.i)
        return (x > y) - (x < y)
    return (a.i > b.i) - (a.i < b.i)


# --- for Python callers: tests and slow paths

def text_to_text(int code, int typmod, bytes text) -> bytes:
    """The canonical text of a value: input and output functions of its type in turn."""
    return convert(code, typmod, text, True, True)


def text_to_binary(int code, int typmod, bytes text) -> bytes:
    """The binary form of a value given as text."""
    return convert(code, typmod, text, True, False)


def binary_to_text(int code, int typmod, bytes data) -> bytes:
    """The text of a value given in binary form."""
    return convert(code, typmod, data, False, True)


cdef bytes convert(int code, int typmod, bytes data, bint text_in, bint text_out):
    cdef Arena arena
    cdef Buf out
    cdef Datum d
    cdef int why
    arena_init(&arena)
    buf_init(&out)
    try:
        if text_in:
            why = datum_from_text(code, typmod, data, len(data), &d, &arena)
        else:
            why = datum_from_binary(code, typmod, data, len(data), &d, &arena)
        if why == 0:
            why = datum_to_text(&d, typmod, &out) if text_out else datum_to_binary(&d, typmod, &out)
        if why:
            raise_core()
        return buf_bytes(&out)
    finally:
        buf_free(&out)
        arena_free(&arena)


def compare_text(int code, bytes left, bytes right) -> int:
    """-1, 0 or 1: the SQL order of two values given as text."""
    cdef Arena arena
    cdef Datum a, b
    arena_init(&arena)
    try:
        if (datum_from_text(code, -1, left, len(left), &a, &arena)
                or datum_from_text(code, -1, right, len(right), &b, &arena)):
            raise_core()
        return datum_cmp(&a, &b)
    finally:
        arena_free(&arena)
