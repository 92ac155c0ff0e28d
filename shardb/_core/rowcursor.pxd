# Rows of a key interval in key order (or reverse) at a timestamp, a transaction's own writes first.
#
# Nothing is copied that need not be: keys and rows point into the runs or the own writes, or into
# the runs' scratch, and are valid until the next step. Belongs to the writer thread.

from libc.stdint cimport uint32_t, uint64_t
from shardb._core.memtable cimport Node
from shardb._core.runs cimport Run, Runs

ctypedef struct OwnWrite:
    const char* key
    Py_ssize_t key_length
    const char* row              # NULL: deleted
    Py_ssize_t row_length

# Where a cursor stands in one run, or in the own writes.
ctypedef struct Source:
    const Run* run               # NULL: the own writes
    bint ended
    const char* key              # the key it stands at
    uint32_t key_length
    Py_ssize_t at                # own writes: the index
    Node* node                   # memtables
    int piece                    # segments: the first row of the key, its newest version
    int group
    uint32_t row

cdef class RowCursor:
    cdef Runs runs
    cdef bytes low               # the interval [low, high); high empty means to the last key
    cdef bytes high
    cdef uint64_t ts
    cdef bint reverse
    cdef list own_items          # keeps the own writes alive
    cdef OwnWrite* own           # ascending by key
    cdef Py_ssize_t own_count
    cdef Source* source
    cdef int source_count
    # the current row
    cdef const char* key
    cdef uint32_t key_length
    cdef const char* row
    cdef uint32_t row_length
    cdef uint64_t commit_ts      # 0: an own write
    cdef uint64_t newest_ts      # largest commit timestamp met, of deletions too

    # 1 and the current row, or 0 at the end.
    cdef int next(self) except -1
    cdef int take_own(self, object overlay) except -1
    cdef int start(self, Source* s) except -1
    cdef int start_segments(self, Source* s) except -1
    cdef int advance(self, Source* s) except -1
    cdef int settle(self, Source* s) except -1
    cdef int rewind(self, Source* s) except -1
    cdef bint forward(self, Source* s)
    cdef bint backward(self, Source* s)
    cdef int visible(self, Source* s) except -1
