# cython: language_level=3
"""Lifts literals out of simple statements, so that texts that differ only in them share a plan.

`fingerprint(b"SELECT a FROM t WHERE k = 5")` is `(b"SELECT a FROM t WHERE k = $1", b"i", [b"5"])`.
The tokenizer follows PostgreSQL's lexical rules (manual 4.1). It is conservative: wherever a literal
is more than a value (typed literals, type modifiers, ordinals of ORDER BY and GROUP BY, string
continuation, escapes) the answer is None and the statement takes the long way.

Kinds, one byte a literal: i fits int4, l fits int8, n numeric, s string (type unknown).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

cdef enum:
    TEXT_MAX_BYTES = 16384
    LITERALS_MAX = 128
    DEPTH_MAX = 64

cdef enum Token:
    START
    WORD          # identifier or a keyword without meaning here
    VALUE_WORD    # keyword after which a plain value may come
    TYPE_WORD     # type name that takes modifiers
    QUOTED
    NUMBER
    STRING
    CAST
    AS
    OPEN
    CLOSE
    COMMA
    DOT
    OPERATOR

# Keywords after which a string literal is a plain value and not part of a typed literal.
cdef frozenset _VALUE_WORDS = frozenset(
    b"SELECT WHERE AND OR NOT IN LIKE ILIKE BETWEEN THEN ELSE WHEN CASE VALUES LIMIT OFFSET "
    b"RETURNING HAVING ON DISTINCT ALL ANY".split()
)
cdef frozenset _TYPE_WORDS = frozenset(
    b"VARYING CHAR CHARACTER VARCHAR BPCHAR NUMERIC DECIMAL DEC TIMESTAMP TIMESTAMPTZ TIME TIMETZ "
    b"BIT FLOAT NCHAR".split()
)
# Words whose presence makes a literal mean something else, or that we would rather not judge.
cdef frozenset _REFUSED_WORDS = frozenset(
    b"INTERVAL FETCH CAST WITH WINDOW OVER UNION INTERSECT EXCEPT COLLATE ESCAPE SIMILAR "
    b"OVERLAY GROUPING ROLLUP CUBE TABLESAMPLE PRECISION".split()
)
cdef dict _WORD_CLASS = {}
for _word in _VALUE_WORDS:
    _WORD_CLASS[_word] = <int> VALUE_WORD
for _word in _TYPE_WORDS:
    _WORD_CLASS[_word] = <int> TYPE_WORD
for _word in _REFUSED_WORDS:
    _WORD_CLASS[_word] = -1
_WORD_CLASS[b"AS"] = <int> AS
_WORD_CLASS[b"ORDER"] = -2
_WORD_CLASS[b"GROUP"] = -2
_WORD_CLASS[b"LIMIT"] = -3
_WORD_CLASS[b"OFFSET"] = -3

cdef uint8_t[256] _class           # 0 other, 1 space, 2 word start, 3 digit, 4 operator
cdef int _c
for _c in range(256):
    _class[_c] = 0
for _c in (0x20, 0x09, 0x0A, 0x0D, 0x0C, 0x0B):
    _class[_c] = 1
for _c in range(0x41, 0x5B):
    _class[_c] = 2
    _class[_c + 0x20] = 2
for _c in range(0x80, 0x100):
    _class[_c] = 2
_class[0x5F] = 2
for _c in range(0x30, 0x3A):
    _class[_c] = 3
for _c in b"+-*/<>=~!@#%^&|`?":
    _class[_c] = 4


cdef inline bint _is_word(uint8_t c) noexcept nogil:
    return _class[c] == 2 or _class[c] == 3 or c == 0x24


cdef inline char _int_kind(const char* at, Py_ssize_t length) noexcept nogil:
    while length > 1 and at[0] == 0x30:
        at += 1
        length -= 1
    if length < 10 or (length == 10 and memcmp(at, b"2147483647", 10) <= 0):
        return 0x69
    if length < 19 or (length == 19 and memcmp(at, b"9223372036854775807", 19) <= 0):
        return 0x6C
    return 0x6E


cdef int _classify_word(const char* at, Py_ssize_t length) except -100:
    # WORD, or what _WORD_CLASS says of it. All special words have at most 12 letters.
    cdef char[16] upper
    cdef Py_ssize_t i
    cdef object found
    cdef uint8_t c
    if length < 2 or length > 12:
        return WORD
    for i in range(length):
        c = <uint8_t> at[i]
        if 0x61 <= c <= 0x7A:
            c -= 0x20
        elif not 0x41 <= c <= 0x5A:
            return WORD
        upper[i] = <char> c
    found = _WORD_CLASS.get(PyBytes_FromStringAndSize(upper, length))
    if found is None:
        return WORD
    return <int> found


cdef bint _is_verb(const char* at, Py_ssize_t length) noexcept nogil:
    cdef char[8] upper
    cdef Py_ssize_t i
    if length != 6:
        return False
    for i in range(6):
        upper[i] = <char> (<uint8_t> at[i] & 0xDF)
    return (memcmp(upper, b"SELECT", 6) == 0 or memcmp(upper, b"INSERT", 6) == 0
            or memcmp(upper, b"UPDATE", 6) == 0 or memcmp(upper, b"DELETE", 6) == 0)


def fingerprint(bytes text not None):
    """(text with $n for each literal, kinds, literals), or None if lifting is not certainly safe."""
    cdef const char* s = PyBytes_AS_STRING(text)
    cdef Py_ssize_t n = len(text)
    cdef Py_ssize_t i = 0, begin, out = 0, depth
    cdef bytes result
    cdef char* to
    cdef char[LITERALS_MAX] kinds
    cdef Py_ssize_t count = 0
    cdef list literals = []
    cdef int previous = START, before = START, word
    cdef bint space = False, ordinals = False, doubled, ended = False
    cdef uint8_t c
    cdef char kind
    cdef bytes literal
    if n > TEXT_MAX_BYTES:
        return None
    # A literal takes at least one byte and becomes at most `$128`.
    result = PyBytes_FromStringAndSize(NULL, n + 4 * LITERALS_MAX + 8)
    to = PyBytes_AS_STRING(result)
    while i < n:
        c = <uint8_t> s[i]
        if _class[c] == 1:
            space = True
            i += 1
            continue
        if c == 0x2D and i + 1 < n and s[i + 1] == 0x2D:  # -- comment
            while i < n and s[i] != 0x0A:
                i += 1
            space = True
            continue
        if c == 0x2F and i + 1 < n and s[i + 1] == 0x2A:  # /* comment */, nested
            depth = 1
            i += 2
            while i < n and depth:
                if s[i] == 0x2A and i + 1 < n and s[i + 1] == 0x2F:
                    depth -= 1
                    i += 2
                elif s[i] == 0x2F and i + 1 < n and s[i + 1] == 0x2A:
                    depth += 1
                    i += 2
                else:
                    i += 1
            if depth:
                return None
            space = True
            continue
        if c == 0x3B:  # ;
            ended = True
            i += 1
            continue
        if ended:
            return None
        if space and out:
            to[out] = 0x20
            out += 1
        if _class[c] == 2:
            begin = i
            while i < n and _is_word(<uint8_t> s[i]):
                to[out] = s[i]
                out += 1
                i += 1
            if i < n and s[i] == 0x27:  # E'', B'', X'', N'' and the like
                return None
            if i < n and s[i] == 0x26 and i - begin == 1 and (s[begin] | 0x20) == 0x75:  # U&
                return None
            if previous == START:
                if not _is_verb(s + begin, i - begin):
                    return None
                word = VALUE_WORD
            elif previous == DOT:
                word = WORD
            else:
                word = _classify_word(s + begin, i - begin)
                if word == -1:
                    return None
                if word == -2:
                    ordinals = True
                    word = WORD
                elif word == -3:
                    ordinals = False
                    word = VALUE_WORD
            before = previous
            previous = word
            space = False
            continue
        if previous == START:
            return None
        if _class[c] == 3 or (c == 0x2E and i + 1 < n and _class[<uint8_t> s[i + 1]] == 3):
            if ordinals or previous == QUOTED or previous == NUMBER or previous == STRING \
                    or previous == CLOSE or previous == DOT or previous == CAST \
                    or (c == 0x2E and previous == WORD):
                return None
            begin = i
            kind = 0x69
            while i < n and _class[<uint8_t> s[i]] == 3:
                i += 1
            if i < n and s[i] == 0x2E:
                kind = 0x6E
                i += 1
                while i < n and _class[<uint8_t> s[i]] == 3:
                    i += 1
            if i < n and (s[i] | 0x20) == 0x65:
                kind = 0x6E
                i += 1
                if i < n and (s[i] == 0x2B or s[i] == 0x2D):
                    i += 1
                if i >= n or _class[<uint8_t> s[i]] != 3:
                    return None
                while i < n and _class[<uint8_t> s[i]] == 3:
                    i += 1
            if i < n and (_is_word(<uint8_t> s[i]) or s[i] == 0x2E):
                return None
            if kind == 0x69:
                kind = _int_kind(s + begin, i - begin)
            literal = PyBytes_FromStringAndSize(s + begin, i - begin)
            word = NUMBER
        elif c == 0x27:  # '
            if ordinals or previous == WORD or previous == TYPE_WORD or previous == QUOTED \
                    or previous == NUMBER or previous == STRING or previous == CLOSE \
                    or previous == DOT or previous == CAST or previous == AS:
                return None
            i += 1
            begin = i
            doubled = False
            while True:
                if i >= n:
                    return None
                if s[i] == 0x27:
                    if i + 1 < n and s[i + 1] == 0x27:
                        doubled = True
                        i += 2
                        continue
                    break
                i += 1
            literal = PyBytes_FromStringAndSize(s + begin, i - begin)
            if doubled:
                literal = literal.replace(b"''", b"'")
            i += 1
            kind = 0x73
            word = STRING
        else:
            if c == 0x22:  # "
                begin = i
                i += 1
                while True:
                    if i >= n:
                        return None
                    if s[i] == 0x22:
                        if i + 1 < n and s[i + 1] == 0x22:
                            i += 2
                            continue
                        break
                    i += 1
                i += 1
                while begin < i:
                    to[out] = s[begin]
                    out += 1
                    begin += 1
                word = QUOTED
            elif c == 0x28:  # ( after a type name holds modifiers
                if previous == TYPE_WORD or (
                    (previous == WORD or previous == QUOTED) and (before == CAST or before == AS)
                ):
                    return None
                word = OPEN
            elif c == 0x29:
                word = CLOSE
            elif c == 0x2C:
                word = COMMA
            elif c == 0x2E:
                word = DOT
            elif c == 0x3A:  # :: only
                if i + 1 >= n or s[i + 1] != 0x3A:
                    return None
                to[out] = 0x3A
                out += 1
                i += 1
                word = CAST
            elif _class[c] == 4:
                word = OPERATOR
            else:  # parameters, dollar quotes, subscripts, NUL, ...
                return None
            if c != 0x22:
                to[out] = <char> c
                out += 1
                i += 1
            before = previous
            previous = word
            space = False
            continue
        # a literal was read
        if count == LITERALS_MAX:
            return None
        literals.append(literal)
        kinds[count] = kind
        count += 1
        to[out] = 0x24
        out += 1
        if count >= 100:
            to[out] = <char> (0x30 + count // 100)
            out += 1
        if count >= 10:
            to[out] = <char> (0x30 + count // 10 % 10)
            out += 1
        to[out] = <char> (0x30 + count % 10)
        out += 1
        before = previous
        previous = word
        space = False
    if previous == START:
        return None
    return to[:out], kinds[:count], literals
