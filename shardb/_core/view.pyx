"""The bytes of an object with the buffer protocol, held as long as the View lives; None has none."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, uint32_t


cdef class View:
    def __cinit__(self, data):
        self.held = False
        self.p = NULL
        self.n = 0
        if data is not None:
            PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
            self.held = True
            self.p = <const char*> self.view.buf
            self.n = self.view.len

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef bint offsets_fit(View offsets, uint32_t rows, size_t size) noexcept nogil:
    cdef const int32_t* at = <const int32_t*> offsets.p
    cdef uint32_t i
    cdef bint falls = False
    if offsets.n < (<size_t> rows + 1) * sizeof(int32_t):
        return False
    for i in range(rows):
        falls |= at[i + 1] < at[i]
    return not falls and at[0] >= 0 and <size_t> at[rows] <= size
