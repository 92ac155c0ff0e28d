"""Arithmetic on SQL values with PostgreSQL's results, result scales and errors (see the .pxd).

Sources: numeric.c (select_div_scale), int.c, float.c and timestamp.c of PostgreSQL for the rules.
"""

from libc.math cimport fabs, isinf, isnan, rint
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t

from shardb._core.buffer cimport core_fail
from shardb._core.datetimes cimport (
    DATE_INFINITY, DATE_MINUS_INFINITY, civil_from_days, days_from_civil, floor_div,
)
from shardb._core.datum cimport (
    T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_INTERVAL, T_NUMERIC, T_TIME, T_TIMESTAMP,
    T_TIMESTAMPTZ,
)

cdef extern from "wide.h":
    enum:
        WIDE_OK
        WIDE_OVERFLOW
        WIDE_ZERO
    int wide_rescale(i128 n, int source, int to, i128* out, int* exact) noexcept nogil
    int wide_compare(i128 a, int sa, i128 b, int sb) noexcept nogil
    int wide_add(i128 a, int sa, i128 b, int sb, i128* out, int* scale) noexcept nogil
    int wide_mul(i128 a, int sa, i128 b, int sb, i128* out, int* scale) noexcept nogil
    int wide_div(i128 a, int sa, i128 b, int sb, i128* out, int* scale) noexcept nogil
    int wide_mod(i128 a, int sa, i128 b, int sb, i128* out, int* scale) noexcept nogil

cdef extern from *:
    """
    static inline int shardb_add64(int64_t a, int64_t b, int64_t* r) {
        return __builtin_add_overflow(a, b, r);
    }
    static inline int shardb_sub64(int64_t a, int64_t b, int64_t* r) {
        return __builtin_sub_overflow(a, b, r);
    }
    static inline int shardb_mul64(int64_t a, int64_t b, int64_t* r) {
        return __builtin_mul_overflow(a, b, r);
    }
    """
    int add64 "shardb_add64"(int64_t a, int64_t b, int64_t* r) noexcept nogil
    int sub64 "shardb_sub64"(int64_t a, int64_t b, int64_t* r) noexcept nogil
    int mul64 "shardb_mul64"(int64_t a, int64_t b, int64_t* r) noexcept nogil

cdef int64_t DAY_US = 86400000000
# PostgreSQL's timestamps begin in 4713 BC; counted from 1970 they end in 294247 AD, with int64.
cdef int64_t TIMESTAMP_LOW_US = -210866803200000000
cdef int64_t TIMESTAMP_END_US = INT64_MAX
cdef int64_t DATE_LOW = -2440588
cdef int64_t DATE_END = 2145042541 + 10957


cdef int out_of_range(int type) noexcept nogil:
    if type == T_INT2:
        return core_fail(b"22003", b"smallint out of range")
    if type == T_INT4:
        return core_fail(b"22003", b"integer out of range")
    return core_fail(b"22003", b"bigint out of range")


cdef int zero_divisor() noexcept nogil:
    return core_fail(b"22012", b"division by zero")


cdef int int_arith(int op, int type, int64_t a, int64_t b, Datum* out) noexcept nogil:
    cdef int64_t r = 0
    if op == ARITH_ADD:
        if add64(a, b, &r):
            return out_of_range(type)
    elif op == ARITH_SUB:
        if sub64(a, b, &r):
            return out_of_range(type)
    elif op == ARITH_MUL:
        if mul64(a, b, &r):
            return out_of_range(type)
    elif op == ARITH_NEG:
        if sub64(0, a, &r):
            return out_of_range(type)
    elif op == ARITH_ABS:
        r = a
        if a < 0 and sub64(0, a, &r):
            return out_of_range(type)
    elif b == 0:
        return zero_divisor()
    elif op == ARITH_DIV:
        if b == -1:
            if sub64(0, a, &r):
                return out_of_range(type)
        else:
            r = a // b
    else:
        r = 0 if b == -1 else a % b
    if type == T_INT4:
        if r != <int32_t>r:
            return out_of_range(type)
    elif type == T_INT2:
        if r < -32768 or r > 32767:
            return out_of_range(type)
    out.type = <unsigned char>type
    out.null = 0
    out.i = r
    return 0


