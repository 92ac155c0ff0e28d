"""Calendar arithmetic and the text of dates, times, timestamps and intervals.

Output is DateStyle ISO and IntervalStyle postgres. Day numbers are proleptic Gregorian (the
algorithm is Howard Hinnant's "chrono-compatible low-level date algorithms"); year 0 is 1 BC.
"""

from libc.stdio cimport snprintf
from shardb._core.buffer cimport buf_put

cdef enum:
    US_PER_SECOND = 1000000

cdef int64_t US_PER_DAY = 86400000000LL
cdef int64_t TS_EPOCH = 946684800000000LL  # 2000-01-01, from which PostgreSQL counts and rounds


cdef int64_t days_from_civil(int64_t year, int month, int day) noexcept nogil:
    cdef int64_t y = year - (1 if month <= 2 else 0)
    cdef int64_t era = floor_div(y, 400)
    cdef int64_t yoe = y - era * 400
    cdef int64_t doy = (153 * (month + (-3 if month > 2 else 9)) + 2) / 5 + day - 1
    cdef int64_t doe = yoe * 365 + yoe / 4 - yoe / 100 + doy
    return era * 146097 + doe - 719468


cdef void civil_from_days(int64_t days, int64_t* year, int* month, int* day) noexcept nogil:
    cdef int64_t z = days + 719468
    cdef int64_t era = floor_div(z, 146097)
    cdef int64_t doe = z - era * 146097
    cdef int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365
    cdef int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100)
    cdef int64_t mp = (5 * doy + 2) / 153
    day[0] = <int>(doy - (153 * mp + 2) / 5 + 1)
    month[0] = <int>(mp + 3 if mp < 10 else mp - 9)
    year[0] = yoe + era * 400 + (1 if month[0] <= 2 else 0)


cdef inline int put2(char* p, int v) noexcept nogil:
    p[0] = <char>(c'0' + v / 10)
    p[1] = <char>(c'0' + v % 10)
    return 2


cdef int put_date(char* p, int64_t days, bint* bc) noexcept nogil:
    cdef int64_t year
    cdef int month, day, n
    civil_from_days(days, &year, &month, &day)
    bc[0] = year <= 0
    if bc[0]:
        year = 1 - year
    if year < 10000:
        put2(p, <int>(year / 100))
        put2(p + 2, <int>(year % 100))
        n = 4
    else:
        n = snprintf(p, 24, b"%lld", <long long>year)
    p[n] = c'-'
    put2(p + n + 1, month)
    p[n + 3] = c'-'
    put2(p + n + 4, day)
    return n + 6


cdef int put_fraction(char* p, int us) noexcept nogil:
    cdef int i, n
    if us == 0:
        return 0
    p[0] = c'.'
    for i in range(6, 0, -1):
        p[i] = <char>(c'0' + us % 10)
        us = us / 10
    n = 7
    while p[n - 1] == c'0':
        n -= 1
    return n


cdef int put_time(char* p, int64_t us) noexcept nogil:
    cdef int seconds = <int>(us / US_PER_SECOND)
    put2(p, seconds / 3600)
    p[2] = c':'
    put2(p + 3, seconds / 60 % 60)
    p[5] = c':'
    put2(p + 6, seconds % 60)
    return 8 + put_fraction(p + 8, <int>(us % US_PER_SECOND))


cdef void date_to_text(int64_t days, Buf* out) noexcept nogil:
    cdef char text[40]
    cdef bint bc
    cdef int n
    if days == DATE_INFINITY:
        buf_put(out, b"infinity", 8)
        return
    if days == DATE_MINUS_INFINITY or days == -DATE_INFINITY:
        buf_put(out, b"-infinity", 9)
        return
    n = put_date(text, days, &bc)
    buf_put(out, text, n)
    if bc:
        buf_put(out, b" BC", 3)


cdef void time_to_text(int64_t us, Buf* out) noexcept nogil:
    cdef char text[24]
    buf_put(out, text, put_time(text, us))


cdef void timestamp_to_text(int64_t us, bint zone, Buf* out) noexcept nogil:
    cdef char text[64]
    cdef bint bc
    cdef int n
    cdef int64_t days, rest
    if us == TS_INFINITY:
        buf_put(out, b"infinity", 8)
        return
    if us == TS_MINUS_INFINITY or us == -TS_INFINITY:
        buf_put(out, b"-infinity", 9)
        return
    # Not `us - days * US_PER_DAY`: of a damaged key's timestamp that may not fit.
    days = floor_div(us, US_PER_DAY)
    rest = us % US_PER_DAY
    if rest < 0:
        rest += US_PER_DAY
    n = put_date(text, days, &bc)
    text[n] = c' '
    n += 1
    n += put_time(text + n, rest)
    buf_put(out, text, n)
    if zone:
        buf_put(out, b"+00", 3)
    if bc:
        buf_put(out, b" BC", 3)


cdef void interval_to_text(int32_t months, int32_t days, int64_t us, Buf* out) noexcept nogil:
    cdef char text[128]
    cdef int n = 0
    cdef bint any_part = False
    cdef bint before_negative = False
    cdef int value, k
    cdef unsigned long long magnitude, seconds
    for k in range(3):
        value = months / 12 if k == 0 else (months % 12 if k == 1 else days)
        if value == 0:
            continue
        n += snprintf(text + n, 32, b"%s%s%d %s%s", b" " if any_part else b"",
                      b"+" if before_negative and value > 0 else b"", value,
                      b"year" if k == 0 else (b"mon" if k == 1 else b"day"),
                      b"" if value == 1 else b"s")
        before_negative = value < 0
        any_part = True
    if us != 0 or not any_part:
        magnitude = <unsigned long long>us
        if us < 0:
            magnitude = 0 - magnitude
        seconds = magnitude / US_PER_SECOND
        n += snprintf(text + n, 48, b"%s%s%02llu:%02llu:%02llu", b" " if any_part else b"",
                      b"-" if us < 0 else (b"+" if before_negative else b""), seconds / 3600,
                      seconds / 60 % 60, seconds % 60)
        n += put_fraction(text + n, <int>(magnitude % US_PER_SECOND))
    buf_put(out, text, n)


cdef int64_t round_fraction(int64_t us, int typmod) noexcept nogil:
    cdef int64_t unit = 1
    cdef int i
    if typmod < 0 or typmod > 5:
        return us
    for i in range(6 - typmod):
        unit = unit * 10
    if us >= 0:
        return (us + unit / 2) / unit * unit
    return -((-us + unit / 2) / unit * unit)


cdef int64_t round_timestamp(int64_t us, int typmod) noexcept nogil:
    if us == TS_INFINITY or us == TS_MINUS_INFINITY or us < TS_MINUS_INFINITY + TS_EPOCH:
        return us
    return round_fraction(us - TS_EPOCH, typmod) + TS_EPOCH
