"""Whether rows of a key interval have changed since a snapshot: what SERIALIZABLE validates.

The loop's thread. What cannot have a newer version is passed over by the largest timestamp of its
memtable, segment or row group; only the rest is looked at, version by version.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shardb._core.memtable cimport (
    MemTable, Node, key_compare, node_key, node_newest, node_next,
)
from shardb._core.runs cimport Runs
from shardb._core.segment cimport Segment, segment_ts


def changed_since(Runs runs not None, bytes start not None, bytes end not None, uint64_t ts):
    """True if a version of a key of `[start, end)` is newer than `ts`; an empty end is no bound.

    Deletions count; a transaction's own runs do not. CoreError XX001 if a segment is damaged.
    """
    for own, pieces in runs.runs:
        if own:
            continue
        for source, _ in pieces:
            if isinstance(source, MemTable):
                if memtable_changed(source, start, end, ts):
                    return True
            elif segment_changed(source, start, end, ts):
                return True
    return False


cdef bint memtable_changed(MemTable table, bytes start, bytes end, uint64_t ts):
    cdef const char* end_key = PyBytes_AS_STRING(end)
    cdef Py_ssize_t end_length = PyBytes_GET_SIZE(end)
    cdef Node* node
    if table.c.newest_ts <= ts:
        return False
    node = table.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
    while node != NULL:
        if end_length and key_compare(
            node_key(node), node.key_length, end_key, end_length
        ) >= 0:
            return False
        if node_newest(node).ts > ts:
            return True
        node = node_next(node)
    return False


cdef int segment_changed(Segment segment, bytes start, bytes end, uint64_t ts) except -1:
    cdef int64_t first = 0
    cdef int64_t last = segment.rows
    cdef int group
    cdef uint32_t row
    cdef int64_t number
    if not any_newer(segment, ts):
        return False
    if start:
        first = segment.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
    if end:
        last = segment.seek(PyBytes_AS_STRING(end), PyBytes_GET_SIZE(end))
    if first >= last:
        return False
    group = segment.group_of(first)
    while group < segment.group_count and <int64_t> segment.group[group].first_row < last:
        if segment.group[group].max_ts > ts:
            if segment.group[group].min_ts <= ts:
                segment.load_system(group)
            for row in range(segment.group[group].rows):
                number = <int64_t> segment.group[group].first_row + row
                if number < first:
                    continue
                if number >= last:
                    break
                if segment.group[group].min_ts > ts:
                    return True
                if segment_ts(segment, &segment.group[group], row) > ts:
                    return True
        group += 1
    return False


cdef bint any_newer(Segment segment, uint64_t ts) noexcept nogil:
    cdef int group
    for group in range(segment.group_count):
        if segment.group[group].max_ts > ts:
            return True
    return False
