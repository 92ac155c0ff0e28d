# The bytes of a Python object, to be read without the GIL.

from libc.stdint cimport uint32_t

cdef class View:
    cdef Py_buffer view
    cdef bint held
    cdef const char* p       # NULL if made of None
    cdef size_t n

# True if `offsets` are those of `rows` variable values in `size` bytes: they never fall.
cdef bint offsets_fit(View offsets, uint32_t rows, size_t size) noexcept nogil
