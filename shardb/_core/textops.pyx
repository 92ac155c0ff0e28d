"""Text operators on UTF-8 bytes (see the .pxd)."""

from libc.string cimport memcmp, memcpy

from shardb._core.buffer cimport arena_alloc, core_fail
from shardb._core.datum cimport T_BPCHAR, T_TEXT


cdef inline Py_ssize_t char_bytes(const char* p, Py_ssize_t n) noexcept nogil:
    """Bytes of the character at p; malformed bytes count as characters of one byte."""
    cdef Py_ssize_t k = 1
    if <unsigned char>p[0] < 0xC0:
        return 1
    while k < n and k < 4 and (<unsigned char>p[k] & 0xC0) == 0x80:
        k += 1
    return k


cdef int like_match(const char* text, Py_ssize_t n, const char* pattern, Py_ssize_t m,
                    char escape) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j = 0
    cdef Py_ssize_t back_i = -1
    cdef Py_ssize_t back_j = -1
    cdef Py_ssize_t literal
    cdef bint same
    while True:
        if j < m:
            if escape and pattern[j] == escape:
                if j + 1 >= m:
                    # As PostgreSQL, found only when matching gets here.
                    if i < n:
                        return core_fail(b"22025", b"LIKE pattern must not end with escape character")
                    literal = -1
                else:
                    literal = j + 1
            elif pattern[j] == c'%':
                while j < m and pattern[j] == c'%':
                    j += 1
                back_i = i
                back_j = j
                if j == m:
                    return 1
                continue
            elif pattern[j] == c'_':
                if i < n:
                    i += char_bytes(text + i, n - i)
                    j += 1
                    continue
                return 0
            else:
                literal = j
            same = literal >= 0 and i < n and text[i] == pattern[literal]
            if same:
                i += 1
                j = literal + 1
                continue
        elif i == n:
            return 1
        if back_i < 0 or back_i >= n:
            return 0
        back_i += char_bytes(text + back_i, n - back_i)
        i = back_i
        j = back_j


cdef bytes fold_unicode(const char* p, Py_ssize_t n, bint upper):
    """The fold of a text that is not ASCII, character by character so that its length in
    characters stays (as towlower and towupper do)."""
    cdef str text = p[:n].decode("utf-8", "surrogateescape")
    cdef list out = []
    for ch in text:
        folded = ch.upper() if upper else ch.lower()
        out.append(folded if len(folded) == 1 else ch)
    return "".join(out).encode("utf-8", "surrogateescape")


cdef int fold_slow(const Datum* a, bint upper, Arena* arena, Datum* out) noexcept with gil:
    cdef bytes folded
    cdef char* to
    try:
        folded = fold_unicode(a.p, a.len, upper)
    except Exception:
        return core_fail(b"22021", b"invalid byte sequence for encoding \"UTF8\"")
    to = arena_alloc(arena, len(folded) + 1)
    if to == NULL:
        return core_fail(b"53200", b"out of memory")
    memcpy(to, <const char*>folded, len(folded))
    out.p = to
    out.len = <int>len(folded)
    return 0


cdef int fold_case(const Datum* a, bint upper, Arena* arena, Datum* out) noexcept nogil:
    cdef Py_ssize_t k
    cdef char* to
    cdef char ch
    for k in range(a.len):
        if <unsigned char>a.p[k] >= 0x80:
            return fold_slow(a, upper, arena, out)
    to = arena_alloc(arena, a.len + 1)
    if to == NULL:
        return core_fail(b"53200", b"out of memory")
    for k in range(a.len):
        ch = a.p[k]
        if upper:
            if ch >= c'a' and ch <= c'z':
                ch -= 32
        elif ch >= c'A' and ch <= c'Z':
            ch += 32
        to[k] = ch
    out.p = to
    out.len = a.len
    return 0


cdef Py_ssize_t text_length(const char* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    cdef Py_ssize_t count = 0
    for k in range(n):
        count += (<unsigned char>p[k] & 0xC0) != 0x80
    return count


cdef Py_ssize_t text_prefix(const char* p, Py_ssize_t n, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k = 0
    while k < n:
        if (<unsigned char>p[k] & 0xC0) != 0x80:
            if count == 0:
                return k
            count -= 1
        k += 1
    return n


cdef Py_ssize_t blank_stripped(const char* p, Py_ssize_t n) noexcept nogil:
    while n > 0 and p[n - 1] == c' ':
        n -= 1
    return n


cdef int text_compare(const char* a, Py_ssize_t n, const char* b, Py_ssize_t m) noexcept nogil:
    cdef int r = memcmp(a, b, n if n < m else m)
    if r != 0:
        return r
    return (n > m) - (n < m)


cdef int text_concat(const Datum* a, const Datum* b, Arena* arena, Datum* out) noexcept nogil:
    cdef Py_ssize_t n = a.len
    cdef Py_ssize_t m = b.len
    cdef char* to
    # bpchar becomes text by losing its padding.
    if a.type == T_BPCHAR and out.type == T_TEXT:
        n = blank_stripped(a.p, n)
    if b.type == T_BPCHAR and out.type == T_TEXT:
        m = blank_stripped(b.p, m)
    if n + m > (1 << 30) - 1:
        return core_fail(b"54000", b"invalid memory alloc request size")
    to = arena_alloc(arena, n + m + 1)
    if to == NULL:
        return core_fail(b"53200", b"out of memory")
    if n:
        memcpy(to, a.p, n)
    if m:
        memcpy(to + n, b.p, m)
    out.p = to
    out.len = <int>(n + m)
    return 0
