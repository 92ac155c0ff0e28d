"""Runs of a tablet merged into record batches in a segment file's form, without the GIL.

Two passes a batch. The walk finds the rows: it steps through the sources' heads in order and notes
pieces, which are rows of a memtable or consecutive rows of one row group. The fill then makes the
columns, a few hundred rows at a time so that they stay in cache; a piece of a row group is copied
column by column. Where row groups do not overlap, a piece is thousands of rows.

The GIL is needed only between batches and where a source enters its next row group.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint16_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset

import pyarrow as pa

from shardb._core.buffer cimport buf_free, buf_init, buf_put
from shardb._core.coreerror import CoreError
from shardb._core.memtable cimport Node, key_compare, key_prefix, node_next, version_row
from shardb._core.rowcodec cimport Layout
from shardb._core.rowcolumns cimport (
    BLOCK_ROWS, SHAPE_VARIABLE, copy_bits, fill_keys, fill_rows, fill_span, measure_rows,
    measure_span,
)
from shardb._core.runsource cimport (
    RunSource, ViewColumn, comes_first, next_version, to_row, view_key,
)

cdef extern from *:
    """
    #define shardb_prefetch(p) __builtin_prefetch(p)
    #define shardb_flag_set(p) __atomic_store_n((p), 1, __ATOMIC_RELAXED)
    #define shardb_flag_is_set(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    """
    void prefetch "shardb_prefetch"(const void* p) noexcept nogil
    void flag_set "shardb_flag_set"(int* flag) noexcept nogil
    bint flag_is_set "shardb_flag_is_set"(int* flag) noexcept nogil

cdef enum:
    SYSTEM_BYTES = 12                      # of a row beside its key: timestamp and offset
    SPAN_ROWS = 4096                       # of a row group that are taken at one step
    GROUP_BYTES = 64 * 1024 * 1024
    GROUP_BYTES_MAX = 1024 * 1024 * 1024   # with one more row, what 32-bit offsets hold
    GROUP_ROWS_MAX = 1024 * 1024


