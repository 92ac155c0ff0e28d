"""JSON text: validation (RFC 8259 as PostgreSQL's json) and jsonb's normal form.

One recursive parser does both: without an output it only checks. jsonb sorts the keys of an object
by length and then bytes, keeps the last of equal keys, decodes escapes, and writes numbers
without exponents.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memcmp, memcpy

from shardb._core.buffer cimport (
    buf_free, buf_init, buf_put, buf_u8, core_detail, core_fail,
)

cdef enum:
    DEPTH_MAX = 1000
    DIGITS_MAX = 147000  # of a number in jsonb, about PostgreSQL's 131072 + 16383

ctypedef struct Parser:
    const char* s
    Py_ssize_t n
    Py_ssize_t i
    int depth

ctypedef struct Member:
    const char* key
    size_t key_len
    const char* value
    size_t value_len
    size_t order


cdef int fail(Parser* p, Py_ssize_t at) noexcept nogil:
    cdef char text[120]
    cdef Py_ssize_t end = at
    core_fail(b"22P02", b"invalid input syntax for type json")
    if at >= p.n:
        core_detail(b"The input string ended unexpectedly.")
        return -1
    while end < p.n and end - at < 60 and (
            (p.s[end] | 32) >= c'a' and (p.s[end] | 32) <= c'z'
            or p.s[end] >= c'0' and p.s[end] <= c'9' or <uint8_t>p.s[end] >= 0x80
            or p.s[end] == c'_' or p.s[end] == c'.'):
        end += 1
    if end == at:
        end += 1
    snprintf(text, 120, b"Token \"%.*s\" is invalid.", <int>(end - at), p.s + at)
    core_detail(text)
    return -1


cdef inline void skip(Parser* p) noexcept nogil:
    while p.i < p.n and (p.s[p.i] == c' ' or p.s[p.i] == c'\n' or p.s[p.i] == c'\t'
                         or p.s[p.i] == c'\r'):
        p.i += 1


cdef int hex4(Parser* p, Py_ssize_t at, uint32_t* out) noexcept nogil:
    cdef int k
    cdef uint32_t v = 0
    cdef char c
    if at + 4 > p.n:
        return fail(p, p.n)
    for k in range(4):
        c = p.s[at + k]
        if c >= c'0' and c <= c'9':
            v = v * 16 + (c - c'0')
        elif (c | 32) >= c'a' and (c | 32) <= c'f':
            v = v * 16 + ((c | 32) - c'a' + 10)
        else:
            core_fail(b"22P02", b"invalid input syntax for type json")
            core_detail(b"\"\\u\" must be followed by four hexadecimal digits.")
            return -1
    out[0] = v
    return 0


cdef void put_utf8(uint32_t c, Buf* out) noexcept nogil:
    if c < 0x80:
        buf_u8(out, <uint8_t>c)
    elif c < 0x800:
        buf_u8(out, <uint8_t>(0xC0 | c >> 6))
        buf_u8(out, <uint8_t>(0x80 | c & 63))
    elif c < 0x10000:
        buf_u8(out, <uint8_t>(0xE0 | c >> 12))
        buf_u8(out, <uint8_t>(0x80 | c >> 6 & 63))
        buf_u8(out, <uint8_t>(0x80 | c & 63))
    else:
        buf_u8(out, <uint8_t>(0xF0 | c >> 18))
        buf_u8(out, <uint8_t>(0x80 | c >> 12 & 63))
        buf_u8(out, <uint8_t>(0x80 | c >> 6 & 63))
        buf_u8(out, <uint8_t>(0x80 | c & 63))


cdef int parse_string(Parser* p, Buf* out) noexcept nogil:
    """The string at p.i, which is a quote; its decoded bytes go to `out`, if there is one."""
    cdef Py_ssize_t start
    cdef uint32_t code, low
    cdef char c
    p.i += 1
    while True:
        start = p.i
        while p.i < p.n and p.s[p.i] != c'"' and p.s[p.i] != c'\\' and <uint8_t>p.s[p.i] >= 32:
            p.i += 1
        if out != NULL:
            buf_put(out, p.s + start, p.i - start)
        if p.i >= p.n:
            return fail(p, p.n)
        if p.s[p.i] == c'"':
            p.i += 1
            return 0
        if p.s[p.i] != c'\\':
            core_fail(b"22P02", b"invalid input syntax for type json")
            core_detail(b"A control character must be escaped.")
            return -1
        if p.i + 1 >= p.n:
            return fail(p, p.n)
        c = p.s[p.i + 1]
        if c == c'u':
            if hex4(p, p.i + 2, &code) != 0:
                return -1
            p.i += 6
            if out == NULL:
                continue
            if code == 0:
                core_fail(b"22P05", b"unsupported Unicode escape sequence")
                core_detail(b"\\u0000 cannot be converted to text.")
                return -1
            if code >= 0xD800 and code < 0xE000:
                if (code >= 0xDC00 or p.i + 6 > p.n or p.s[p.i] != c'\\' or p.s[p.i + 1] != c'u'
                        or hex4(p, p.i + 2, &low) != 0 or low < 0xDC00 or low > 0xDFFF):
                    core_fail(b"22P02", b"invalid input syntax for type json")
                    core_detail(b"Unicode high and low surrogates must come in pairs.")
                    return -1
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                p.i += 6
            put_utf8(code, out)
            continue
        if c == c'b':
            c = 8
        elif c == c'f':
            c = 12
        elif c == c'n':
            c = 10
        elif c == c'r':
            c = 13
        elif c == c't':
            c = 9
        elif c != c'"' and c != c'\\' and c != c'/':
            return fail(p, p.i)
        if out != NULL:
            buf_u8(out, <uint8_t>c)
        p.i += 2


cdef void put_string(const char* s, size_t n, Buf* out) noexcept nogil:
    """`s` as a JSON string with the escapes that PostgreSQL writes."""
    cdef size_t i
    cdef char c
    cdef char text[8]
    buf_u8(out, c'"')
    for i in range(n):
        c = s[i]
        if c == c'"' or c == c'\\':
            buf_u8(out, c'\\')
            buf_u8(out, <uint8_t>c)
        elif <uint8_t>c >= 32:
            buf_u8(out, <uint8_t>c)
        elif c == 8:
            buf_put(out, b"\\b", 2)
        elif c == 12:
            buf_put(out, b"\\f", 2)
        elif c == 10:
            buf_put(out, b"\\n", 2)
        elif c == 13:
            buf_put(out, b"\\r", 2)
        elif c == 9:
            buf_put(out, b"\\t", 2)
        else:
            buf_put(out, text, snprintf(text, 8, b"\\u%04x", <int>c))
    buf_u8(out, c'"')


cdef inline bint digit_at(Parser* p, Py_ssize_t i) noexcept nogil:
    return i < p.n and p.s[i] >= c'0' and p.s[i] <= c'9'


cdef int put_number(Parser* p, Py_ssize_t start, Py_ssize_t point, Py_ssize_t mantissa_end,
                    int64_t exponent, Buf* out) noexcept nogil:
    """Writes -ddd.ddd without its exponent; `point` is where the point is, or mantissa_end."""
    cdef bint negative = p.s[start] == c'-'
    cdef Py_ssize_t first = start + (1 if negative else 0)
    cdef Py_ssize_t i
    cdef bint zero = True
    cdef int64_t whole, fraction, k
    cdef int64_t digits = mantissa_end - first - (1 if point < mantissa_end else 0)
    for i in range(first, mantissa_end):
        if p.s[i] >= c'1' and p.s[i] <= c'9':
            zero = False
            break
    whole = (point - first) + exponent             # digits before the point, if positive
    fraction = digits - whole                      # digits after it
    if fraction < 0 or (zero and fraction < 0):
        fraction = 0
    if whole > DIGITS_MAX or fraction > DIGITS_MAX:
        return core_fail(b"22003", b"value overflows numeric format")
    if negative and not zero:
        buf_u8(out, c'-')
    # the k-th digit of the mantissa, leading zeros before the point dropped
    k = 0
    if not zero:
        while k < whole - 1 and k < digits and digit_of(p, first, point, k) == c'0':
            k += 1
    else:
        k = whole
    if whole <= 0 or k >= whole:
        buf_u8(out, c'0')
    while k < whole:
        buf_u8(out, digit_of(p, first, point, k) if k < digits else c'0')
        k += 1
    if fraction > 0:
        buf_u8(out, c'.')
        for k in range(whole, whole + fraction):
            buf_u8(out, c'0' if k < 0 or k >= digits else digit_of(p, first, point, k))
    return 0


cdef inline uint8_t digit_of(Parser* p, Py_ssize_t first, Py_ssize_t point, int64_t k) noexcept nogil:
    return <uint8_t>(p.s[first + k] if first + k < point else p.s[first + k + 1])


cdef int parse_number(Parser* p, Buf* out) noexcept nogil:
    cdef Py_ssize_t start = p.i
    cdef Py_ssize_t i = p.i
    cdef Py_ssize_t point, end
    cdef int64_t exponent = 0
    cdef bint negative = False
    if p.s[i] == c'-':
        i += 1
    if not digit_at(p, i):
        return fail(p, start)
    if p.s[i] == c'0' and digit_at(p, i + 1):
        return fail(p, start)
    while digit_at(p, i):
        i += 1
    point = i
    if i < p.n and p.s[i] == c'.':
        i += 1
        if not digit_at(p, i):
            return fail(p, start)
        while digit_at(p, i):
            i += 1
    end = i
    if i < p.n and (p.s[i] | 32) == c'e':
        i += 1
        if i < p.n and (p.s[i] == c'-' or p.s[i] == c'+'):
            negative = p.s[i] == c'-'
            i += 1
        if not digit_at(p, i):
            return fail(p, start)
        while digit_at(p, i):
            if exponent < 1000000:
                exponent = exponent * 10 + (p.s[i] - c'0')
            i += 1
        if negative:
            exponent = -exponent
    if i < p.n and ((p.s[i] | 32) >= c'a' and (p.s[i] | 32) <= c'z'):
        return fail(p, start)
    p.i = i
    if out != NULL:
        return put_number(p, start, point, end, exponent, out)
    return 0


cdef int parse_word(Parser* p, const char* word, int n, Buf* out) noexcept nogil:
    cdef Py_ssize_t end = p.i + n
    if end > p.n or memcmp(p.s + p.i, word, n) != 0:
        return fail(p, p.i)
    if end < p.n and ((p.s[end] | 32) >= c'a' and (p.s[end] | 32) <= c'z'
                      or p.s[end] >= c'0' and p.s[end] <= c'9' or p.s[end] == c'_'):
        return fail(p, p.i)
    p.i = end
    if out != NULL:
        buf_put(out, word, n)
    return 0


cdef int parse_array(Parser* p, Buf* out) noexcept nogil:
    cdef bint first = True
    p.i += 1
    if out != NULL:
        buf_u8(out, c'[')
    skip(p)
    if p.i < p.n and p.s[p.i] == c']':
        p.i += 1
    else:
        while True:
            if out != NULL and not first:
                buf_put(out, b", ", 2)
            first = False
            if parse_value(p, out) != 0:
                return -1
            skip(p)
            if p.i >= p.n or (p.s[p.i] != c',' and p.s[p.i] != c']'):
                return fail(p, p.i)
            p.i += 1
            if p.s[p.i - 1] == c']':
                break
    if out != NULL:
        buf_u8(out, c']')
    return 0


cdef int by_key(const void* a, const void* b) noexcept nogil:
    cdef const Member* x = <const Member*>a
    cdef const Member* y = <const Member*>b
    cdef int order
    if x.key_len != y.key_len:
        return 1 if x.key_len > y.key_len else -1
    order = memcmp(x.key, y.key, x.key_len)
    if order != 0:
        return order
    return 1 if x.order > y.order else -1


cdef int put_members(Member* members, size_t count, Buf* scratch, Buf* out) noexcept nogil:
    cdef size_t i
    cdef bint first = True
    for i in range(count):  # offsets so far, for the scratch moved as it grew
        members[i].key = scratch.data + <size_t>members[i].key
        members[i].value = scratch.data + <size_t>members[i].value
    if count > 1:
        qsort(members, count, sizeof(Member), by_key)
    buf_u8(out, c'{')
    for i in range(count):
        if i + 1 < count and members[i].key_len == members[i + 1].key_len and memcmp(
                members[i].key, members[i + 1].key, members[i].key_len) == 0:
            continue
        if not first:
            buf_put(out, b", ", 2)
        first = False
        put_string(members[i].key, members[i].key_len, out)
        buf_put(out, b": ", 2)
        buf_put(out, members[i].value, members[i].value_len)
    buf_u8(out, c'}')
    return 0


cdef int parse_member(Parser* p, Member* member, Buf* scratch) noexcept nogil:
    """`"key": value`; with a scratch, the member holds offsets into it."""
    skip(p)
    if p.i >= p.n or p.s[p.i] != c'"':
        return fail(p, p.i)
    if scratch != NULL:
        member.key = <const char*>scratch.len
    if parse_string(p, scratch) != 0:
        return -1
    if scratch != NULL:
        member.key_len = scratch.len - <size_t>member.key
    skip(p)
    if p.i >= p.n or p.s[p.i] != c':':
        return fail(p, p.i)
    p.i += 1
    if scratch != NULL:
        member.value = <const char*>scratch.len
    if parse_value(p, scratch) != 0:
        return -1
    if scratch != NULL:
        member.value_len = scratch.len - <size_t>member.value
    skip(p)
    if p.i >= p.n or (p.s[p.i] != c',' and p.s[p.i] != c'}'):
        return fail(p, p.i)
    p.i += 1
    return 0


cdef int parse_object(Parser* p, Buf* out) noexcept nogil:
    cdef Member* members = NULL
    cdef Member* grown
    cdef Member one
    cdef size_t count = 0
    cdef size_t cap = 0
    cdef Buf scratch
    cdef int why = 0
    p.i += 1
    skip(p)
    if p.i < p.n and p.s[p.i] == c'}':
        p.i += 1
        if out != NULL:
            buf_put(out, b"{}", 2)
        return 0
    if out == NULL:
        while True:
            if parse_member(p, &one, NULL) != 0:
                return -1
            if p.s[p.i - 1] == c'}':
                return 0
    buf_init(&scratch)
    while True:
        if count == cap:
            cap = cap * 2 if cap else 8
            grown = <Member*>realloc(members, cap * sizeof(Member))
            if grown == NULL:
                why = core_fail(b"53200", b"out of memory")
                break
            members = grown
        members[count].order = count
        why = parse_member(p, &members[count], &scratch)
        if why != 0:
            break
        count += 1
        if p.s[p.i - 1] == c'}':
            break
    if why == 0 and scratch.failed:
        why = core_fail(b"53200", b"out of memory")
    if why == 0:
        put_members(members, count, &scratch, out)
    free(members)
    buf_free(&scratch)
    return why


cdef int parse_value(Parser* p, Buf* out) noexcept nogil:
    cdef Buf text
    cdef char c
    cdef int why
    skip(p)
    if p.i >= p.n:
        return fail(p, p.n)
    c = p.s[p.i]
    if c == c'{' or c == c'[':
        if p.depth >= DEPTH_MAX:
            return core_fail(b"54001", b"stack depth limit exceeded")
        p.depth += 1
        why = parse_object(p, out) if c == c'{' else parse_array(p, out)
        p.depth -= 1
        return why
    if c == c'"':
        if out == NULL:
            return parse_string(p, NULL)
        buf_init(&text)
        why = parse_string(p, &text)
        if why == 0:
            put_string(text.data, text.len, out)
            out.failed |= text.failed
        buf_free(&text)
        return why
    if c == c't':
        return parse_word(p, b"true", 4, out)
    if c == c'f':
        return parse_word(p, b"false", 5, out)
    if c == c'n':
        return parse_word(p, b"null", 4, out)
    if c == c'-' or (c >= c'0' and c <= c'9'):
        return parse_number(p, out)
    return fail(p, p.i)


cdef int parse(const char* s, Py_ssize_t n, Buf* out) noexcept nogil:
    cdef Parser p
    p.s = s
    p.n = n
    p.i = 0
    p.depth = 0
    if parse_value(&p, out) != 0:
        return -1
    skip(&p)
    return fail(&p, p.i) if p.i < p.n else 0


cdef int json_check(const char* s, Py_ssize_t n) noexcept nogil:
    return parse(s, n, NULL)


cdef int jsonb_normalize(const char* s, Py_ssize_t n, Buf* out) noexcept nogil:
    return parse(s, n, out)
