# Dates, times, timestamps and intervals: calendar arithmetic, PostgreSQL's ISO text.
# Dates are days and timestamps microseconds since 1970-01-01; the only time zone is UTC.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from shardb._core.buffer cimport Buf

cdef enum:
    DATE_INFINITY = 2147483647
    DATE_MINUS_INFINITY = -2147483648

cdef extern from *:
    """
    #define SHARDB_TS_INFINITY INT64_MAX
    #define SHARDB_TS_MINUS_INFINITY INT64_MIN
    """
    const int64_t TS_INFINITY "SHARDB_TS_INFINITY"
    const int64_t TS_MINUS_INFINITY "SHARDB_TS_MINUS_INFINITY"

cdef inline int64_t floor_div(int64_t a, int64_t b) noexcept nogil:
    return a / b - (1 if a % b < 0 else 0)

cdef int64_t days_from_civil(int64_t year, int month, int day) noexcept nogil
cdef void civil_from_days(int64_t days, int64_t* year, int* month, int* day) noexcept nogil
cdef void date_to_text(int64_t days, Buf* out) noexcept nogil
cdef void time_to_text(int64_t us, Buf* out) noexcept nogil
cdef void timestamp_to_text(int64_t us, bint zone, Buf* out) noexcept nogil
cdef void interval_to_text(int32_t months, int32_t days, int64_t us, Buf* out) noexcept nogil
# Rounds to `typmod` digits of a second, if 0..5.
cdef int64_t round_fraction(int64_t us, int typmod) noexcept nogil
# The same for timestamps, counted from 2000-01-01 as PostgreSQL does.
cdef int64_t round_timestamp(int64_t us, int typmod) noexcept nogil
