# A run of a tablet as an input of a merge: its rows one after the other, newest version first.
#
# The head is the row a source is at. A memtable's next head is found without the GIL; at the end of
# a segment's row group, `enter` must load the next one with it.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, key_prefix, node_key, node_newest, node_next,
    shardb_load_version,
)
from shardb._core.rowcodec cimport Layout, RowLayout
from shardb._core.rowcolumns cimport RowColumn
from shardb._core.rowmap cimport RowMap
from shardb._core.segment cimport Segment

# A column of a row group, as the target wants it.
ctypedef struct ViewColumn:
    bint missing                 # the segment does not have it
    const uint8_t* validity
    const int32_t* offsets
    const char* values

# An entered row group. A GroupView owns it and keeps what it points to.
ctypedef struct View:
    bint tombstones
    bint versions                # keys may repeat, or go on from the group before
    uint64_t link_ts
    const char* keys
    const int32_t* key_offsets
    const uint64_t* stamps
    const uint8_t* deleted
    ViewColumn* column           # the target's columns

ctypedef struct Source:
    int rank                     # 0 is the newest run
    bint memtable                # else it is a segment
    # --- the head
    const char* key
    uint64_t prefix              # memtable.key_prefix of it
    uint64_t ts
    uint32_t key_length
    bint deleted
    # --- where it is in a memtable
    Node* node
    const Version* version
    # --- where it is in a segment
    const View* view
    uint32_t row                 # in the group
    uint32_t end                 # rows of the group that are in the interval
    bint used                    # the batch has rows of the group
    int next_group
    int64_t rows_end             # the segment's rows before the end of the interval
    # --- the end of the interval; no bound if it is empty
    const char* end_key
    uint32_t end_length
    uint64_t end_prefix
    # --- its rows
    const Layout* layout
    const int32_t* source_of     # for each target column: the source's, or -1
    RowColumn* column            # for each target column: where rows have it
    const char* null_row         # of the source's layout: what tombstones have for a row
    const char* missing_row      # of the target's layout: what columns of -1 are
    int64_t missing_bytes        # of such columns in a row

cdef class GroupView:
    cdef View c
    cdef object held

cdef class RunSource:
    cdef Source c
    cdef readonly MemTable memtable
    cdef readonly Segment segment
    cdef RowMap map
    cdef RowLayout target
    cdef bytes end_key
    cdef bytes null_row
    cdef bytes missing_row
    cdef int32_t* identity
    cdef GroupView view
    cdef int describe(self) except -1
    # Goes to the first row of [start, end): 1, or 0 if there is none.
    cdef int open(self, bytes start, bytes end) except -1
    # Goes to the first row of the segment's next row group: 1, or 0 at the end of the interval.
    cdef int enter(self) except -1
    cdef GroupView load(self, int group)

cdef inline void to_version(Source* source, const Version* version) noexcept nogil:
    source.version = version
    source.ts = version.ts
    source.deleted = version.tombstone

cdef inline bint to_node(Source* source, Node* node) noexcept nogil:
    """Goes to the newest version of a memtable's key; False if that is past the interval."""
    if node == NULL:
        return False
    if (source.end_length and node.prefix >= source.end_prefix
            and key_compare(node_key(node), node.key_length, source.end_key,
                            source.end_length) >= 0):
        return False
    source.node = node
    source.key = node_key(node)
    source.key_length = node.key_length
    source.prefix = node.prefix
    to_version(source, node_newest(node))
    return True

cdef inline bint next_version(Source* source) noexcept nogil:
    """Goes to a memtable's next row; False at the end."""
    cdef const Version* older = shardb_load_version(&(<Version*> source.version).older)
    if older != NULL:
        to_version(source, older)
        return True
    return to_node(source, node_next(source.node))

cdef inline const char* view_key(const View* view, uint32_t row, uint32_t* length) noexcept nogil:
    length[0] = <uint32_t> (view.key_offsets[row + 1] - view.key_offsets[row])
    return view.keys + view.key_offsets[row]

cdef inline void to_row(Source* source, uint32_t row) noexcept nogil:
    """Goes to a row of the segment's entered group."""
    cdef const View* view = source.view
    source.row = row
    source.key = view_key(view, row, &source.key_length)
    source.prefix = key_prefix(source.key, source.key_length)
    source.ts = view.link_ts if view.link_ts else view.stamps[row]
    source.deleted = view.tombstones and (view.deleted[row >> 3] >> (row & 7)) & 1

cdef inline bint comes_first(const Source* a, const Source* b) noexcept nogil:
    """True if `a`'s head comes before `b`'s: by key, then newest version, then newest run."""
    cdef int order
    if a.prefix != b.prefix:
        return a.prefix < b.prefix
    order = key_compare(a.key, a.key_length, b.key, b.key_length)
    if order:
        return order < 0
    if a.ts != b.ts:
        return a.ts > b.ts
    return a.rank < b.rank
