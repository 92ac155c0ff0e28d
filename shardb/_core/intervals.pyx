"""The text input of intervals: PostgreSQL's units, SQL's year-month and hh:mm:ss, ISO 8601."""

from libc.stdint cimport int16_t, uint64_t

from shardb._core.buffer cimport core_fail_value
from shardb._core.datum cimport i128
from shardb._core.numeric cimport numeric_from_text, numeric_rescale, pow10_i128

cdef i128 US_PER_DAY = 86400000000LL
cdef i128 US_PER_SECOND = 1000000

ctypedef struct Sum:
    i128 months
    i128 days
    i128 us
    uint64_t seen  # units so far, a bit for each letter


cdef inline bint is_digit(char c) noexcept nogil:
    return c >= c'0' and c <= c'9'


cdef inline bint is_alpha(char c) noexcept nogil:
    return (c | 32) >= c'a' and (c | 32) <= c'z'


cdef inline bint is_space(char c) noexcept nogil:
    return c == c' ' or (c >= 9 and c <= 13)


cdef bint word_in(const char* s, Py_ssize_t n, const char* words) noexcept nogil:
    """True if the lower-cased word is one of the blank-separated `words`."""
    cdef Py_ssize_t i
    while words[0] != 0:
        i = 0
        while i < n and words[i] == (s[i] | 32):
            i += 1
        if i == n and (words[i] == 0 or words[i] == c' '):
            return True
        while words[0] != 0 and words[0] != c' ':
            words += 1
        if words[0] == c' ':
            words += 1
    return False


# The unit of a word: 'u' us, 'l' ms, 's', 'm' minute, 'h', 'd', 'w', 'M' month, 'y', 'D' decade,
# 'c' century, 'k' millennium; 0 if unknown.
cdef char unit_of(const char* s, Py_ssize_t n) noexcept nogil:
    if word_in(s, n, b"second seconds sec secs s"):
        return c's'
    if word_in(s, n, b"minute minutes min mins m"):
        return c'm'
    if word_in(s, n, b"hour hours hr hrs h"):
        return c'h'
    if word_in(s, n, b"day days d"):
        return c'd'
    if word_in(s, n, b"week weeks w"):
        return c'w'
    if word_in(s, n, b"month months mon mons"):
        return c'M'
    if word_in(s, n, b"year years yr yrs y"):
        return c'y'
    if word_in(s, n, b"millisecond milliseconds msec msecs ms msecond mseconds"):
        return c'l'
    if word_in(s, n, b"microsecond microseconds usec usecs us usecond useconds"):
        return c'u'
    if word_in(s, n, b"decade decades dec decs"):
        return c'D'
    if word_in(s, n, b"century centuries cent c"):
        return c'c'
    if word_in(s, n, b"millennium millennia mil mils"):
        return c'k'
    return 0


# value * 10^-scale * size, halves to even
cdef i128 scaled(i128 value, int scale, i128 size) noexcept nogil:
    cdef i128 unit = pow10_i128(scale)
    cdef i128 v = value * size / unit
    cdef i128 twice = (value * size % unit) * 2
    if twice > unit or (twice == unit and v % 2 != 0):
        v += 1
    elif twice < -unit or (twice == -unit and v % 2 != 0):
        v -= 1
    return v


