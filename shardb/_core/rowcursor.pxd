# Rows of a key interval in key order (or reverse) at a timestamp, a transaction's own writes first.
#
# Nothing is copied: keys and rows point into the memtable or into the own writes.

from libc.stdint cimport uint64_t
from shardb._core.memtable cimport MemTable, Node

ctypedef struct OwnWrite:
    const char* key
    Py_ssize_t key_length
    const char* row              # NULL: deleted
    Py_ssize_t row_length

ctypedef struct Cursor:
    # the interval [low, high); high_length 0 means to the last key
    const char* low
    Py_ssize_t low_length
    const char* high
    Py_ssize_t high_length
    bint reverse
    uint64_t ts
    Node* node
    OwnWrite* own                # ascending by key
    Py_ssize_t own_count
    Py_ssize_t own_at
    # the current row
    const char* key
    Py_ssize_t key_length
    const char* row
    Py_ssize_t row_length
    uint64_t newest_ts           # largest commit timestamp met, of deletions too

# Positions the cursor before the first row; all fields but node, own_at and the current row are set.
cdef void cursor_open(Cursor* c, MemTable table) noexcept
# 1 and the current row, or 0 at the end.
cdef int cursor_next(Cursor* c, MemTable table) noexcept
