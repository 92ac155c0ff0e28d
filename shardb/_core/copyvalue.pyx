# cython: language_level=3
"""Values in their usual text form, read at once into what a column stores.

Only forms that need no thought are read here: short digits, ISO dates, ASCII strings that fit. All else
is left to `datum_from_text`, which also finds the words for what is wrong.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint32_t
from libc.string cimport memcpy, memset

from shardb._core.buffer cimport arena_alloc
from shardb._core.datum cimport (
    T_BOOL, T_BPCHAR, T_DATE, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_NUMERIC, T_TEXT, T_TIMESTAMP,
    T_TIMESTAMPTZ, T_VARCHAR, i128,
)
from shardb._core.numeric cimport numeric_typmod_precision, pow10_i128

cdef enum:
    DIGITS_MAX = 18            # any so many fit into 64 bits
    EXACT_DIGITS_MAX = 15      # any so many are exact as a double, and so is 10^22
    TEXT_MAX_BYTES = 0x3FFFFFFF

cdef extern from *:
    """
    static const int shardb_days_before[13] =
        {0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    static const int shardb_days_in[13] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    """
    const int days_before "shardb_days_before"[13]
    const int days_in "shardb_days_in"[13]


cdef bint plain_value(const ColumnLayout* column, const char* p, Py_ssize_t n, bint plain, Datum* out,
                      Arena* arena) noexcept nogil:
    cdef int type = column.type
    cdef bint read = False
    if type == T_NUMERIC:
        read = plain_numeric(column, p, n, out)
    elif type == T_INT4:
        read = plain_int(p, n, 9, &out.i)
    elif type == T_INT8:
        read = plain_int(p, n, DIGITS_MAX, &out.i)
    elif type == T_TEXT or type == T_VARCHAR or type == T_BPCHAR:
        read = plain and plain_text(column, p, n, out, arena)
    elif type == T_DATE:
        read = n == 10 and plain_date(p, &out.i)
    elif type == T_TIMESTAMP or type == T_TIMESTAMPTZ:
        read = n == 19 and plain_timestamp(p, &out.i)
    elif type == T_FLOAT8:
        read = plain_float(p, n, &out.f)
    elif type == T_INT2:
        read = plain_int(p, n, 4, &out.i)
    elif type == T_BOOL:
        read = n == 1 and (p[0] == c't' or p[0] == c'f')
        out.i = p[0] == c't' if read else 0
    if read:
        out.type = column.type
        out.null = 0
    return read


cdef inline int64_t digits(const char* p, Py_ssize_t n) noexcept nogil:
    """The number that n <= DIGITS_MAX digits write, or -1 if one is none."""
    cdef int64_t value = 0
    cdef Py_ssize_t i
    cdef uint32_t digit
    for i in range(n):
        digit = <uint32_t> p[i] - 48
        if digit > 9:
            return -1
        value = value * 10 + digit
    return value


cdef inline bint plain_int(const char* p, Py_ssize_t n, int width, int64_t* out) noexcept nogil:
    cdef bint negative = n > 0 and p[0] == c'-'
    cdef int64_t value
    if negative:
        p += 1
        n -= 1
    if not 0 < n <= width:
        return False
    value = digits(p, n)
    out[0] = -value if negative else value
    return value >= 0


cdef bint plain_decimal(const char* p, Py_ssize_t n, int width, int64_t* out, int* scale,
                        bint* negative) noexcept nogil:
    """Digits with a point among them, or none, and at most `width`; without their sign."""
    cdef Py_ssize_t i
    cdef int64_t value = 0
    cdef uint32_t digit
    cdef Py_ssize_t point = -1
    negative[0] = n > 0 and p[0] == c'-'
    if negative[0]:
        p += 1
        n -= 1
    if not 0 < n <= width:
        return False
    for i in range(n):
        digit = <uint32_t> p[i] - 48
        if digit > 9:
            if p[i] != c'.' or point >= 0:
                return False
            point = i
            continue
        value = value * 10 + digit
    if point == 0 or point == n - 1:
        return False
    scale[0] = 0 if point < 0 else <int> (n - 1 - point)
    out[0] = value
    return True


cdef bint plain_numeric(const ColumnLayout* column, const char* p, Py_ssize_t n,
                        Datum* out) noexcept nogil:
    cdef int64_t value = 0
    cdef int scale = 0
    cdef bint negative = False
    cdef i128 whole
    if not plain_decimal(p, n, DIGITS_MAX, &value, &scale, &negative):
        return False
    if scale > column.scale or column.scale - scale > 18:
        return False
    whole = <i128> value * pow10_i128(column.scale - scale)
    if whole >= pow10_i128(numeric_typmod_precision(column.typmod)):
        return False
    out.n = -whole if negative else whole
    out.scale = column.scale
    return True


cdef bint plain_float(const char* p, Py_ssize_t n, double* out) noexcept nogil:
    """Both numbers of the division are exact, so that its result is rounded only once."""
    cdef int64_t value = 0
    cdef int scale = 0
    cdef bint negative = False
    if not plain_decimal(p, n, EXACT_DIGITS_MAX, &value, &scale, &negative):
        return False
    out[0] = <double> value / <double> <int64_t> pow10_i128(scale)
    if negative:
        out[0] = -out[0]
    return True


cdef bint plain_date(const char* p, int64_t* out) noexcept nogil:
    """YYYY-MM-DD."""
    cdef int year, month, day, before
    cdef bint leap
    if p[4] != c'-' or p[7] != c'-':
        return False
    year = <int> digits(p, 4)
    month = <int> digits(p + 5, 2)
    day = <int> digits(p + 8, 2)
    if year < 1 or not 1 <= month <= 12 or day < 1:
        return False
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > days_in[month] and not (leap and month == 2 and day == 29):
        return False
    before = year - 1
    out[0] = (365 * before + before // 4 - before // 100 + before // 400 + days_before[month]
              + (leap and month > 2) + day - 719163)
    return True


cdef bint plain_timestamp(const char* p, int64_t* out) noexcept nogil:
    """YYYY-MM-DD HH:MM:SS, of UTC."""
    cdef int64_t hour, minute, second
    if p[10] != c' ' or p[13] != c':' or p[16] != c':' or not plain_date(p, out):
        return False
    hour = digits(p + 11, 2)
    minute = digits(p + 14, 2)
    second = digits(p + 17, 2)
    if not 0 <= hour <= 23 or not 0 <= minute <= 59 or not 0 <= second <= 59:
        return False
    out[0] = (((out[0] * 24 + hour) * 60 + minute) * 60 + second) * 1000000
    return True


cdef bint plain_text(const ColumnLayout* column, const char* p, Py_ssize_t n, Datum* out,
                     Arena* arena) noexcept nogil:
    cdef Py_ssize_t limit = column.typmod - 4 if column.typmod >= 5 else TEXT_MAX_BYTES
    cdef char* padded
    if column.type == T_TEXT:
        limit = TEXT_MAX_BYTES
    if n > limit:
        return False
    out.p = p
    out.len = <int32_t> n
    if column.type == T_BPCHAR and n < limit and column.typmod >= 5:
        padded = arena_alloc(arena, limit)
        if padded == NULL:
            return False
        memcpy(padded, p, n)
        memset(padded + n, c' ', limit - n)
        out.p = padded
        out.len = <int32_t> limit
    return True
