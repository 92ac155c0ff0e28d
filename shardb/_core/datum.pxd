# One SQL value in C, the type codes, and their text and binary forms.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    typedef __int128 shardb_i128;
    static inline shardb_i128 shardb_join128(uint64_t high, uint64_t low) {
        return (shardb_i128)((unsigned __int128)high << 64 | low);
    }
    """
    ctypedef long long i128 "shardb_i128"
    # The number with these halves.
    i128 join128 "shardb_join128"(uint64_t high, uint64_t low) noexcept nogil

# Cython believes i128 to be 64 bits: cast the other operand when it is int64_t or uint64_t
# (`n * <i128>factor`), never let an i128 become a Python object, and build constants over 64 bits
# by arithmetic.

cdef enum:
    T_UNKNOWN = 0
    T_BOOL = 1
    T_INT2 = 2
    T_INT4 = 3
    T_INT8 = 4
    T_FLOAT4 = 5
    T_FLOAT8 = 6
    T_NUMERIC = 7
    T_TEXT = 8
    T_VARCHAR = 9
    T_BPCHAR = 10
    T_BYTEA = 11
    T_DATE = 12
    T_TIME = 13
    T_TIMESTAMP = 14
    T_TIMESTAMPTZ = 15
    T_INTERVAL = 16
    T_UUID = 17
    T_JSON = 18
    T_JSONB = 19

# A value. Which member holds it:
#   i   BOOL (0/1), INT2/4/8, DATE (days since 1970-01-01), TIME (us since midnight),
#       TIMESTAMP[TZ] (us since 1970-01-01 UTC), INTERVAL (us part)
#   f   FLOAT4, FLOAT8
#   n   NUMERIC, unscaled, with `scale` digits after the point
#   p   TEXT, VARCHAR, BPCHAR, BYTEA, JSON, JSONB, UNKNOWN (`len` bytes, not owned); UUID (16 bytes)
#   months, days   INTERVAL
ctypedef struct Datum:
    uint8_t type
    uint8_t null
    int16_t scale
    int32_t len
    int32_t months
    int32_t days
    int64_t i
    double f
    i128 n
    const char* p

from shardb._core.buffer cimport Arena, Buf, raise_core

# All functions return 0, or -1 with the thread's error set (see buffer.pxd: raise_core()).
# NULLs are the caller's business except in datum_cast. Strings that a Datum gets point into the
# source where possible, else into the arena.

# PostgreSQL's text form, appended without any length. NUMERIC with typmod -1 drops trailing zeros.
cdef int datum_to_text(const Datum* d, int typmod, Buf* out) noexcept nogil
# PostgreSQL's binary form, appended without its length word.
cdef int datum_to_binary(const Datum* d, int typmod, Buf* out) noexcept nogil
# From PostgreSQL's text form. A NUMERIC with typmod -1 keeps the scale that was written.
cdef int datum_from_text(int type, int typmod, const char* s, Py_ssize_t n, Datum* out,
                         Arena* arena) noexcept nogil
cdef int datum_from_binary(int type, int typmod, const char* s, Py_ssize_t n, Datum* out,
                           Arena* arena) noexcept nogil
# SQL order of two non-NULL values of one type (integers of any width, numerics of any scale):
# text by bytes, bpchar without trailing blanks, NaN last.
cdef int datum_cmp(const Datum* a, const Datum* b) noexcept nogil
# Holds a value to `typmod` in place: numeric rounding (22003), varchar/bpchar length (22001 unless
# `explicit_cast`, which cuts), bpchar padding, fractions of seconds.
cdef int datum_apply_typmod(Datum* d, int typmod, bint explicit_cast, Arena* arena) noexcept nogil
from shardb._core.scalars cimport type_name, utf8_check
# Microseconds that an interval compares as (a month is 30 days).
cdef i128 interval_total(int32_t months, int32_t days, int64_t us) noexcept nogil

cdef inline bint type_is_variable(int type) noexcept nogil:
    return (T_TEXT <= type <= T_BYTEA) or type == T_JSON or type == T_JSONB or type == T_UNKNOWN

cdef inline bint type_is_text(int type) noexcept nogil:
    return type == T_TEXT or type == T_VARCHAR or type == T_BPCHAR or type == T_UNKNOWN

cdef inline void datum_init(Datum* d, int type) noexcept nogil:
    d.type = <uint8_t>type
    d.null = 0
    d.scale = 0
    d.len = 0
    d.months = 0
    d.days = 0
    d.i = 0
    d.f = 0
    d.n = 0
    d.p = NULL
