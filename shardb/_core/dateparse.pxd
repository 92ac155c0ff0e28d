# The text input of dates, times and timestamps.

from libc.stdint cimport int64_t

# 0, or -1 with 22007 / 22008 set.
cdef int date_from_text(const char* s, Py_ssize_t n, int64_t* days) noexcept nogil
cdef int time_from_text(const char* s, Py_ssize_t n, int64_t* us) noexcept nogil
cdef int timestamp_from_text(const char* s, Py_ssize_t n, bint zone, int64_t* us) noexcept nogil
