"""Exact decimals over 128-bit integers: text, binary, scale and comparison as PostgreSQL's numeric."""

from libc.math cimport isinf, isnan
from libc.stdint cimport uint8_t, uint16_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtod
from libc.string cimport memcpy, memmove

from shardb._core.buffer cimport (
    buf_be16, buf_put, core_detail, core_fail, core_fail_value, get_be16,
)

cdef extern from *:
    """typedef unsigned __int128 shardb_u128;"""
    ctypedef unsigned long long u128 "shardb_u128"


cdef inline u128 magnitude(i128 v) noexcept nogil:
    return <u128>0 - <u128>v if v < 0 else <u128>v


cdef int numeric_rescale(i128* v, int scale, int to) noexcept nogil:
    cdef i128 p, half, rest
    if to == scale:
        return 0
    if to > scale:
        if v[0] == 0:
            return 0
        if to - scale > 38:
            return core_fail(b"22003", b"value overflows numeric format")
        p = pow10_i128(38 - (to - scale))
        if v[0] >= p or v[0] <= -p:
            return core_fail(b"22003", b"value overflows numeric format")
        v[0] = v[0] * pow10_i128(to - scale)
        return 0
    if scale - to > 38:
        v[0] = 0
        return 0
    p = pow10_i128(scale - to)
    half = p / 2
    rest = v[0] % p
    v[0] = v[0] / p
    if rest >= half:
        v[0] += 1
    elif rest <= -half:
        v[0] -= 1
    return 0


cdef int numeric_apply_typmod(i128* v, int16_t* scale, int typmod) noexcept nogil:
    cdef int s, p
    cdef i128 bound
    cdef char text[200]
    if typmod < 4:
        return 0
    s = numeric_typmod_scale(typmod)
    p = numeric_typmod_precision(typmod)
    if numeric_rescale(v, scale[0], s) == 0:
        bound = pow10_i128(p)
        if v[0] < bound and v[0] > -bound:
            scale[0] = <int16_t>s
            return 0
    core_fail(b"22003", b"numeric field overflow")
    snprintf(text, 200, b"A field with precision %d, scale %d must round to an absolute value less "
             b"than %s%d.", p, s, b"10^" if p != s else b"", <int>(p - s if p != s else 1))
    core_detail(text)
    return -1


cdef void numeric_trim(i128* v, int16_t* scale) noexcept nogil:
    if v[0] == 0:
        scale[0] = 0
        return
    while scale[0] >= 8 and v[0] % 100000000 == 0:
        v[0] = v[0] / 100000000
        scale[0] = scale[0] - 8
    while scale[0] > 0 and v[0] % 10 == 0:
        v[0] = v[0] / 10
        scale[0] = scale[0] - 1


cdef int numeric_cmp(i128 a, int a_scale, i128 b, int b_scale) noexcept nogil:
    cdef i128 x, y
    if a_scale != b_scale:
        x = a / pow10_i128(a_scale)
        y = b / pow10_i128(b_scale)
        if x != y:
            return 1 if x > y else -1
        a = a % pow10_i128(a_scale)
        b = b % pow10_i128(b_scale)
        if a_scale < b_scale:
            a = a * pow10_i128(b_scale - a_scale)
        else:
            b = b * pow10_i128(a_scale - b_scale)
    return (a > b) - (a < b)


cdef inline bint is_space(char c) noexcept nogil:
    return c == c' ' or (c >= 9 and c <= 13)


cdef inline bint is_digit(char c) noexcept nogil:
    return c >= c'0' and c <= c'9'


cdef int bad_numeric(const char* s, Py_ssize_t n) noexcept nogil:
    return core_fail_value(b"22P02", b"invalid input syntax for type numeric: ", s, n, b"")


