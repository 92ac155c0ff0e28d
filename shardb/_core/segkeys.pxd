# The keys of a segment for code that runs without the GIL.
#
# A SegmentKeys belongs to one thread and one call or scan; it keeps what it has loaded alive. Its
# `nogil` methods return NOT_LOADED where they meet a row group whose keys are not there yet: the
# caller takes the GIL, calls `load(wanted)` and tries again.

from libc.stdint cimport int32_t, uint32_t, uint64_t
from shardb._core.memtable cimport key_compare
from shardb._core.segment cimport RowGroup, Segment

cdef enum:
    NOT_LOADED = -1

# The loaded system columns of a row group.
ctypedef struct GroupKeys:
    const int32_t* offsets       # NULL: not loaded
    const char* keys
    const uint64_t* ts           # NULL: not asked for, or all rows are at the link timestamp

cdef inline const char* group_key(
    const GroupKeys* of, uint32_t row, uint32_t* length
) noexcept nogil:
    """REQUIRES: it is loaded."""
    length[0] = <uint32_t> (of.offsets[row + 1] - of.offsets[row])
    return of.keys + of.offsets[row]

cdef inline int group_key_compare(
    const GroupKeys* of, uint32_t row, const char* key, uint32_t length
) noexcept nogil:
    """Byte order of a row's key and another one. REQUIRES: it is loaded."""
    return key_compare(
        of.keys + of.offsets[row], of.offsets[row + 1] - of.offsets[row], key, length
    )

# The first row of [start, rows) with a key >= `key`, `rows` if there is none; quick if it is near
# `start`. REQUIRES: it is loaded.
cdef uint32_t group_gallop(const GroupKeys* of, uint32_t rows, uint32_t start, const char* key,
                           uint32_t length) noexcept nogil

cdef class SegmentKeys:
    cdef Segment segment
    cdef const RowGroup* group   # the segment's
    cdef int group_count
    cdef GroupKeys* keys         # by group
    cdef bint with_ts
    cdef int wanted              # the group that was not loaded
    cdef int last_group          # where the last `seek` ended, for the next one
    cdef uint32_t last_row
    cdef list held
    cdef int load(self, int group) except -1
    cdef bint begins_before(self, int group, uint64_t prefix, const char* key,
                            uint32_t length) noexcept nogil
    cdef uint64_t row_ts(self, int group, uint32_t row) noexcept nogil
    # 1 and the first row with a key >= `key`; 0 if there is none. Ascending keys are found fastest.
    cdef int seek(self, const char* key, uint32_t length, int* group, uint32_t* row) noexcept nogil
    # The key of a row; of a group's first one it need not be loaded.
    cdef const char* key(self, int group, uint32_t row, uint32_t* length) noexcept nogil
    # 1 and the oldest timestamp of the key at this row, its newest version. REQUIRES: `with_ts`.
    cdef int oldest_ts(self, int group, uint32_t row, uint64_t* ts) noexcept nogil
    # 1 if there is a version of exactly this key with a timestamp <= `ts`, 0 if not. As above.
    cdef int has(self, const char* key, uint32_t length, uint64_t hash, uint64_t ts) noexcept nogil
