# Exact decimals: a 128-bit unscaled integer and the digits after its point. At most 38 digits.

from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t
from shardb._core.buffer cimport Buf
from shardb._core.datum cimport i128

cdef extern from *:
    """
    #ifndef SHARDB_POW10
    #define SHARDB_POW10
    /* 10^k for 0 <= k <= 38 */
    static inline __int128 shardb_pow10(int k) {
        static const uint64_t small[20] = {1ULL,10ULL,100ULL,1000ULL,10000ULL,100000ULL,1000000ULL,
            10000000ULL,100000000ULL,1000000000ULL,10000000000ULL,100000000000ULL,1000000000000ULL,
            10000000000000ULL,100000000000000ULL,1000000000000000ULL,10000000000000000ULL,
            100000000000000000ULL,1000000000000000000ULL,10000000000000000000ULL};
        return k < 20 ? (__int128)small[k] : (__int128)small[19] * (__int128)small[k - 19];
    }
    #endif
    """
    i128 pow10_i128 "shardb_pow10"(int k) noexcept nogil

# |v| < 10^38
cdef inline bint numeric_fits(i128 v) noexcept nogil:
    cdef i128 bound = pow10_i128(38)
    return v < bound and v > -bound

cdef inline int numeric_typmod_scale(int typmod) noexcept nogil:
    return 16 if typmod < 4 else (typmod - 4) & 0xFFFF

cdef inline int numeric_typmod_precision(int typmod) noexcept nogil:
    return 38 if typmod < 4 else ((typmod - 4) >> 16) & 0xFFFF

# Changes the scale, rounding half away from zero. -1 (22003 set) if the value no longer fits.
cdef int numeric_rescale(i128* v, int scale, int to) noexcept nogil
# As assignment to numeric(p, s): rescales and checks the precision (22003). typmod -1 does nothing.
cdef int numeric_apply_typmod(i128* v, int16_t* scale, int typmod) noexcept nogil
# Drops trailing zeros after the point.
cdef void numeric_trim(i128* v, int16_t* scale) noexcept nogil
cdef int numeric_cmp(i128 a, int a_scale, i128 b, int b_scale) noexcept nogil
# Parses at the scale that was written (at most 38 digits in all, rounding the rest).
cdef int numeric_from_text(const char* s, Py_ssize_t n, i128* v, int16_t* scale) noexcept nogil
cdef void numeric_to_text(i128 v, int scale, bint trim, Buf* out) noexcept nogil
cdef int numeric_from_binary(const char* s, Py_ssize_t n, i128* v, int16_t* scale) noexcept nogil
# The value without the length word.
cdef void numeric_to_binary(i128 v, int scale, bint trim, Buf* out) noexcept nogil
cdef double numeric_to_double(i128 v, int scale) noexcept nogil
# As PostgreSQL: through `digits` (15 for float8, 6 for float4) significant digits.
cdef int numeric_from_double(double f, int digits, i128* v, int16_t* scale) noexcept nogil
# To int64, rounding half away from zero; -1 without an error message if out of range.
cdef int numeric_to_int64(i128 v, int scale, int64_t* out) noexcept nogil