cdef int numeric_from_text(const char* s, Py_ssize_t n, i128* v, int16_t* scale) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t end = n
    cdef bint negative = False
    cdef bint point = False
    cdef bint any_digit = False
    cdef bint exponent_negative = False
    cdef bint round_up = False
    cdef bint decided = False
    cdef i128 value = 0
    cdef int digits = 0       # significant digits kept
    cdef int64_t written = 0  # digits after the point in the text
    cdef int64_t dropped = 0  # digits not kept
    cdef int64_t exponent = 0
    cdef int64_t at
    while i < end and is_space(s[i]):
        i += 1
    while end > i and is_space(s[end - 1]):
        end -= 1
    if i < end and (s[i] == c'-' or s[i] == c'+'):
        negative = s[i] == c'-'
        i += 1
    while i < end:
        if is_digit(s[i]):
            any_digit = True
            if point:
                written += 1
            if digits > 0 or s[i] != c'0':
                if digits < 38:
                    value = value * 10 + (s[i] - c'0')
                    digits += 1
                else:
                    if not decided:
                        round_up = s[i] >= c'5'
                        decided = True
                    dropped += 1
            i += 1
        elif s[i] == c'.' and not point:
            point = True
            i += 1
        else:
            break
    if not any_digit:
        if end - i == 3 and (s[i] | 32) == c'n' and (s[i + 1] | 32) == c'a' and (s[i + 2] | 32) == c'n':
            return core_fail(b"0A000", b"numeric NaN is not supported")
        return bad_numeric(s, n)
    if i < end and (s[i] | 32) == c'e':
        i += 1
        if i < end and (s[i] == c'-' or s[i] == c'+'):
            exponent_negative = s[i] == c'-'
            i += 1
        if i == end or not is_digit(s[i]):
            return bad_numeric(s, n)
        while i < end and is_digit(s[i]):
            if exponent < 100000:
                exponent = exponent * 10 + (s[i] - c'0')
            i += 1
        if exponent_negative:
            exponent = -exponent
    if i != end:
        return bad_numeric(s, n)
    # value * 10^-at is what was written, but for the dropped digits
    at = written - exponent - dropped
    if value == 0:
        at = written - exponent
        scale[0] = <int16_t>(0 if at < 0 else (38 if at > 38 else at))
        v[0] = 0
        return 0
    if at < 0:
        if digits - at > 38:
            return core_fail(b"22003", b"value overflows numeric format")
        value = value * pow10_i128(<int>-at)
        at = 0
    if round_up:
        value += 1
    if at > 38:
        if at - 38 > 38:
            value = 0
        else:
            numeric_rescale(&value, <int>(at - 38), 0)
        at = 38
    if value >= pow10_i128(38):  # rounding carried into a 39th digit
        if at == 0:
            return core_fail(b"22003", b"value overflows numeric format")
        value = value / 10
        at -= 1
    v[0] = -value if negative else value
    scale[0] = <int16_t>at
    return 0


cdef void numeric_to_text(i128 v, int scale, bint trim, Buf* out) noexcept nogil:
    cdef char text[64]
    cdef int at = 64
    cdef int printed = 0
    cdef int16_t short_scale = <int16_t>scale
    cdef u128 m
    cdef uint64_t part
    cdef int in_part
    if trim:
        numeric_trim(&v, &short_scale)
        scale = short_scale
    m = magnitude(v)
    while True:
        part = <uint64_t>(m % <u128>1000000000000000000ULL)
        m = m / <u128>1000000000000000000ULL
        in_part = 0
        while in_part < 18 and (m != 0 or part != 0 or printed <= scale):
            if printed == scale and scale > 0:
                at -= 1
                text[at] = c'.'
            at -= 1
            text[at] = <char>(c'0' + part % 10)
            part = part / 10
            in_part += 1
            printed += 1
        if m == 0 and printed > scale:
            break
    if v < 0:
        at -= 1
        text[at] = c'-'
    buf_put(out, text + at, 64 - at)


