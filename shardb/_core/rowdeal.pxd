# Rows dealt out to ranges: keys and rows framed as Write messages have them.

from libc.stdint cimport uint32_t
from shardb._core.buffer cimport Buf
from shardb._core.datum cimport Datum
from shardb._core.keycodec cimport KeyCodec
from shardb._core.rowcodec cimport RowLayout

# What one range gets of a batch: `u32 length, bytes` items, and how long the last batch's were.
ctypedef struct Hand:
    Py_ssize_t count
    Buf keys
    Buf rows
    size_t keys_before
    size_t rows_before

# The first key of a range.
ctypedef struct Start:
    const char* key
    Py_ssize_t length

# Bytes that were written in C and are read through the buffer protocol; they never change.
cdef class Block:
    cdef Buf buf

cdef class RowDealer:
    cdef RowLayout layout
    cdef KeyCodec codec
    cdef tuple starts_kept      # owns what `starts` points to
    cdef int* positions
    cdef Py_ssize_t ranges
    cdef Start* starts
    cdef Hand* hands
    cdef Py_ssize_t last        # the range of the row before
    cdef Buf key
    cdef size_t key_limit
    cdef size_t row_limit
    cdef size_t batch_bytes
    cdef size_t held_limit
    cdef readonly size_t held   # bytes dealt and not taken
    cdef readonly bint full     # there is a batch to take before more is dealt

    # Deals one row, whose values are at the columns' scale and length: 0, or -1 with 23502, 54000
    # or 53200 set. One thread at a time.
    cdef int deal(self, const Datum* values) noexcept nogil
    # Makes room for a batch like the last one, so that no buffer has to grow.
    cdef void prepare(self) noexcept nogil
    cdef Py_ssize_t find(self) noexcept nogil
    cdef bint at_or_after(self, Py_ssize_t at) noexcept nogil