cdef double number_as_double(const Datum* a) noexcept nogil:
    cdef double power = 1.0
    cdef int k
    if a.type == T_FLOAT8 or a.type == T_FLOAT4:
        return a.f
    if a.type == T_NUMERIC:
        for k in range(a.scale):
            power *= 10.0
        return <double>a.n / power
    return <double>a.i


cdef int float_arith(int op, int type, const Datum* a, const Datum* b, Datum* out) noexcept nogil:
    cdef double x = number_as_double(a)
    cdef double y = 0.0
    cdef double r = 0.0
    if op == ARITH_NEG:
        r = -x
    elif op == ARITH_ABS:
        r = fabs(x)
    else:
        y = number_as_double(b)
        if op == ARITH_ADD:
            r = x + y
        elif op == ARITH_SUB:
            r = x - y
        elif op == ARITH_MUL:
            r = x * y
        else:
            if y == 0.0 and not isnan(x):
                return zero_divisor()
            r = x / y
        if type == T_FLOAT4:
            r = <double><float>r
        if isinf(r) and not isinf(x) and not isinf(y):
            return core_fail(b"22003", b"value out of range: overflow")
        if r == 0.0 and x != 0.0:
            if (op == ARITH_MUL and y != 0.0) or (op == ARITH_DIV and not isinf(y)):
                return core_fail(b"22003", b"value out of range: underflow")
    out.type = <unsigned char>type
    out.null = 0
    out.f = r
    return 0


cdef inline void as_exact(const Datum* a, i128* n, int* scale) noexcept nogil:
    if a.type == T_NUMERIC:
        n[0] = a.n
        scale[0] = a.scale
    else:
        n[0] = a.i
        scale[0] = 0


cdef int numeric_arith(int op, const Datum* a, const Datum* b, Datum* out) noexcept nogil:
    cdef i128 x
    cdef i128 y = 0
    cdef i128 r = 0
    cdef int sx
    cdef int sy = 0
    cdef int s = 0
    cdef int status = 0
    as_exact(a, &x, &sx)
    if b != NULL:
        as_exact(b, &y, &sy)
    if op == ARITH_ADD:
        status = wide_add(x, sx, y, sy, &r, &s)
    elif op == ARITH_SUB:
        status = wide_add(x, sx, -y, sy, &r, &s)
    elif op == ARITH_MUL:
        status = wide_mul(x, sx, y, sy, &r, &s)
    elif op == ARITH_DIV:
        status = wide_div(x, sx, y, sy, &r, &s)
    elif op == ARITH_MOD:
        status = wide_mod(x, sx, y, sy, &r, &s)
    else:
        s = sx
        r = x
        if op == ARITH_NEG or x < 0:
            r = -x
    if status == WIDE_ZERO:
        return zero_divisor()
    if status != WIDE_OK:
        return core_fail(b"22003", b"value overflows numeric format")
    out.type = T_NUMERIC
    out.null = 0
    out.n = r
    out.scale = <short>s
    return 0


cdef int numeric_compare(const Datum* a, const Datum* b) noexcept nogil:
    cdef i128 x
    cdef i128 y
    cdef int sx
    cdef int sy
    as_exact(a, &x, &sx)
    as_exact(b, &y, &sy)
    return wide_compare(x, sx, y, sy)


cdef int numeric_accumulate(i128* n, int* scale, const Datum* b) noexcept nogil:
    cdef i128 y
    cdef int sy
    as_exact(b, &y, &sy)
    if wide_add(n[0], scale[0], y, sy, n, scale) != WIDE_OK:
        return core_fail(b"22003", b"value overflows numeric format")
    return 0


cdef int numeric_floor(i128 n, int scale, int to, i128* out, int* exact) noexcept nogil:
    cdef i128 back
    cdef int same
    if wide_rescale(n, scale, to, out, exact) != WIDE_OK:
        return -1
    if not exact[0]:
        # Rounded half away from zero: step down where that went up.
        if scale - to > 38:
            out[0] = -1 if n < 0 else 0
        elif wide_compare(out[0], to, n, scale) > 0:
            out[0] -= 1
    return 0