cdef int add_unit(Sum* sum, char unit, i128 value, int scale) noexcept nogil:
    cdef i128 whole = value / pow10_i128(scale)
    cdef i128 rest = value % pow10_i128(scale)
    cdef i128 days
    cdef int months = 0
    cdef uint64_t bit = 1ULL << (unit - 64)
    if sum.seen & bit:
        return -1
    sum.seen |= bit
    if whole > <i128>9223372036854775807LL or whole < -<i128>9223372036854775807LL:
        return -2
    if scale > 12:
        numeric_rescale(&rest, scale, 12)
        scale = 12
    if unit == c's':
        sum.us += whole * US_PER_SECOND + scaled(rest, scale, US_PER_SECOND)
    elif unit == c'm':
        sum.us += whole * 60 * US_PER_SECOND + scaled(rest, scale, 60 * US_PER_SECOND)
    elif unit == c'h':
        sum.us += whole * 3600 * US_PER_SECOND + scaled(rest, scale, 3600 * US_PER_SECOND)
    elif unit == c'l':
        sum.us += whole * 1000 + scaled(rest, scale, 1000)
    elif unit == c'u':
        sum.us += whole + scaled(rest, scale, 1)
    elif unit == c'd':
        sum.days += whole
        sum.us += scaled(rest, scale, US_PER_DAY)
    elif unit == c'w' or unit == c'M':
        # the fraction of a week or month goes to days, and of a day to microseconds
        if unit == c'w':
            sum.days += whole * 7
            rest = rest * 7
        else:
            sum.months += whole
            rest = rest * 30
        days = rest / pow10_i128(scale)
        sum.days += days
        sum.us += scaled(rest - days * pow10_i128(scale), scale, US_PER_DAY)
    else:
        months = 12
        if unit == c'D':
            months = 120
        elif unit == c'c':
            months = 1200
        elif unit == c'k':
            months = 12000
        sum.months += whole * months + scaled(rest, scale, months)
    return 0


# hh:mm[:ss[.f]] at s[i:n] into microseconds; characters taken, -1 syntax, -2 range.
cdef int read_clock(const char* s, Py_ssize_t n, Py_ssize_t i, bint negative, Sum* sum) noexcept nogil:
    cdef i128 part[3]
    cdef int16_t scale[3]
    cdef int fields = 0
    cdef Py_ssize_t at = i
    cdef Py_ssize_t start
    cdef i128 total
    part[2] = 0
    scale[2] = 0
    while fields < 3:
        start = at
        while at < n and (is_digit(s[at]) or s[at] == c'.'):
            at += 1
        if at == start or numeric_from_text(s + start, at - start, &part[fields], &scale[fields]):
            return -1
        fields += 1
        if at < n and s[at] == c':' and fields < 3:
            at += 1
        else:
            break
    if fields < 2 or scale[0]:
        return -1
    if fields == 2 and scale[1]:  # mm:ss.f
        part[2], scale[2] = part[1], scale[1]
        part[1], scale[1] = part[0], 0
        part[0] = 0
    if part[1] > 59 or scale[1] or scale[2] > 12:
        return -2
    if part[2] >= <i128>60 * pow10_i128(scale[2]) or part[0] > 2562047788LL:
        return -2
    total = (part[0] * 60 + part[1]) * 60 * US_PER_SECOND + scaled(part[2], scale[2], US_PER_SECOND)
    sum.us += -total if negative else total
    return <int>(at - i)


cdef int read_iso(const char* s, Py_ssize_t n, Sum* sum) noexcept nogil:
    """P[nY][nM][nW][nD][T[nH][nM][nS]], each number with a sign and a fraction."""
    cdef Py_ssize_t i = 1
    cdef Py_ssize_t start
    cdef bint in_time = False
    cdef i128 value
    cdef int16_t scale
    cdef char unit
    cdef int why
    if n < 3:
        return -1
    while i < n:
        if s[i] == c'T' and not in_time:
            in_time = True
            i += 1
            continue
        start = i
        if s[i] == c'-' or s[i] == c'+':
            i += 1
        while i < n and (is_digit(s[i]) or s[i] == c'.'):
            i += 1
        if i == start or i == n or numeric_from_text(s + start, i - start, &value, &scale):
            return -1
        unit = 0
        if in_time:
            unit = c'h' if s[i] == c'H' else (c'm' if s[i] == c'M' else (c's' if s[i] == c'S' else 0))
        elif s[i] == c'Y':
            unit = c'y'
        elif s[i] == c'M':
            unit = c'M'
        elif s[i] == c'W':
            unit = c'w'
        elif s[i] == c'D':
            unit = c'd'
        if unit == 0:
            return -1
        i += 1
        why = add_unit(sum, unit, value, scale)
        if why:
            return why
    return 0


