"""The text of booleans, integers, floats, uuids and byteas, and the check of UTF-8."""

from libc.math cimport isinf, isnan, rint
from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtod
from libc.string cimport memcpy

from shardb._core.buffer cimport buf_put, core_fail, core_fail_value
from shardb._core.datum cimport (
    T_BOOL, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_JSONB, T_UUID,
)

cdef extern from "<stdlib.h>" nogil:
    float strtof(const char* s, char** end)

cdef const char* HEX = b"0123456789abcdef"
cdef int64_t INT64_MOST = 9223372036854775807LL


cdef const char* type_name(int type) noexcept nogil:
    cdef const char** names = [
        b"unknown", b"boolean", b"smallint", b"integer", b"bigint", b"real", b"double precision",
        b"numeric", b"text", b"character varying", b"character", b"bytea", b"date",
        b"time without time zone", b"timestamp without time zone", b"timestamp with time zone",
        b"interval", b"uuid", b"json", b"jsonb",
    ]
    if type < 0 or type > T_JSONB:
        return b"?"
    return names[type]


cdef Py_ssize_t utf8_check(const char* s, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t* p = <const uint8_t*>s
    cdef Py_ssize_t i = 0
    cdef uint64_t word
    cdef int more, k
    cdef uint8_t c
    while i < n:
        while i + 8 <= n:
            memcpy(&word, p + i, 8)
            # every byte is 1..127
            if (word | (word - 0x0101010101010101ULL)) & 0x8080808080808080ULL:
                break
            i += 8
        if i == n:
            break
        c = p[i]
        if c < 0x80:
            if c == 0:
                return i
            i += 1
            continue
        if c >= 0xC2 and c <= 0xDF:
            more = 1
        elif (c & 0xF0) == 0xE0:
            more = 2
        elif c >= 0xF0 and c <= 0xF4:
            more = 3
        else:
            return i
        if i + more >= n:
            return i
        for k in range(1, more + 1):
            if (p[i + k] & 0xC0) != 0x80:
                return i
        if ((c == 0xE0 and p[i + 1] < 0xA0) or (c == 0xED and p[i + 1] > 0x9F)
                or (c == 0xF0 and p[i + 1] < 0x90) or (c == 0xF4 and p[i + 1] > 0x8F)):
            return i
        i += more + 1
    return -1


cdef int fail_utf8(const char* s, Py_ssize_t n, Py_ssize_t at) noexcept nogil:
    cdef char text[120]
    cdef int used = snprintf(text, 120, b"invalid byte sequence for encoding \"UTF8\":")
    cdef int lead = <uint8_t>s[at]
    cdef Py_ssize_t want = 4 if lead >= 0xF0 else (3 if lead >= 0xE0 else (2 if lead >= 0xC0 else 1))
    cdef Py_ssize_t i
    for i in range(at, min(n, at + want)):
        used += snprintf(text + used, 8, b" 0x%02x", <int><uint8_t>s[i])
    return core_fail(b"22021", text)


# --- floats

cdef int short_float_text(double f, char* out) noexcept nogil:
    """The text of a value with at most four digits after its point; 0 if it is not one.

    A decimal of at most 15 digits that reads back as f is the only one, hence the shortest.
    """
    cdef int64_t scaled = <int64_t>rint(f * 10000.0)
    cdef int64_t whole
    cdef int fraction, n, i
    if scaled == 0 or <double>scaled / 10000.0 != f:
        return 0
    n = 0
    if scaled < 0:
        out[0] = c'-'
        n = 1
        scaled = -scaled
    whole = scaled / 10000
    fraction = <int>(scaled % 10000)
    n += put_int(whole, out + n)
    if fraction == 0:
        return n
    out[n] = c'.'
    for i in range(4, 0, -1):
        out[n + i] = <char>(c'0' + fraction % 10)
        fraction = fraction / 10
    n += 5
    while out[n - 1] == c'0':
        n -= 1
    return n


cdef int float_text(double f, bint single, char* out) noexcept nogil:
    """The shortest digits that read back as the same value, as PostgreSQL lays them out."""
    cdef char digits[48]
    cdef int precision, exponent, count, n, i
    cdef int limit = 9 if single else 17
    if isnan(f):
        memcpy(out, b"NaN", 3)
        return 3
    if isinf(f):
        if f < 0:
            memcpy(out, b"-Infinity", 9)
            return 9
        memcpy(out, b"Infinity", 8)
        return 8
    if f == 0:
        if snprintf(digits, 48, b"%g", f) == 2:
            memcpy(out, b"-0", 2)
            return 2
        out[0] = c'0'
        return 1
    if not single and (-1e11 < f < 1e11):
        n = short_float_text(f, out)
        if n:
            return n
    precision = 6 if single else 15
    if single and (-1.2e-38 < f < 1.2e-38):
        precision = 1
    elif not single and (-2.3e-308 < f < 2.3e-308):
        precision = 1
    while True:
        snprintf(digits, 48, b"%.*e", precision - 1, f)
        if precision == limit:
            break
        if single:
            if strtof(digits, NULL) == <float>f:
                break
        elif strtod(digits, NULL) == f:
            break
        precision += 1
    # digits: [-]d[.ddd]e[+-]xx
    n = 0
    i = 0
    if digits[0] == c'-':
        out[0] = c'-'
        n = 1
        i = 1
    count = 0
    cdef char body[24]
    while digits[i] != c'e':
        if digits[i] != c'.':
            body[count] = digits[i]
            count += 1
        i += 1
    exponent = <int>strtod(digits + i + 1, NULL)
    while count > 1 and body[count - 1] == c'0':
        count -= 1
    if exponent < -4 or exponent >= (6 if single else 15):
        out[n] = body[0]
        n += 1
        if count > 1:
            out[n] = c'.'
            memcpy(out + n + 1, body + 1, count - 1)
            n += count
        return n + snprintf(out + n, 12, b"e%c%02d", c'-' if exponent < 0 else c'+',
                            -exponent if exponent < 0 else exponent)
    if exponent < 0:
        out[n] = c'0'
        out[n + 1] = c'.'
        n += 2
        for i in range(-exponent - 1):
            out[n] = c'0'
            n += 1
        memcpy(out + n, body, count)
        return n + count
    for i in range(exponent + 1):
        out[n] = body[i] if i < count else c'0'
        n += 1
    if count > exponent + 1:
        out[n] = c'.'
        memcpy(out + n + 1, body + exponent + 1, count - exponent - 1)
        n += count - exponent
    return n


cdef int put_int(int64_t v, char* out) noexcept nogil:
    cdef char text[24]
    cdef int at = 24
    cdef uint64_t m = 0 - <uint64_t>v if v < 0 else <uint64_t>v
    while True:
        at -= 1
        text[at] = <char>(c'0' + m % 10)
        m = m / 10
        if m == 0:
            break
    if v < 0:
        at -= 1
        text[at] = c'-'
    memcpy(out, text + at, 24 - at)
    return 24 - at


cdef void put_uuid(const char* p, Buf* out) noexcept nogil:
    cdef char text[36]
    cdef int i, at
    at = 0
    for i in range(16):
        if i == 4 or i == 6 or i == 8 or i == 10:
            text[at] = c'-'
            at += 1
        text[at] = HEX[(<uint8_t>p[i]) >> 4]
        text[at + 1] = HEX[p[i] & 15]
        at += 2
    buf_put(out, text, 36)


# --- input

cdef inline bint is_space(char c) noexcept nogil:
    return c == c' ' or (c >= 9 and c <= 13)


cdef int fail_input(int type, const char* s, Py_ssize_t n) noexcept nogil:
    cdef char text[80]
    snprintf(text, 80, b"invalid input syntax for type %s: ", type_name(type))
    return core_fail_value(b"22P02", text, s, n, b"")


cdef int fail_range(int type, const char* s, Py_ssize_t n) noexcept nogil:
    cdef char text[80]
    if type == T_FLOAT4 or type == T_FLOAT8:
        snprintf(text, 80, b" is out of range for type %s", type_name(type))
        return core_fail_value(b"22003", b"", s, n, text)
    snprintf(text, 80, b" is out of range for type %s", type_name(type))
    return core_fail_value(b"22003", b"value ", s, n, text)


cdef int int_from_text(int type, const char* s, Py_ssize_t n, int64_t* out) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t end = n
    cdef uint64_t v = 0
    cdef uint64_t limit
    cdef bint negative = False
    cdef int digit
    while i < end and is_space(s[i]):
        i += 1
    while end > i and is_space(s[end - 1]):
        end -= 1
    if i < end and (s[i] == c'-' or s[i] == c'+'):
        negative = s[i] == c'-'
        i += 1
    if i == end:
        return fail_input(type, s, n)
    limit = <uint64_t>INT64_MOST
    if type == T_INT4:
        limit = 0x7FFFFFFF
    elif type == T_INT2:
        limit = 0x7FFF
    if negative:
        limit += 1
    while i < end:
        digit = s[i] - c'0'
        if digit < 0 or digit > 9:
            return fail_input(type, s, n)
        if v > (limit - digit) / 10:
            while i < end:
                if s[i] < c'0' or s[i] > c'9':
                    return fail_input(type, s, n)
                i += 1
            return fail_range(type, s, n)
        v = v * 10 + digit
        i += 1
    out[0] = <int64_t>(0 - v) if negative else <int64_t>v
    return 0


cdef bint same_word(const char* s, Py_ssize_t n, const char* word) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if word[i] == 0 or (s[i] | 32) != word[i]:
            return False
    return word[n] == 0


cdef int bool_from_text(const char* s, Py_ssize_t n, int64_t* out) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t k
    cdef Py_ssize_t end = n
    cdef const char** words = [b"true", b"yes", b"on", b"1", b"false", b"no", b"off", b"0"]
    while i < end and is_space(s[i]):
        i += 1
    while end > i and is_space(s[end - 1]):
        end -= 1
    cdef Py_ssize_t size = end - i
    cdef Py_ssize_t at
    if size > 0:
        for k in range(8):
            at = 0
            while at < size and words[k][at] != 0 and (s[i + at] | 32) == (words[k][at] | 32):
                at += 1
            # any prefix does, but "o" alone is ambiguous
            if at == size and not (size == 1 and (k == 2 or k == 6)):
                out[0] = 1 if k < 4 else 0
                return 0
    return fail_input(T_BOOL, s, n)


cdef int float_from_text(int type, const char* s, Py_ssize_t n, double* out) noexcept nogil:
    cdef char local[512]
    cdef char* end
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t size = n
    cdef double v
    cdef bint nonzero = False
    while i < size and is_space(s[i]):
        i += 1
    while size > i and is_space(s[size - 1]):
        size -= 1
    if size == i or size - i > 500:
        return fail_input(type, s, n)
    memcpy(local, s + i, size - i)
    local[size - i] = 0
    v = strtof(local, &end) if type == T_FLOAT4 else strtod(local, &end)
    if end != local + (size - i):
        return fail_input(type, s, n)
    if isinf(v) or v == 0:
        i = 0
        while local[i] != 0 and (local[i] | 32) != c'e':
            if local[i] >= c'1' and local[i] <= c'9':
                nonzero = True
            i += 1
        if nonzero:
            return fail_range(type, s, n)
    out[0] = v
    return 0


cdef inline int hex_value(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= (c | 32) <= c'f':
        return (c | 32) - c'a' + 10
    return -1


cdef int uuid_from_text(const char* s, Py_ssize_t n, char* out) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t end = n
    cdef int k, high, low
    if end and s[0] == c'{':
        if s[end - 1] != c'}':
            return fail_input(T_UUID, s, n)
        i = 1
        end -= 1
    for k in range(16):
        if i + 2 > end:
            return fail_input(T_UUID, s, n)
        high = hex_value(s[i])
        low = hex_value(s[i + 1])
        if high < 0 or low < 0:
            return fail_input(T_UUID, s, n)
        out[k] = <char>(high * 16 + low)
        i += 2
        if k % 2 == 1 and k < 15 and i < end and s[i] == c'-':
            i += 1
    if i != end:
        return fail_input(T_UUID, s, n)
    return 0


cdef int bytea_from_text(const char* s, Py_ssize_t n, char* out) noexcept nogil:
    """Hex (\\x...) or escape form into `out`, which has room for n bytes; the length, or -1."""
    cdef Py_ssize_t i = 0
    cdef int at = 0
    cdef int high, low
    if n >= 2 and s[0] == c'\\' and s[1] == c'x':
        i = 2
        while i < n:
            if is_space(s[i]):
                i += 1
                continue
            high = hex_value(s[i])
            if high < 0:
                return core_fail_value(b"22023", b"invalid hexadecimal digit: ", s + i, 1, b"")
            low = hex_value(s[i + 1]) if i + 1 < n else -1
            if low < 0:
                if i + 1 < n:
                    return core_fail_value(b"22023", b"invalid hexadecimal digit: ", s + i + 1, 1, b"")
                return core_fail(b"22023", b"invalid hexadecimal data: odd number of digits")
            out[at] = <char>(high * 16 + low)
            at += 1
            i += 2
        return at
    while i < n:
        if s[i] != c'\\':
            out[at] = s[i]
            i += 1
        elif i + 1 < n and s[i + 1] == c'\\':
            out[at] = c'\\'
            i += 2
        elif (i + 3 < n and c'0' <= s[i + 1] <= c'3' and c'0' <= s[i + 2] <= c'7'
              and c'0' <= s[i + 3] <= c'7'):
            out[at] = <char>((s[i + 1] - c'0') * 64 + (s[i + 2] - c'0') * 8 + s[i + 3] - c'0')
            i += 4
        else:
            return core_fail(b"22P02", b"invalid input syntax for type bytea")
        at += 1
    return at