# --- dates and times

cdef int month_days(int64_t year, int month) noexcept nogil:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    if month == 4 or month == 6 or month == 9 or month == 11:
        return 30
    return 31


cdef int bad_timestamp() noexcept nogil:
    return core_fail(b"22008", b"timestamp out of range")


cdef int add_interval(int64_t us, const Datum* v, int sign, int64_t* out) noexcept nogil:
    """us plus or minus an interval: months (clamped to the month's end), then days, then time."""
    cdef int64_t days, rest, year, total, shift
    cdef int month, day, last
    if us == INT64_MAX or us == INT64_MIN:
        out[0] = us
        return 0
    days = floor_div(us, DAY_US)
    rest = us - days * DAY_US
    if v.months != 0:
        civil_from_days(days, &year, &month, &day)
        total = year * 12 + month - 1 + sign * <int64_t>v.months
        year = floor_div(total, 12)
        month = <int>(total - year * 12) + 1
        if year < -5000 or year > 300000:
            return bad_timestamp()
        last = month_days(year, month)
        days = days_from_civil(year, month, day if day < last else last)
    days += sign * <int64_t>v.days
    if mul64(days, DAY_US, &us) or add64(us, rest, &us) or mul64(v.i, sign, &shift):
        return bad_timestamp()
    if add64(us, shift, out):
        return bad_timestamp()
    if out[0] < TIMESTAMP_LOW_US or out[0] >= TIMESTAMP_END_US:
        return bad_timestamp()
    return 0


cdef inline bint is_int(int type) noexcept nogil:
    return type == T_INT2 or type == T_INT4 or type == T_INT8


cdef inline bint is_stamp(int type) noexcept nogil:
    return type == T_TIMESTAMP or type == T_TIMESTAMPTZ


cdef bint temporal_supported(int op, int type, int a, int b) noexcept nogil:
    if op == ARITH_NEG:
        return a == T_INTERVAL and type == T_INTERVAL
    if op == ARITH_MUL:
        return type == T_INTERVAL and (
            (a == T_INTERVAL and (is_int(b) or b == T_FLOAT8))
            or (b == T_INTERVAL and (is_int(a) or a == T_FLOAT8))
        )
    if op == ARITH_DIV:
        return type == T_INTERVAL and a == T_INTERVAL and (is_int(b) or b == T_FLOAT8)
    if op != ARITH_ADD and op != ARITH_SUB:
        return False
    if op == ARITH_ADD and (b == T_DATE or is_stamp(b) or b == T_TIME) and (
        a == T_INTERVAL or is_int(a)
    ):
        a, b = b, a
    if a == T_DATE and is_int(b):
        return type == T_DATE
    if a == T_DATE and b == T_DATE:
        return op == ARITH_SUB and is_int(type)
    if a == T_DATE and b == T_INTERVAL:
        return type == T_TIMESTAMP
    if is_stamp(a) and b == T_INTERVAL:
        return type == a
    if is_stamp(a) and a == b:
        return op == ARITH_SUB and type == T_INTERVAL
    if a == T_TIME and b == T_INTERVAL:
        return type == T_TIME
    if a == T_TIME and b == T_TIME:
        return op == ARITH_SUB and type == T_INTERVAL
    return a == T_INTERVAL and b == T_INTERVAL and type == T_INTERVAL


cdef int interval_make(int64_t months, int64_t days, int64_t us, Datum* out) noexcept nogil:
    if months != <int32_t>months or days != <int32_t>days:
        return core_fail(b"22008", b"interval out of range")
    out.months = <int32_t>months
    out.days = <int32_t>days
    out.i = us
    return 0