cdef int numeric_from_binary(const char* s, Py_ssize_t n, i128* v, int16_t* scale) noexcept nogil:
    cdef int count, weight, sign, dscale, i, digit, exponent
    cdef i128 value = 0
    if n < 8:
        return core_fail(b"22P03", b"incorrect binary data format in numeric")
    count = get_be16(s)
    weight = <int16_t>get_be16(s + 2)
    sign = get_be16(s + 4)
    dscale = get_be16(s + 6)
    if n != 8 + 2 * <Py_ssize_t>count:
        return core_fail(b"22P03", b"incorrect binary data format in numeric")
    if sign != 0 and sign != 0x4000:
        return core_fail(b"0A000", b"numeric NaN and infinity are not supported")
    if dscale > 38:
        dscale = 38
    for i in range(count):
        digit = get_be16(s + 8 + 2 * i)
        if digit > 9999:
            return core_fail(b"22P03", b"invalid digit in external \"numeric\" value")
        exponent = (weight - i) * 4 + dscale  # of this digit in units of the last place
        if digit == 0:
            continue
        if exponent >= 0:
            if exponent > 37 or <i128>digit > pow10_i128(38 - exponent):
                return core_fail(b"22003", b"value overflows numeric format")
            value += <i128>digit * pow10_i128(exponent)
            if not numeric_fits(value):
                return core_fail(b"22003", b"value overflows numeric format")
        elif exponent > -4:
            value += digit / <int>pow10_i128(-exponent)
    v[0] = -value if sign else value
    scale[0] = <int16_t>dscale
    return 0


cdef void numeric_to_binary(i128 v, int scale, bint trim, Buf* out) noexcept nogil:
    cdef uint16_t digits[24]
    cdef int16_t short_scale = <int16_t>scale
    cdef int count = 0
    cdef int fraction_groups, pad, first, last, weight, i
    cdef u128 m
    cdef uint64_t unit
    if trim:
        numeric_trim(&v, &short_scale)
        scale = short_scale
    m = magnitude(v)
    fraction_groups = (scale + 3) / 4
    pad = fraction_groups * 4 - scale
    # the lowest group holds 4 - pad digits, shifted left by pad
    if pad:
        unit = <uint64_t>pow10_i128(4 - pad)
        digits[0] = <uint16_t>(<uint64_t>(m % <u128>unit) * <uint64_t>pow10_i128(pad))
        m = m / <u128>unit
        count = 1
    while m != 0:
        digits[count] = <uint16_t>(m % 10000)
        m = m / 10000
        count += 1
    weight = count - fraction_groups - 1
    first = 0
    while first < count and digits[first] == 0:
        first += 1
    last = count
    while last > first and digits[last - 1] == 0:
        last -= 1
        weight -= 1
    if first == last:
        weight = 0
    buf_be16(out, <uint16_t>(last - first))
    buf_be16(out, <uint16_t><int16_t>weight)
    buf_be16(out, 0x4000 if v < 0 else 0)
    buf_be16(out, <uint16_t>scale)
    for i in range(last - 1, first - 1, -1):
        buf_be16(out, digits[i])


cdef double numeric_to_double(i128 v, int scale) noexcept nogil:
    cdef char text[72]
    cdef char data[72]
    cdef Buf out
    # Below 2^53 and 10^22 one division of exact doubles is correctly rounded.
    if v < 9007199254740992LL and v > -9007199254740992LL and scale <= 22:
        return <double><int64_t>v / <double>pow10_i128(scale)
    out.data = data
    out.len = 0
    out.cap = 71
    out.failed = 0
    numeric_to_text(v, scale, False, &out)
    memcpy(text, data, out.len)
    text[out.len] = 0
    return strtod(text, NULL)


cdef int numeric_from_double(double f, int digits, i128* v, int16_t* scale) noexcept nogil:
    cdef char text[64]
    cdef int n
    if isnan(f) or isinf(f):
        return core_fail(b"0A000", b"numeric NaN and infinity are not supported")
    n = snprintf(text, 64, b"%.*g", digits, f)
    return numeric_from_text(text, n, v, scale)


cdef int numeric_to_int64(i128 v, int scale, int64_t* out) noexcept nogil:
    if scale and numeric_rescale(&v, scale, 0) != 0:
        return -1
    if v > <i128>9223372036854775807LL or v < -<i128>9223372036854775807LL - 1:
        return -1
    out[0] = <int64_t>v
    return 0
