# The text of booleans, integers, floats, uuids and byteas, and the check of UTF-8.

from libc.stdint cimport int64_t
from shardb._core.buffer cimport Buf

cdef const char* type_name(int type) noexcept nogil
# -1, or the offset of the first byte that is not valid UTF-8 (or is NUL).
cdef Py_ssize_t utf8_check(const char* s, Py_ssize_t n) noexcept nogil
cdef int fail_utf8(const char* s, Py_ssize_t n, Py_ssize_t at) noexcept nogil
# The characters written; `out` has room for 40.
cdef int float_text(double f, bint single, char* out) noexcept nogil
cdef int put_int(int64_t v, char* out) noexcept nogil
cdef void put_uuid(const char* p, Buf* out) noexcept nogil
# 0, or -1 with the error set.
cdef int int_from_text(int type, const char* s, Py_ssize_t n, int64_t* out) noexcept nogil
cdef int bool_from_text(const char* s, Py_ssize_t n, int64_t* out) noexcept nogil
cdef int float_from_text(int type, const char* s, Py_ssize_t n, double* out) noexcept nogil
cdef int uuid_from_text(const char* s, Py_ssize_t n, char* out) noexcept nogil
# The length, or -1; `out` has room for n bytes.
cdef int bytea_from_text(const char* s, Py_ssize_t n, char* out) noexcept nogil