cdef int read_units(const char* s, Py_ssize_t n, Sum* sum) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t start, j
    cdef bint negative = False
    cdef bint any_field = False
    cdef bint ago = False
    cdef i128 value = 0
    cdef i128 other
    cdef int16_t scale = 0
    cdef int16_t other_scale
    cdef int taken, why
    cdef char unit
    while i < n:
        if is_space(s[i]) or s[i] == c'@':
            i += 1
            continue
        if is_alpha(s[i]):
            start = i
            while i < n and is_alpha(s[i]):
                i += 1
            if not any_field or not word_in(s + start, i - start, b"ago"):
                return -1
            ago = True
            continue
        negative = s[i] == c'-'
        start = i
        if s[i] == c'-' or s[i] == c'+':
            i += 1
        j = i
        while j < n and (is_digit(s[j]) or s[j] == c'.'):
            j += 1
        if j == i:
            return -1
        if j < n and s[j] == c':':
            taken = read_clock(s, n, i, negative, sum)
            if taken < 0:
                return taken
            i += taken
            any_field = True
            continue
        if numeric_from_text(s + start, j - start, &value, &scale):
            return -1
        i = j
        if i < n and s[i] == c'-' and scale == 0:  # years-months
            start = i + 1
            j = start
            while j < n and is_digit(s[j]):
                j += 1
            if j == start or numeric_from_text(s + start, j - start, &other, &other_scale):
                return -1
            if j < n and not is_space(s[j]):
                return -1
            if other > 11:
                return -2
            why = add_unit(sum, c'y', value, 0)
            if why == 0:
                why = add_unit(sum, c'M', -other if negative else other, 0)
            i = j
        else:
            while i < n and is_space(s[i]):
                i += 1
            start = i
            while i < n and is_alpha(s[i]):
                i += 1
            if i == start:
                # a number before a clock is days ("1 04:05:06"); a last one is seconds
                unit = c's' if i == n else c'd'
                if unit == c'd' and not is_digit(s[i]) and s[i] != c'-' and s[i] != c'+':
                    return -1
            else:
                unit = unit_of(s + start, i - start)
                if unit == 0:
                    return -1
            why = add_unit(sum, unit, value, scale)
        if why:
            return why
        any_field = True
    if not any_field:
        return -1
    if ago:
        sum.months = -sum.months
        sum.days = -sum.days
        sum.us = -sum.us
    return 0


cdef int interval_from_text(const char* s, Py_ssize_t n, int32_t* months, int32_t* days,
                            int64_t* us) noexcept nogil:
    cdef Sum sum
    cdef int why
    cdef const char* text = s
    cdef Py_ssize_t size = n
    sum.months = 0
    sum.days = 0
    sum.us = 0
    sum.seen = 0
    while size and is_space(text[0]):
        text += 1
        size -= 1
    while size and is_space(text[size - 1]):
        size -= 1
    if size and text[0] == c'P':
        why = read_iso(text, size, &sum)
    else:
        why = read_units(text, size, &sum)
    if why == -1:
        return core_fail_value(b"22007", b"invalid input syntax for type interval: ", s, n, b"")
    if (why or sum.months > 2147483647 or sum.months < -2147483647LL - 1 or sum.days > 2147483647
            or sum.days < -2147483647LL - 1 or sum.us > <i128>9223372036854775807LL
            or sum.us < -<i128>9223372036854775807LL - 1):
        return core_fail_value(b"22015", b"interval field value out of range: ", s, n, b"")
    months[0] = <int32_t>sum.months
    days[0] = <int32_t>sum.days
    us[0] = <int64_t>sum.us
    return 0
