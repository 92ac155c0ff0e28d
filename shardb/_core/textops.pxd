# Text operators on UTF-8 bytes: LIKE, case folding, length, concatenation.

from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum

# 1 if `text` matches the LIKE pattern, 0 if not, -1 with the error set. `escape` is the escape
# byte, or 0 for none. Wildcards match characters, not bytes.
cdef int like_match(const char* text, Py_ssize_t n, const char* pattern, Py_ssize_t m,
                    char escape) noexcept nogil
# lower() or upper() of a text; the result lives in the arena.
cdef int fold_case(const Datum* a, bint upper, Arena* arena, Datum* out) noexcept nogil
# Characters of a UTF-8 text.
cdef Py_ssize_t text_length(const char* p, Py_ssize_t n) noexcept nogil
# Bytes of the first `count` characters.
cdef Py_ssize_t text_prefix(const char* p, Py_ssize_t n, Py_ssize_t count) noexcept nogil
# Length without trailing blanks.
cdef Py_ssize_t blank_stripped(const char* p, Py_ssize_t n) noexcept nogil
cdef int text_compare(const char* a, Py_ssize_t n, const char* b, Py_ssize_t m) noexcept nogil
# a || b
cdef int text_concat(const Datum* a, const Datum* b, Arena* arena, Datum* out) noexcept nogil
