# An immutable file of rows sorted by (key, newest first), mapped into memory: docs/formats/segment.md.
#
# Columns of a segment are numbered as in the file: 0 `_key`, 1 `_ts`, 2 `_deleted`, then the table's.
# Nothing is read before it is asked for: `load` checks a column of a row group against its checksum
# (and decompresses it) once; after that its pointers are valid as long as the Segment lives, but for
# a compressed one's, which `trim` may take away.
#
# Threads: `load`, `seek`, `find` and everything that is not `nogil` need the GIL. What is loaded may
# be read without it, by any thread.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from shardb._core.buffer cimport Buf
from shardb._core.datum cimport Datum
from shardb._core.rowcodec cimport Layout, RowLayout
from shardb._core.rowmap cimport ColumnMap

cdef enum:
    KEY_COLUMN = 0
    TS_COLUMN = 1
    DELETED_COLUMN = 2
    SYSTEM_COLUMNS = 3
    SAMPLE_ROWS = 16

# One column of one row group.
ctypedef struct Chunk:
    const uint8_t* validity      # Arrow's: bit set = not NULL; NULL pointer: no NULLs
    const int32_t* offsets       # variable columns: rows + 1 of them
    const char* values           # bits, fixed-width values, or the variable bytes
    bint ready                   # the pointers above are set and checked
    # where it lies in the file, from the index
    uint64_t validity_at
    uint64_t validity_length     # bytes in the file; 0: no NULLs
    uint64_t offsets_at
    uint64_t offsets_length
    uint64_t values_at
    uint64_t values_length
    uint32_t crc
    uint32_t nulls

ctypedef struct RowGroup:
    uint32_t rows
    bint tombstones              # it has some
    bint versions                # some key has more than one version in it or goes on from before
    uint64_t first_row           # the number of its first row in the segment
    uint64_t min_ts              # of its rows; both are the link timestamp where there is one
    uint64_t max_ts
    uint64_t first_prefix        # memtable.key_prefix of the first key
    const char* first_key
    const char* last_key
    uint32_t first_length
    uint32_t last_length
    Chunk* chunk                 # SYSTEM_COLUMNS + the table's columns
    # Set with the keys' first load. What every SAMPLE_ROWS-th key has after the bytes that all keys
    # share, as a memtable.key_prefix: few cache lines that lead to a few more.
    uint64_t* sample
    uint32_t sample_count
    uint32_t shared              # bytes that all keys begin with

cdef class Segment:
    cdef readonly object meta            # segmentformat.SegmentMeta
    cdef readonly object index           # segmentformat.SegmentIndex
    cdef readonly str path
    cdef readonly RowLayout layout       # of the rows it was written from
    cdef readonly uint64_t rows
    cdef readonly uint64_t link_ts       # the commit timestamp of all rows, or 0: each has its own
    cdef readonly int columns            # SYSTEM_COLUMNS + the table's
    cdef RowGroup* group
    cdef int group_count
    cdef bint compressed
    cdef object data                     # the mapped file: pyarrow.Buffer
    cdef const char* base
    cdef uint64_t size
    cdef const uint8_t* bloom
    cdef uint64_t bloom_blocks
    cdef list held                       # decompressed buffers by group * columns + column
    cdef Datum* values                   # scratch of `build`
    cdef int value_room
    # Makes a column of a group ready. CoreError XX001 names file and place if it is damaged.
    cdef int load(self, int group, int column) except -1
    # Keys, and timestamps and tombstones where there are any.
    cdef int load_system(self, int group) except -1
    # What keeps the pointers into a group's loaded columns valid while it is referenced.
    cdef object hold(self, int group)
    # The group of a row by its number.
    cdef int group_of(self, int64_t row) noexcept nogil
    # The number of the first row with a key >= `key`; `rows` if there is none.
    cdef int64_t seek(self, const char* key, Py_ssize_t key_length) except -1
    # 1 and the row of the newest version of exactly this key with a timestamp <= `ts` (it may be a
    # tombstone); 0 if there is none.
    cdef int find(self, const char* key, Py_ssize_t key_length, uint64_t hash, uint64_t ts,
                  int* group, uint32_t* row) except -1
    # Appends the row of the target layout that `map` (NULL: its own) makes of a row, no tombstone.
    cdef int build(self, int group, uint32_t row, const ColumnMap* map, const Layout* target,
                   Buf* out) except -1
    cdef int describe(self, RowGroup* to, object group) except -1
    cdef int load_first(self, int group, int column) except -1
    cdef object damaged(self, int group, int column, str what)
    cdef object piece(self, int group, int column, uint64_t at, uint64_t length, uint64_t wanted,
                      str what)

# --- of rows in loaded columns

cdef inline uint64_t segment_ts(Segment segment, const RowGroup* group, uint32_t row) noexcept nogil:
    """The commit timestamp. REQUIRES: TS_COLUMN is loaded, or the segment is linked."""
    if segment.link_ts:
        return segment.link_ts
    return (<const uint64_t*> group.chunk[TS_COLUMN].values)[row]

cdef inline bint segment_deleted(const RowGroup* group, uint32_t row) noexcept nogil:
    """True for a tombstone. REQUIRES: DELETED_COLUMN is loaded."""
    return ((<const uint8_t*> group.chunk[DELETED_COLUMN].values)[row >> 3] >> (row & 7)) & 1

cdef inline const char* segment_key(const RowGroup* group, uint32_t row, uint32_t* length) noexcept nogil:
    """REQUIRES: KEY_COLUMN is loaded."""
    cdef const int32_t* offsets = group.chunk[KEY_COLUMN].offsets
    length[0] = <uint32_t> (offsets[row + 1] - offsets[row])
    return group.chunk[KEY_COLUMN].values + offsets[row]

# The first row of a group with a key >= `key`, `rows` if there is none. REQUIRES: keys are loaded.
cdef uint32_t group_seek(const RowGroup* of, const char* key, Py_ssize_t key_length) noexcept nogil
