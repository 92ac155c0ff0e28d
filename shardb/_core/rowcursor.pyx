"""Rows of a key interval over a tablet's runs, a transaction's own writes first (see the .pxd).

Each run has a source that stands at its next key; the least key (in the cursor's direction) is next,
and the newest run that has a visible version of it decides.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from shardb._core.coreerror import CoreError
from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, node_key, node_next, node_version,
)
from shardb._core.runs cimport Piece, Run, Runs
from shardb._core.segment cimport (
    RowGroup, Segment, segment_deleted, segment_key, segment_ts,
)

cdef uint64_t NEWEST = 0xFFFFFFFFFFFFFFFF

cdef enum:
    NOT_VISIBLE = 0
    VISIBLE = 1
    DELETED = 2


@cython.final
@cython.freelist(8)
cdef class RowCursor:
    """Iterates (key, row, commit_ts). `overlay`: own writes by key (None deletes), or None."""

    def __cinit__(self, Runs runs not None, bytes low not None, bytes high not None, uint64_t ts,
                  bint reverse, overlay):
        cdef int at
        self.runs = runs
        self.low = low
        self.high = high
        self.ts = ts
        self.reverse = reverse
        self.source = <Source*> calloc(runs.run_count + 1, sizeof(Source))
        if self.source == NULL:
            raise MemoryError
        if overlay:
            self.take_own(overlay)
        for at in range(runs.run_count):
            self.source[self.source_count].run = &runs.run[at]
            self.start(&self.source[self.source_count])
            self.source_count += 1

    def __dealloc__(self):
        free(self.source)
        free(self.own)

    def __iter__(self):
        return self

    def __next__(self):
        if not self.next():
            raise StopIteration
        return (
            PyBytes_FromStringAndSize(self.key, self.key_length),
            PyBytes_FromStringAndSize(self.row, self.row_length),
            self.commit_ts,
        )

    cdef int take_own(self, object overlay) except -1:
        """Sorts the own writes of the interval. 40001 if their layout is not that of the runs."""
        cdef Py_ssize_t at
        cdef bytes key
        cdef bytes row
        cdef uint16_t version
        cdef Source* s = &self.source[0]
        self.own_items = sorted([
            item for item in overlay.items()
            if item[0] >= self.low and (not self.high or item[0] < self.high)
        ])
        self.own_count = len(self.own_items)
        self.own = <OwnWrite*> malloc((self.own_count + 1) * sizeof(OwnWrite))
        if self.own == NULL:
            raise MemoryError
        for at in range(self.own_count):
            key, row = self.own_items[at]
            self.own[at].key = PyBytes_AS_STRING(key)
            self.own[at].key_length = PyBytes_GET_SIZE(key)
            self.own[at].row = NULL
            self.own[at].row_length = 0
            if row is not None:
                self.own[at].row = PyBytes_AS_STRING(row)
                self.own[at].row_length = PyBytes_GET_SIZE(row)
                memcpy(&version, self.own[at].row, 2)
                if version != self.runs.layout.c.schema_version:
                    raise CoreError("40001", "the table was altered since the transaction wrote it")
        s.at = self.own_count - 1 if self.reverse else 0
        self.source_count = 1
        return self.settle(s)

    cdef int next(self) except -1:
        cdef Source* best
        cdef Source* s
        cdef int at
        cdef int first
        cdef int order
        cdef int seen
        while True:
            first = -1
            for at in range(self.source_count):
                s = &self.source[at]
                if s.ended:
                    continue
                if first >= 0:
                    best = &self.source[first]
                    order = key_compare(s.key, s.key_length, best.key, best.key_length)
                    if (order <= 0) if self.reverse else (order >= 0):
                        continue
                first = at
            if first < 0:
                return 0
            best = &self.source[first]
            self.key = best.key
            self.key_length = best.key_length
            seen = self.visible(best)
            self.advance(best)
            for at in range(first + 1, self.source_count):
                s = &self.source[at]
                if s.ended or key_compare(s.key, s.key_length, self.key, self.key_length) != 0:
                    continue
                if seen == NOT_VISIBLE:
                    seen = self.visible(s)
                self.advance(s)
            if seen == VISIBLE:
                return 1

    cdef int visible(self, Source* s) except -1:
        """Whether the source's key has a version to be seen, which becomes the current row."""
        cdef const Piece* piece
        cdef const Version* version
        cdef Segment segment
        cdef RowGroup* of
        cdef OwnWrite* own
        cdef int group = s.group
        cdef uint32_t row = s.row
        cdef const char* key
        cdef uint32_t length
        cdef uint64_t ts
        if s.run == NULL:
            own = &self.own[s.at]
            self.row = own.row
            self.row_length = <uint32_t> own.row_length
            self.commit_ts = 0
            return DELETED if own.row == NULL else VISIBLE
        if not s.run.segments:
            piece = &self.runs.piece[s.run.first]
            version = node_version(s.node, NEWEST if s.run.own else self.ts)
            if version == NULL:
                return NOT_VISIBLE
            self.commit_ts = 0 if s.run.own else version.ts
            if self.commit_ts > self.newest_ts:
                self.newest_ts = self.commit_ts
            if version.tombstone:
                return DELETED
            self.runs.take_version(piece, version, &self.row, &self.row_length)
            return VISIBLE
        piece = &self.runs.piece[s.piece]
        segment = <Segment> piece.source
        while True:
            of = &segment.group[group]
            ts = segment_ts(segment, of, row)
            if s.run.own or ts <= self.ts:
                break
            row += 1
            if row == of.rows:
                group += 1
                row = 0
                if group == segment.group_count:
                    return NOT_VISIBLE
                segment.load_system(group)
            key = segment_key(&segment.group[group], row, &length)
            if key_compare(key, length, s.key, s.key_length) != 0:
                return NOT_VISIBLE
        self.commit_ts = 0 if s.run.own else ts
        if self.commit_ts > self.newest_ts:
            self.newest_ts = self.commit_ts
        if of.tombstones and segment_deleted(of, row):
            return DELETED
        self.runs.take_row(piece, group, row, &self.row, &self.row_length)
        return VISIBLE

    # --- sources

    cdef int start(self, Source* s) except -1:
        """Stands at the first key of the interval, in the cursor's direction."""
        cdef MemTable table
        if s.run.segments:
            return self.start_segments(s)
        table = <MemTable> self.runs.piece[s.run.first].source
        if self.reverse:
            s.node = table.last() if not self.high else table.seek_before(
                PyBytes_AS_STRING(self.high), PyBytes_GET_SIZE(self.high))
        else:
            s.node = table.seek(PyBytes_AS_STRING(self.low), PyBytes_GET_SIZE(self.low))
        return self.settle(s)

    cdef int start_segments(self, Source* s) except -1:
        cdef const Piece* piece
        cdef Segment segment
        cdef int64_t at
        cdef int step = -1 if self.reverse else 1
        s.piece = s.run.end - 1 if self.reverse else s.run.first
        while s.run.first <= s.piece < s.run.end:
            piece = &self.runs.piece[s.piece]
            segment = <Segment> piece.source
            if self.reverse:
                at = <int64_t> segment.rows if not self.high else segment.seek(
                    PyBytes_AS_STRING(self.high), PyBytes_GET_SIZE(self.high))
                at -= 1
            elif key_compare(
                piece.max_key, piece.max_length,
                PyBytes_AS_STRING(self.low), PyBytes_GET_SIZE(self.low),
            ) < 0:
                at = <int64_t> segment.rows
            else:
                at = segment.seek(PyBytes_AS_STRING(self.low), PyBytes_GET_SIZE(self.low))
            if 0 <= at < <int64_t> segment.rows:
                s.group = segment.group_of(at)
                s.row = <uint32_t> (<uint64_t> at - segment.group[s.group].first_row)
                return self.settle(s)
            s.piece += step
        s.ended = True
        return 0

    cdef int advance(self, Source* s) except -1:
        """Goes to the next key."""
        cdef const char* key = s.key
        cdef uint32_t length = s.key_length
        cdef uint32_t found_length = 0
        cdef const char* found
        if s.run == NULL:
            s.at += -1 if self.reverse else 1
        elif not s.run.segments:
            if self.reverse:
                s.node = (<MemTable> self.runs.piece[s.run.first].source).seek_before(
                    node_key(s.node), s.node.key_length)
            else:
                s.node = node_next(s.node)
        elif self.reverse:
            if not self.backward(s):
                s.ended = True
        else:
            while True:  # over the key's older versions
                if not self.forward(s):
                    s.ended = True
                    return 0
                (<Segment> self.runs.piece[s.piece].source).load_system(s.group)
                found = segment_key(
                    &(<Segment> self.runs.piece[s.piece].source).group[s.group], s.row,
                    &found_length)
                if key_compare(found, found_length, key, length) != 0:
                    break
        return self.settle(s)

    cdef int settle(self, Source* s) except -1:
        """Takes the key the source stands at; it has ended if that is outside of the interval."""
        cdef Segment segment
        if s.ended:
            return 0
        if s.run == NULL:
            if not 0 <= s.at < self.own_count:
                s.ended = True
                return 0
            s.key = self.own[s.at].key
            s.key_length = <uint32_t> self.own[s.at].key_length
            return 0  # only those of the interval are there
        if not s.run.segments:
            if s.node == NULL:
                s.ended = True
                return 0
            s.key = node_key(s.node)
            s.key_length = s.node.key_length
        else:
            segment = <Segment> self.runs.piece[s.piece].source
            segment.load_system(s.group)
            s.key = segment_key(&segment.group[s.group], s.row, &s.key_length)
            if self.reverse:
                self.rewind(s)
        if self.reverse:
            s.ended = PyBytes_GET_SIZE(self.low) != 0 and key_compare(
                s.key, s.key_length, PyBytes_AS_STRING(self.low), PyBytes_GET_SIZE(self.low)) < 0
        else:
            s.ended = PyBytes_GET_SIZE(self.high) != 0 and key_compare(
                s.key, s.key_length, PyBytes_AS_STRING(self.high), PyBytes_GET_SIZE(self.high)) >= 0
        return 0

    cdef int rewind(self, Source* s) except -1:
        """From some version of a key to its newest one in the segment, the first row."""
        cdef Segment segment = <Segment> self.runs.piece[s.piece].source
        cdef uint32_t length = 0
        cdef const char* key
        cdef int group
        cdef uint32_t row
        while s.row > 0 or s.group > 0:
            group = s.group
            row = s.row
            if row == 0:
                group -= 1
                row = segment.group[group].rows
                segment.load_system(group)
            row -= 1
            key = segment_key(&segment.group[group], row, &length)
            if key_compare(key, length, s.key, s.key_length) != 0:
                return 0
            s.group = group
            s.row = row
            s.key = key
        return 0

    cdef bint forward(self, Source* s):
        """One row on, in the next segment if need be; False at the end."""
        cdef Segment segment = <Segment> self.runs.piece[s.piece].source
        s.row += 1
        if s.row < segment.group[s.group].rows:
            return True
        s.row = 0
        s.group += 1
        if s.group < segment.group_count:
            return True
        s.group = 0
        s.piece += 1
        return s.piece < s.run.end

    cdef bint backward(self, Source* s):
        """One row back."""
        cdef Segment segment = <Segment> self.runs.piece[s.piece].source
        if s.row > 0:
            s.row -= 1
            return True
        if s.group > 0:
            s.group -= 1
        else:
            s.piece -= 1
            if s.piece < s.run.first:
                return False
            segment = <Segment> self.runs.piece[s.piece].source
            s.group = segment.group_count - 1
        s.row = segment.group[s.group].rows - 1
        return True
