"""A tablet's runs, newest first, and lookups in them (see the .pxd)."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from shardb._core.bloom cimport bloom_hash
from shardb._core.buffer cimport buf_free, buf_init
from shardb._core.coreerror import CoreError
from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, node_version, version_row,
)
from shardb._core.rowcodec cimport RowLayout
from shardb._core.rowmap cimport RowMap, row_convert
from shardb._core.segment cimport Segment, segment_deleted, segment_ts

cdef uint64_t NEWEST = 0xFFFFFFFFFFFFFFFF


@cython.final
cdef class Runs:
    """`runs`: for each, newest first, `(own, ((source, RowMap or None), ...))`.

    A source is a MemTable (alone in its run) or Segments in key order. A map's target is `layout`;
    without one the source's rows are in `layout` already.
    """

    def __cinit__(self, RowLayout layout not None, runs):
        cdef int at = 0
        cdef Run* run
        buf_init(&self.scratch)
        self.layout = layout
        self.runs = tuple((bool(own), tuple(pieces)) for own, pieces in runs)
        self.run_count = len(self.runs)
        self.piece_count = sum(len(pieces) for _, pieces in self.runs)
        self.run = <Run*> calloc(self.run_count or 1, sizeof(Run))
        self.piece = <Piece*> calloc(self.piece_count or 1, sizeof(Piece))
        if self.run == NULL or self.piece == NULL:
            raise MemoryError
        for number, (own, pieces) in enumerate(self.runs):
            run = &self.run[number]
            run.own = own
            run.first = at
            run.end = at + <int> len(pieces)
            run.segments = not isinstance(pieces[0][0], MemTable)
            if not run.segments and len(pieces) != 1:
                raise ValueError("a run is one memtable, or segments")
            for source, map in pieces:
                describe(&self.piece[at], layout, source, map)
                at += 1

    def __dealloc__(self):
        free(self.run)
        free(self.piece)
        buf_free(&self.scratch)

    cdef int lookup(self, const char* key, Py_ssize_t key_length, uint64_t ts, const char** row,
                    uint32_t* row_length, uint64_t* commit_ts) except -1:
        cdef uint64_t hash = 0
        cdef bint hashed = False
        cdef const Run* run
        cdef const Piece* piece
        cdef Node* node
        cdef const Version* version
        cdef Segment segment
        cdef int number
        cdef int at
        cdef int group = 0
        cdef uint32_t found = 0
        commit_ts[0] = 0
        for number in range(self.run_count):
            run = &self.run[number]
            if not run.segments:
                piece = &self.piece[run.first]
                node = (<MemTable> piece.source).find(key, key_length)
                if node == NULL:
                    continue
                version = node_version(node, NEWEST if run.own else ts)
                if version == NULL:
                    continue
                commit_ts[0] = 0 if run.own else version.ts
                if version.tombstone:
                    return 0
                return self.take_version(piece, version, row, row_length)
            at = self.piece_of(run, key, key_length)
            if at < 0:
                continue
            if not hashed:
                hash = bloom_hash(key, key_length)
                hashed = True
            piece = &self.piece[at]
            segment = <Segment> piece.source
            if not segment.find(
                key, key_length, hash, NEWEST if run.own else ts, &group, &found
            ):
                continue
            commit_ts[0] = 0 if run.own else segment_ts(segment, &segment.group[group], found)
            if segment.group[group].tombstones and segment_deleted(&segment.group[group], found):
                return 0
            return self.take_row(piece, group, found, row, row_length)
        return 0

    cdef int piece_of(self, const Run* run, const char* key, Py_ssize_t key_length) noexcept:
        cdef int low = run.first
        cdef int high = run.end
        cdef int middle
        cdef const Piece* piece
        while low < high:
            middle = (low + high) >> 1
            piece = &self.piece[middle]
            if key_compare(piece.min_key, piece.min_length, key, key_length) <= 0:
                low = middle + 1
            else:
                high = middle
        if low == run.first:
            return -1
        piece = &self.piece[low - 1]
        if key_compare(piece.max_key, piece.max_length, key, key_length) < 0:
            return -1
        return low - 1

    cdef int take_version(self, const Piece* piece, const Version* version, const char** row,
                          uint32_t* row_length) except -1:
        if piece.map == NULL:
            row[0] = version_row(version)
            row_length[0] = version.length
            return 1
        self.scratch.len = 0
        row_convert(piece.map, piece.layout, &self.layout.c, version_row(version), &self.scratch)
        return self.scratched(row, row_length)

    cdef int take_row(self, const Piece* piece, int group, uint32_t at, const char** row,
                      uint32_t* row_length) except -1:
        self.scratch.len = 0
        (<Segment> piece.source).build(group, at, piece.map, &self.layout.c, &self.scratch)
        return self.scratched(row, row_length)

    cdef int scratched(self, const char** row, uint32_t* row_length) except -1:
        if self.scratch.failed:
            buf_free(&self.scratch)
            raise MemoryError
        row[0] = self.scratch.data
        row_length[0] = <uint32_t> self.scratch.len
        return 1

    # --- from Python

    def get(self, bytes key not None, uint64_t ts):
        """(row or None if deleted, its commit_ts) visible at `ts`, or None if never written."""
        cdef const char* row = NULL
        cdef uint32_t length = 0
        cdef uint64_t commit_ts = 0
        if self.lookup(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), ts, &row, &length,
                       &commit_ts):
            return PyBytes_FromStringAndSize(row, length), commit_ts
        return (None, commit_ts) if commit_ts else None

    def newest(self, bytes key not None):
        """(row or None if deleted, its commit_ts) of the newest version, or None."""
        return self.get(key, NEWEST)

    def first_existing(self, bytes keys not None, Py_ssize_t count, Py_ssize_t begin=0,
                       bint deleted=False):
        """The number of the first of `count` framed keys (`u32 length, bytes`), from `begin` on,
        that has a row; -1 if none. With `deleted` also of one that has been deleted, but not by the
        transaction's own runs."""
        cdef const char* at = PyBytes_AS_STRING(keys)
        cdef const char* end = at + PyBytes_GET_SIZE(keys)
        cdef const char* row = NULL
        cdef uint32_t key_length = 0
        cdef uint32_t length = 0
        cdef uint64_t commit_ts = 0
        cdef Py_ssize_t index
        if self.is_empty():
            return -1
        for index in range(count):
            if end - at < 4:
                raise CoreError("XX001", f"malformed list of {count} keys")
            memcpy(&key_length, at, 4)
            if end - at - 4 < <Py_ssize_t> key_length:
                raise CoreError("XX001", f"malformed list of {count} keys")
            if index >= begin:
                if self.lookup(at + 4, key_length, NEWEST, &row, &length, &commit_ts):
                    return index
                if deleted and commit_ts:
                    return index
            at += 4 + <Py_ssize_t> key_length
        return -1

    def is_empty(self):
        """True if no key was ever written."""
        return self.piece_count == 0 or (
            self.piece_count == 1
            and not self.run[0].segments
            and (<MemTable> self.piece[0].source).c.entries == 0
        )


cdef int describe(Piece* piece, RowLayout layout, object source, RowMap map) except -1:
    """Fills a piece; its pointers are into `source`, `map` and their descriptions."""
    cdef bytes key
    piece.source = <PyObject*> source
    piece.map = NULL if map is None or map.c.same else &map.c
    if map is not None:
        if map.target is not layout:
            raise ValueError("a map to another layout")
        piece.layout = &map.source.c
    else:
        piece.layout = &layout.c
    if isinstance(source, Segment):
        key = source.meta.min_key
        piece.min_key = PyBytes_AS_STRING(key)
        piece.min_length = <uint32_t> PyBytes_GET_SIZE(key)
        key = source.meta.max_key
        piece.max_key = PyBytes_AS_STRING(key)
        piece.max_length = <uint32_t> PyBytes_GET_SIZE(key)
    elif not isinstance(source, MemTable):
        raise TypeError("a source is a MemTable or a Segment")
    return 0
