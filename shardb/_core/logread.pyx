"""Walks over the records in bytes of a log file, without an object for each of their parts.

The format is that of docs/formats/log.md; `shardb/storage/logfile.py` writes it.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from shardb._core.crc32c cimport crc32c_raw

cdef enum:
    PREFIX_BYTES = 8      # length and checksum
    FIELDS_BYTES = 21     # range, epoch, index, kind


@cython.final
cdef class RecordWalk:
    """Iterates over valid records: (range, epoch, index, kind, payload offset, payload bytes).

    Offsets count from the start of `data`. `offset` is where the next record begins: at the end, the
    first that is not valid. `needed` is how many bytes that one has if its length is to be
    believed, 0 if it cannot be a record: where `data` has fewer, more may make it valid.
    """

    cdef Py_buffer view
    cdef readonly Py_ssize_t offset
    cdef readonly Py_ssize_t needed

    def __cinit__(self, data, Py_ssize_t offset=0):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        if not 0 <= offset <= self.view.len:
            raise ValueError(f"offset {offset} of {self.view.len} bytes")
        self.offset = offset

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    def __iter__(self):
        return self

    def __next__(self):
        cdef const char* at = <const char*> self.view.buf + self.offset
        cdef Py_ssize_t left = self.view.len - self.offset
        cdef uint32_t length, checksum, epoch
        cdef uint64_t range_id, index
        cdef Py_ssize_t start
        self.needed = PREFIX_BYTES + FIELDS_BYTES
        if left < self.needed:
            raise StopIteration
        memcpy(&length, at, 4)
        memcpy(&checksum, at + 4, 4)
        if length < FIELDS_BYTES:
            self.needed = 0
            raise StopIteration
        self.needed = PREFIX_BYTES + <Py_ssize_t> length
        if left < self.needed:
            raise StopIteration
        if crc32c_raw(0, at + PREFIX_BYTES, length) != checksum:
            self.needed = 0
            raise StopIteration
        memcpy(&range_id, at + 8, 8)
        memcpy(&epoch, at + 16, 4)
        memcpy(&index, at + 20, 8)
        start = self.offset + PREFIX_BYTES + FIELDS_BYTES
        self.offset += self.needed
        return range_id, epoch, index, <unsigned char> at[28], start, length - FIELDS_BYTES
