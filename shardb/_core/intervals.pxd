# The text input of intervals.

from libc.stdint cimport int32_t, int64_t

cdef int interval_from_text(const char* s, Py_ssize_t n, int32_t* months, int32_t* days,
                            int64_t* us) noexcept nogil
