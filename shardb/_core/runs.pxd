# What a tablet consists of at a moment: its runs, newest first, and rows looked up in them.
#
# A run is a memtable, or segments that share no key, in key order. For one key, everything in a run
# is newer than everything in the runs after it, so that the first version found is the answer. All
# rows come out in one layout, the target's; runs of other layouts have a RowMap.
#
# Immutable but for what the active memtable takes. Everything here belongs to the writer thread.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shardb._core.buffer cimport Buf
from shardb._core.memtable cimport Version
from shardb._core.rowcodec cimport Layout, RowLayout
from shardb._core.rowmap cimport ColumnMap
from cpython.ref cimport PyObject

ctypedef struct Piece:
    PyObject* source             # MemTable or Segment, borrowed from Runs.runs
    const ColumnMap* map         # NULL: the target's layout
    const Layout* layout         # of the source's rows
    # of segments
    const char* min_key
    const char* max_key
    uint32_t min_length
    uint32_t max_length

ctypedef struct Run:
    bint segments                # else one memtable
    bint own                     # a transaction's own: visible at any timestamp, as of none
    int first                    # pieces [first, end)
    int end

cdef class Runs:
    cdef readonly RowLayout layout
    cdef readonly tuple runs
    cdef Run* run
    cdef int run_count
    cdef Piece* piece
    cdef int piece_count
    cdef Buf scratch             # the last row that had to be put together
    # The row visible at `ts`: 1 and where it is (valid until the next call); 0 if there is none or
    # it is deleted. *commit_ts is the visible version's (a tombstone's too), 0 if there is none.
    cdef int lookup(self, const char* key, Py_ssize_t key_length, uint64_t ts, const char** row,
                    uint32_t* row_length, uint64_t* commit_ts) except -1
    # The piece of a run of segments that may hold the key, or -1.
    cdef int piece_of(self, const Run* run, const char* key, Py_ssize_t key_length) noexcept
    # A memtable's version (no tombstone) as a row of the target layout.
    cdef int take_version(self, const Piece* piece, const Version* version, const char** row,
                          uint32_t* row_length) except -1
    cdef int scratched(self, const char** row, uint32_t* row_length) except -1
    # The same for a segment's row.
    cdef int take_row(self, const Piece* piece, int group, uint32_t at, const char** row,
                      uint32_t* row_length) except -1