@cython.final
cdef class RunMerge:
    """Iterates pyarrow.RecordBatch of rows of `sources` in `[start, end)`, by key, newest first.

    `sources` are `(MemTable | Segment, RowMap | None)`, the newest run first; None: its rows are of
    `layout`. Columns are binary `_key`, uint64 `_ts`, bool `_deleted`, then all of the layout's
    under `names`, as `arrow_types`, NULL where a row is deleted. Of the rows with one key and
    timestamp only the newest run's comes out, of a run's the first.

    With a `gc_ts`, of a key's versions at or below it only the newest stays: no snapshot at `gc_ts`
    or later sees the others. If that one is a tombstone it goes as well with `drop_tombstones`,
    which REQUIRES that no run outside of the merge has an older version of such a key.

    A batch has at most `group_rows` rows and about `group_bytes` bytes (that and a row at most). No
    batch is empty; an empty `end` is no bound. One thread at a time iterates, any may `cancel`.

    CoreError XX001: a row or a row group is damaged; 57014: the merge was cancelled. After an error
    there is no next batch.
    """

    def __cinit__(
        self, sources, RowLayout layout not None, names, arrow_types, *, uint64_t gc_ts=0,
        bint drop_tombstones=False, bytes start not None=b"", bytes end not None=b"",
        Py_ssize_t group_rows=65536, int64_t group_bytes=GROUP_BYTES,
    ):
        cdef Py_ssize_t index
        self.order = NULL
        self.found = NULL
        self.piece = NULL
        self.missing = NULL
        self.variable = NULL
        buf_init(&self.last_copy)
        assert 1 <= group_rows <= GROUP_ROWS_MAX, f"{group_rows} rows a batch"
        assert 1 <= group_bytes <= GROUP_BYTES_MAX, f"{group_bytes} bytes a batch"
        names = list(names)
        self.layout = layout
        self.out = ArrowColumns(layout, range(layout.c.columns), arrow_types)
        self.gc_ts = gc_ts
        self.drop_tombstones = drop_tombstones
        self.start = start
        self.end = end
        self.group_rows = group_rows
        self.group_bytes = group_bytes
        self.null_row = layout.encode([None] * layout.c.columns)
        self.null_row_at = PyBytes_AS_STRING(self.null_row)
        self.sources = [
            RunSource(rank, run, row_map, layout) for rank, (run, row_map) in enumerate(sources)
        ]
        self.kept = []
        self.order = <Source**> calloc(len(self.sources) or 1, sizeof(Source*))
        self.found = <FoundRow*> malloc(group_rows * sizeof(FoundRow))
        self.piece = <Piece*> malloc(group_rows * sizeof(Piece))
        self.missing = <FoundRow*> calloc(BLOCK_ROWS, sizeof(FoundRow))
        self.variable = <int32_t*> calloc(self.out.count or 1, sizeof(int32_t))
        if (self.order == NULL or self.found == NULL or self.piece == NULL or self.missing == NULL
                or self.variable == NULL):
            raise MemoryError
        for index in range(self.out.count):
            if self.out.out[index].shape == SHAPE_VARIABLE:
                self.variable[self.variable_count] = <int32_t> index
                self.variable_count += 1
        self.schema = pa.schema([
            pa.field("_key", pa.binary(), False),
            pa.field("_ts", pa.uint64(), False),
            pa.field("_deleted", pa.bool_(), False),
            *(pa.field(name, kind) for name, kind in zip(names, self.out.types, strict=True)),
        ])

    def __dealloc__(self):
        free(self.order)
        free(self.found)
        free(self.piece)
        free(self.missing)
        free(self.variable)
        buf_free(&self.last_copy)

    def cancel(self):
        """Ends the iteration soon, with CoreError 57014. Any thread may call it."""
        flag_set(&self.cancelled)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Stop stop
        assert not self.failed, "a merge does not go on after an error"
        self.failed = True
        if not self.opened:
            self.open()
        self.out.begin(self.group_rows)
        self.begin()
        while True:
            with nogil:
                stop = self.walk()
            if stop != STOP_GROUP:
                break
            self.next_group()
        if stop == STOP_DAMAGED:
            raise CoreError("XX001", "a stored row has an unknown schema version")
        if stop != STOP_CANCELLED and self.rows:
            found = self.batch()
            if found is not None:
                self.failed = False
                return found
            stop = STOP_CANCELLED
        if stop == STOP_CANCELLED:
            raise CoreError("57014", "the merge of runs was cancelled")
        self.failed = False
        raise StopIteration

    cdef int open(self) except -1:
        """Finds the sources' first rows."""
        cdef RunSource source
        cdef int index
        for source in self.sources:
            if source.open(self.start, self.end):
                self.order[self.active] = &source.c
                self.active += 1
        # Put in place from the last to the first, each among those behind it.
        for index in range(self.active - 1, -1, -1):
            place(self.order + index, self.active - index)
        self.opened = True
        return 0

    cdef int next_group(self) except -1:
        """The first source's next row group; what pieces point into is kept."""
        cdef RunSource source = self.sources[self.order[0].rank]
        if source.c.used:
            self.kept.append(source.view)
        else:
            self.copy_last_key()
        if source.enter():
            place(self.order, self.active)
        else:
            drop_first(self.order, self.active)
            self.active -= 1
        return 0

    cdef int copy_last_key(self) except -1:
        """The last key is compared with the next; its row group need not stay for that."""
        if not self.has_last or self.last_key == self.last_copy.data:
            return 0
        self.last_copy.len = 0
        buf_put(&self.last_copy, self.last_key, self.last_length)
        if self.last_copy.failed:
            raise MemoryError
        self.last_key = self.last_copy.data
        return 0

    cdef object batch(self):
        """The record batch of the pieces, None if the merge was cancelled."""
        cdef Py_ssize_t rows = self.rows
        cdef Stop stop
        offsets = pa.allocate_buffer((rows + 1) * 4)
        keys = pa.allocate_buffer(self.key_bytes)
        stamps = pa.allocate_buffer(rows * 8)
        deleted = pa.allocate_buffer((rows + 7) // 8)
        self.out.allocate(rows)
        self.keys.offsets = <int32_t*> <uintptr_t> offsets.address
        self.keys.values = <char*> <uintptr_t> keys.address
        self.stamps = <uint64_t*> <uintptr_t> stamps.address
        self.deleted = <uint8_t*> <uintptr_t> deleted.address
        with nogil:
            self.keys.offsets[0] = 0
            memset(self.deleted, 0, (rows + 7) // 8)
            stop = self.fill()
        if stop == STOP_CANCELLED:
            return None
        self.copy_last_key()
        self.kept.clear()
        arrays = [
            pa.Array.from_buffers(pa.binary(), rows, [None, offsets, keys], 0),
            pa.Array.from_buffers(pa.uint64(), rows, [None, stamps], 0),
            pa.Array.from_buffers(pa.bool_(), rows, [None, deleted], 0),
        ]
        return pa.RecordBatch.from_arrays(arrays + self.out.arrays(rows), schema=self.schema)

    # --- the walk

    cdef void begin(self) noexcept nogil:
        self.found_count = 0
        self.piece_count = 0
        self.rows = 0
        self.bytes = 0
        self.key_bytes = 0

    cdef Stop walk(self) noexcept nogil:
        """Adds pieces to the batch."""
        cdef Source* head
        cdef uint32_t row
        cdef bint want
        while self.active:
            if self.rows >= self.group_rows or self.bytes >= self.group_bytes:
                self.measure()
                return STOP_FULL
            if flag_is_set(&self.cancelled):
                return STOP_CANCELLED
            head = self.order[0]
            want = self.wanted(head)
            if head.memtable:
                if want and not self.take_version(head):
                    return STOP_DAMAGED
                if next_version(head):
                    place(self.order, self.active)
                else:
                    drop_first(self.order, self.active)
                    self.active -= 1
                continue
            row = self.take_rows(head, want)
            if row == head.end:
                return STOP_GROUP
            to_row(head, row)
            place(self.order, self.active)
        self.measure()
        return STOP_ENDED

    cdef bint wanted(self, const Source* head) noexcept nogil:
        """True if the head, which is the next row in order, goes into the batch."""
        if (self.has_last and head.prefix == self.last_prefix
                and head.key_length == self.last_length
                and (head.key_length == 0
                     or memcmp(head.key, self.last_key, head.key_length) == 0)):
            if head.ts == self.last_ts or self.settled:
                return False
        else:
            self.has_last = True
            self.last_key = head.key
            self.last_length = head.key_length
            self.last_prefix = head.prefix
            self.settled = False
        self.last_ts = head.ts
        if self.gc_ts and head.ts <= self.gc_ts:
            self.settled = True
            return not (head.deleted and self.drop_tombstones)
        return True

    cdef bint take_version(self, const Source* head) noexcept nogil:
        """Takes a memtable's row; False if it is not of the source's layout."""
        cdef FoundRow* found = &self.found[self.found_count]
        cdef uint16_t schema_version
        cdef const Node* following = node_next(head.node)
        if following != NULL:
            prefetch(following)
        found.key = head.key
        found.key_length = head.key_length
        found.ts = head.ts
        if head.deleted:
            found.row = head.null_row
        else:
            found.row = version_row(head.version)
            memcpy(&schema_version, found.row, 2)
            if (schema_version != head.layout.schema_version
                    or head.version.length < head.layout.data_at):
                return False
        self.add_piece(head, self.found_count, 1)
        self.found_count += 1
        self.key_bytes += head.key_length
        self.bytes += (
            SYSTEM_BYTES + head.key_length + <int64_t> head.version.length + head.missing_bytes
        )
        return True

    cdef uint32_t take_rows(self, Source* head, bint want) noexcept nogil:
        """Takes the head of a segment, if wanted, and what comes before the next head.

        Returns the row of the group to go on at.
        """
        cdef const View* view = head.view
        cdef uint32_t row = head.row + 1
        cdef Py_ssize_t count
        if want:
            self.add_rows(head, head.row, 1)
        if row == head.end or view.versions or (view.tombstones and self.drop_tombstones):
            return row
        # From here to the end of the group, no key repeats and all rows stay.
        count = head.end - row
        if count > SPAN_ROWS:
            count = SPAN_ROWS
        if count > self.group_rows - self.rows:
            count = self.group_rows - self.rows
        if self.active > 1:
            count = rows_before(view, row, count, self.order[1])
        while count and self.bytes + self.span_bytes(head, row, count) > self.group_bytes:
            count >>= 1
        if count == 0:
            return row
        self.add_rows(head, row, count)
        row += <uint32_t> count
        self.last_key = view_key(view, row - 1, &self.last_length)
        self.last_prefix = key_prefix(self.last_key, self.last_length)
        self.last_ts = view.link_ts if view.link_ts else view.stamps[row - 1]
        self.settled = self.gc_ts != 0 and self.last_ts <= self.gc_ts
        return row

    cdef inline int64_t span_bytes(
        self, const Source* source, uint32_t start, Py_ssize_t count
    ) noexcept nogil:
        """About the bytes that rows of a row group take."""
        cdef const View* view = source.view
        cdef const ViewColumn* column
        cdef int index
        cdef int64_t size = SYSTEM_BYTES + source.missing_bytes + <int64_t> self.layout.c.data_at
        size *= count
        size += view.key_offsets[start + count] - view.key_offsets[start]
        for index in range(self.variable_count):
            column = &view.column[self.variable[index]]
            if not column.missing:
                size += column.offsets[start + count] - column.offsets[start]
        return size

    cdef inline void add_rows(
        self, Source* source, uint32_t start, Py_ssize_t count
    ) noexcept nogil:
        """Takes rows of a row group."""
        cdef const int32_t* offsets = source.view.key_offsets
        source.used = True
        self.add_piece(source, start, count)
        self.key_bytes += offsets[start + count] - offsets[start]
        self.bytes += self.span_bytes(source, start, count)

    cdef void add_piece(
        self, const Source* source, Py_ssize_t start, Py_ssize_t count
    ) noexcept nogil:
        """Lengthens the last piece or begins one."""
        cdef Piece* piece
        if self.piece_count:
            piece = &self.piece[self.piece_count - 1]
            if (piece.source == source and piece.view == source.view
                    and piece.start + piece.rows == start
                    and (piece.view != NULL or piece.rows < BLOCK_ROWS)):
                piece.rows += count
                self.rows += count
                return
            self.measure()
        piece = &self.piece[self.piece_count]
        piece.source = source
        piece.view = source.view
        piece.start = start
        piece.at = self.rows
        piece.rows = count
        self.piece_count += 1
        self.rows += count

    cdef void measure(self) noexcept nogil:
        """The variable columns' offsets of the last piece, while its rows are in cache."""
        cdef const Piece* piece
        cdef const ViewColumn* column
        cdef const Source* source
        cdef OutColumn* out
        cdef int index
        cdef int at
        if self.piece_count == 0:
            return
        piece = &self.piece[self.piece_count - 1]
        source = piece.source
        for index in range(self.variable_count):
            at = self.variable[index]
            out = &self.out.out[at]
            if source.source_of[at] < 0:
                self.measure_missing(piece, at)
            elif piece.view == NULL:
                measure_rows(source.layout, &source.column[at], out, self.found + piece.start,
                             piece.at, piece.rows)
            else:
                measure_span(out, piece.view.column[at].offsets, piece.start, piece.at, piece.rows)

    # --- columns that a source does not have

    cdef void missing_rows(
        self, const Piece* piece, Py_ssize_t first, Py_ssize_t count
    ) noexcept nogil:
        """Sets `missing` to rows with what such columns are in rows of a piece, from `first` on."""
        cdef const View* view = piece.view
        cdef Py_ssize_t index
        cdef Py_ssize_t at
        cdef bint deleted
        for index in range(count):
            at = piece.start + first + index
            if view == NULL:
                deleted = self.found[at].row == piece.source.null_row
            else:
                deleted = view.tombstones and (view.deleted[at >> 3] >> (at & 7)) & 1
            self.missing[index].row = self.null_row_at if deleted else piece.source.missing_row

    cdef void measure_missing(self, const Piece* piece, int column) noexcept nogil:
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t count
        while done < piece.rows:
            count = min(<Py_ssize_t> BLOCK_ROWS, piece.rows - done)
            self.missing_rows(piece, done, count)
            measure_rows(&self.layout.c, &piece.source.column[column], &self.out.out[column],
                         self.missing, piece.at + done, count)
            done += count

    cdef void fill_missing(self, const Piece* piece, int column) noexcept nogil:
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t count
        while done < piece.rows:
            count = min(<Py_ssize_t> BLOCK_ROWS, piece.rows - done)
            self.missing_rows(piece, done, count)
            fill_rows(&self.layout.c, &piece.source.column[column], &self.out.out[column],
                      self.missing, piece.at + done, count)
            done += count

    # --- the fill

    cdef Stop fill(self) noexcept nogil:
        """Makes the columns from the pieces."""
        cdef Py_ssize_t first = 0
        cdef Py_ssize_t last
        cdef Py_ssize_t rows
        cdef Py_ssize_t at
        cdef Py_ssize_t column
        while first < self.piece_count:
            if flag_is_set(&self.cancelled):
                return STOP_CANCELLED
            last = first
            rows = 0
            while last < self.piece_count and rows < BLOCK_ROWS:
                rows += self.piece[last].rows
                last += 1
            for column in range(self.out.count):
                for at in range(first, last):
                    self.fill_column(&self.piece[at], <int> column)
            for at in range(first, last):
                self.fill_system(&self.piece[at])
            first = last
        return STOP_FULL

    cdef inline void fill_column(self, const Piece* piece, int column) noexcept nogil:
        """One column of a piece."""
        cdef const Source* source = piece.source
        cdef const ViewColumn* span
        cdef OutColumn* out = &self.out.out[column]
        if source.source_of[column] < 0:
            self.fill_missing(piece, column)
        elif piece.view == NULL:
            fill_rows(source.layout, &source.column[column], out, self.found + piece.start,
                      piece.at, piece.rows)
        else:
            span = &piece.view.column[column]
            fill_span(out, span.validity, span.offsets, span.values, piece.start, piece.at,
                      piece.rows)

    cdef void fill_system(self, const Piece* piece) noexcept nogil:
        """Keys, timestamps and tombstones of a piece."""
        cdef const FoundRow* found = self.found + piece.start
        cdef const View* view = piece.view
        cdef const int32_t* offsets
        cdef uint64_t* stamps = self.stamps + piece.at
        cdef Py_ssize_t index
        if view == NULL:
            fill_keys(found, self.keys.offsets, self.keys.values, piece.at, piece.rows)
            for index in range(piece.rows):
                stamps[index] = found[index].ts
                if found[index].row == piece.source.null_row:
                    self.deleted[(piece.at + index) >> 3] |= 1 << ((piece.at + index) & 7)
            return
        offsets = view.key_offsets + piece.start
        measure_span(&self.keys, view.key_offsets, piece.start, piece.at, piece.rows)
        if offsets[piece.rows] > offsets[0]:
            memcpy(self.keys.values + self.keys.offsets[piece.at], view.keys + offsets[0],
                   offsets[piece.rows] - offsets[0])
        if view.link_ts:
            for index in range(piece.rows):
                stamps[index] = view.link_ts
        else:
            memcpy(stamps, view.stamps + piece.start, 8 * piece.rows)
        if view.tombstones:
            copy_bits(self.deleted, piece.at, view.deleted, piece.start, piece.rows)


cdef inline void drop_first(Source** order, int count) noexcept nogil:
    memmove(order, order + 1, (count - 1) * sizeof(Source*))


cdef void place(Source** order, int count) noexcept nogil:
    """Puts the first source, whose head has changed, in its place among the others in order."""
    cdef Source* source = order[0]
    cdef int low = 1
    cdef int high = count
    cdef int middle
    if count < 2 or comes_first(source, order[1]):
        return
    while high - low > 1:      # all up to order[low] come before it, from order[high] on none does
        middle = (low + high) >> 1
        if comes_first(source, order[middle]):
            high = middle
        else:
            low = middle
    memmove(order, order + 1, low * sizeof(Source*))
    order[low] = source


cdef Py_ssize_t rows_before(
    const View* view, uint32_t row, Py_ssize_t count, const Source* other
) noexcept nogil:
    """How many of the `count` rows from `row` on have keys before the other source's head."""
    cdef Py_ssize_t low = 0      # so many are
    cdef Py_ssize_t high = 1
    cdef Py_ssize_t middle
    while high <= count and row_is_before(view, row + high - 1, other):
        low = high
        high *= 2
    if high > count + 1:
        high = count + 1
    while high - low > 1:        # row `high` is not, or there is none
        middle = (low + high) >> 1
        if row_is_before(view, row + middle - 1, other):
            low = middle
        else:
            high = middle
    return low


cdef inline bint row_is_before(
    const View* view, Py_ssize_t row, const Source* other
) noexcept nogil:
    cdef uint32_t length
    cdef const char* key = view_key(view, <uint32_t> row, &length)
    return key_compare(key, length, other.key, other.key_length) < 0
