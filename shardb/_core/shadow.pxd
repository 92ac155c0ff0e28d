# Which rows of a segment are superseded by newer runs, learned once and kept.
#
# A *mark* (row, ts) says that a newer run has a version of the row's key that is committed at `ts`,
# its oldest: from `ts` on the row is not seen. Marks are facts about the tablet, whoever scans and
# whatever files are live: they are only added. They may be forgotten at any time, and are learned
# again by the next scan.
#
# What is newer is *absorbed*: of a memtable, the keys inserted since the last time; of a segment,
# the keys in the interval of a row group, once. A transaction's own runs are not known to
# others: they are absorbed in a Shadow of its scan's own, which is asked about the newest snapshot.
#
# Threads: any, several at once; a lock a Shadow.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from shardb._core.memtable cimport MemTable, Node
from shardb._core.segkeys cimport SegmentKeys
from shardb._core.segment cimport Segment

ctypedef struct Mark:
    uint64_t ts
    uint32_t row

ctypedef struct GroupMarks:
    Mark* mark
    uint32_t count
    uint32_t room
    uint64_t min_ts              # of the marks
    uint64_t max_ts
    # Rows that the newest snapshot does not see, as bits; NULL until one asks.
    uint8_t* hidden
    uint32_t in_hidden           # marks that are in it

cdef class Shadow:
    cdef object lock
    cdef GroupMarks* marks       # by row group
    cdef int group_count
    cdef uint64_t bytes
    cdef dict nodes              # memtable number -> address of the last node absorbed
    cdef dict groups             # segment number -> a byte a group: 1 if it is absorbed there
    # Absorbs the memtables, and in `group` the segments of `newer`.
    cdef int absorb(self, Segment segment, int group, list newer) except -1
    # Adds the bits of rows that are not visible at `ts`, be it for newer versions in the segment or
    # in what is absorbed, for their own timestamp, or as tombstones. 0 if there is none, else 1.
    cdef int hide(self, Segment segment, int group, uint64_t ts, uint8_t* hidden) except -1
    # Adds the bits of marked rows only.
    cdef int hide_marked(self, int group, uint64_t ts, uint8_t* hidden) except -1
    cdef int hide_latest(self, Segment segment, int group, uint8_t* hidden) except -1
    cdef bint is_absorbed(self, MemTable memtable) except -1
    cdef bytearray absorbed_of(self, Segment newer)
    cdef int absorb_memtable(self, SegmentKeys keys, MemTable memtable) except -1
    cdef int absorb_segment(self, SegmentKeys keys, int group, Segment newer) except -1
    cdef Node* walk(self, SegmentKeys keys, Node* node, bint by_key, Node** last) noexcept nogil
    cdef int mark_key(self, SegmentKeys keys, Node* node) noexcept nogil
    cdef int64_t merge(self, SegmentKeys keys, int group, SegmentKeys newer,
                       uint32_t row) noexcept nogil
    cdef int add(self, int group, uint32_t row, uint64_t ts) noexcept nogil
    cdef int make_room(self, GroupMarks* of) noexcept nogil

cdef class Shadows:
    cdef dict shadows            # Shadow by segment number
    cdef readonly uint64_t bytes_max
    cdef Shadow of(self, Segment segment)