cdef int interval_scale(const Datum* v, double by, Datum* out) noexcept nogil:
    """v * by as interval_mul: fractions of months spill into days, of days into time."""
    cdef double months = v.months * by
    cdef double days = v.days * by
    cdef double whole_months, whole_days, spill_days, seconds, us
    # Not `>`: 0 times infinity is NaN.
    if not (fabs(months) <= 2147483647.0 and fabs(days) <= 2147483647.0):
        return core_fail(b"22008", b"interval out of range")
    whole_months = <double><int64_t>months
    whole_days = <double><int64_t>days
    # Rounded to microseconds at each step, as PostgreSQL does, so that 0.1 month is 3 days.
    spill_days = rint((months - whole_months) * 30.0 * 1e6) / 1e6
    seconds = (days - whole_days + spill_days - <double><int64_t>spill_days) * 86400.0
    seconds = rint(seconds * 1e6) / 1e6
    whole_days += <double><int64_t>spill_days
    if fabs(seconds) >= 86400.0:
        whole_days += <double><int64_t>(seconds / 86400.0)
        seconds -= <double><int64_t>(seconds / 86400.0) * 86400.0
    us = rint(v.i * by + seconds * 1e6)
    if not fabs(us) < 9.2233720368547e18:
        return core_fail(b"22008", b"interval out of range")
    return interval_make(<int64_t>whole_months, <int64_t>whole_days, <int64_t>us, out)


cdef int temporal_arith(int op, int type, const Datum* a, const Datum* b, Datum* out) noexcept nogil:
    cdef const Datum* swap
    cdef int sign = -1 if op == ARITH_SUB else 1
    cdef int64_t r
    cdef int64_t day
    cdef double by
    out.type = <unsigned char>type
    out.null = 0
    if op == ARITH_NEG:
        if sub64(0, a.i, &r):
            return core_fail(b"22008", b"interval out of range")
        return interval_make(-<int64_t>a.months, -<int64_t>a.days, r, out)
    if op == ARITH_MUL or op == ARITH_DIV:
        if b.type == T_INTERVAL:
            swap = a
            a = b
            b = swap
        by = number_as_double(b)
        if op == ARITH_DIV:
            if by == 0.0:
                return zero_divisor()
            by = 1.0 / by
        return interval_scale(a, by, out)
    if a.type == T_INTERVAL or is_int(a.type):
        if b.type != T_INTERVAL:
            swap = a
            a = b
            b = swap
    if a.type == T_DATE:
        if b.type == T_INTERVAL:
            if a.i == DATE_INFINITY or a.i == DATE_MINUS_INFINITY:
                out.i = INT64_MAX if a.i > 0 else INT64_MIN
                return 0
            if mul64(a.i, DAY_US, &r):
                return bad_timestamp()
            return add_interval(r, b, sign, &out.i)
        if b.type == T_DATE:
            if (
                a.i == DATE_INFINITY or a.i == DATE_MINUS_INFINITY
                or b.i == DATE_INFINITY or b.i == DATE_MINUS_INFINITY
            ):
                return core_fail(b"22008", b"cannot subtract infinite dates")
            return int_arith(ARITH_SUB, type, a.i, b.i, out)
        if a.i == DATE_INFINITY or a.i == DATE_MINUS_INFINITY:
            out.i = a.i
            return 0
        r = a.i + sign * b.i if b.i == <int32_t>b.i else DATE_END
        if r < DATE_LOW or r >= DATE_END:
            return core_fail(b"22008", b"date out of range")
        out.i = r
        return 0
    if is_stamp(a.type):
        if b.type == T_INTERVAL:
            return add_interval(a.i, b, sign, &out.i)
        if (
            a.i == INT64_MAX or a.i == INT64_MIN or b.i == INT64_MAX or b.i == INT64_MIN
            or sub64(a.i, b.i, &r)
        ):
            return core_fail(b"22008", b"cannot subtract infinite timestamps")
        day = r // DAY_US
        return interval_make(0, day, r - day * DAY_US, out)
    if a.type == T_TIME:
        if b.type == T_INTERVAL:
            r = (a.i + sign * (b.i % DAY_US)) % DAY_US
            out.i = r + DAY_US if r < 0 else r
            return 0
        return interval_make(0, 0, a.i - b.i, out)
    if op == ARITH_ADD:
        if add64(a.i, b.i, &r):
            return core_fail(b"22008", b"interval out of range")
    elif sub64(a.i, b.i, &r):
        return core_fail(b"22008", b"interval out of range")
    return interval_make(<int64_t>a.months + sign * <int64_t>b.months,
                         <int64_t>a.days + sign * <int64_t>b.days, r, out)
