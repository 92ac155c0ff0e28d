# JSON text: validation, and jsonb's normal form.

from shardb._core.buffer cimport Buf

# 0, or -1 with 22P02 set.
cdef int json_check(const char* s, Py_ssize_t n) noexcept nogil
# Appends jsonb's text form: keys sorted by length and bytes, the last duplicate kept.
cdef int jsonb_normalize(const char* s, Py_ssize_t n, Buf* out) noexcept nogil
