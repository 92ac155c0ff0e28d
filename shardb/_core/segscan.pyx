"""Visible rows of segments as Arrow batches.

A row group of which every row is visible is passed on as it lies in the file, and so are long runs
of visible rows of others. Short ones are copied together, run by run, without the GIL.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import pyarrow as pa

from cpython.bytes cimport PyBytes_AS_STRING

from shardb._core.datum cimport T_BYTEA, T_INT8
from shardb._core.memtable cimport MemTable
from shardb._core.rowcodec cimport RowLayout
from shardb._core.rowcolumns cimport (
    SHAPE_VARIABLE, ArrowColumns, FoundRow, RowColumn, fill_rows, fill_span, measure_rows,
    measure_span, row_column,
)
from shardb._core.rowmap cimport RowMap
from shardb._core.runs cimport Runs
from shardb._core.segment cimport (
    KEY_COLUMN, SYSTEM_COLUMNS, TS_COLUMN, Chunk, Segment,
)
from shardb._core.shadow cimport Shadow, Shadows

cdef extern from *:
    """
    #define shardb_trailing_zeros(v) __builtin_ctzll(v)
    """
    int trailing_zeros "shardb_trailing_zeros"(uint64_t v) noexcept nogil

cdef enum:
    CONSTANT_MAX_BYTES = 256 * 1024 * 1024   # of a column that a segment lacks
    PASSED_ON_ROWS = 2048        # runs of so many rows, on the average, are not copied

cdef uint64_t NEWEST = 0xFFFFFFFFFFFFFFFF
cdef RowLayout KEY_LAYOUT = RowLayout(0, [(T_BYTEA, -1), (T_INT8, -1)])  # `_key`, `_ts`

# Consecutive rows of a group.
ctypedef struct Span:
    uint32_t start
    uint32_t count


cdef uint32_t next_bit(
    const uint8_t* bits, uint32_t at, uint32_t end, uint64_t flip
) noexcept nogil:
    """The first of the bits [at, end) that is 1, or 0 with `flip` all ones; `end` if there is none.
    REQUIRES: whole words can be read."""
    cdef uint64_t word
    while at < end:
        memcpy(&word, bits + 8 * (at >> 6), 8)
        word = (word ^ flip) >> (at & 63)
        if word:
            at += trailing_zeros(word)
            return at if at < end else end
        at = (at | 63) + 1
    return end


cdef class ColumnSet:
    """How the columns that a segment has, and those that it lacks, become the scan's."""

    cdef RowMap map
    cdef list source             # the segment's columns for the scan's; -1: it has none
    cdef list present            # places of the columns it has
    cdef ArrowColumns out        # of those
    cdef dict constant           # place -> an array of what is missing
    cdef uint32_t rows_max       # of a batch, for what is missing to be no more than Arrow can hold


@cython.final
cdef class SegmentScan:
    """Rows of one segment after the other, at a snapshot.

    `columns` are positions in the layout of `runs`, `arrow_types` their types, `schema` that of the
    batches. `overlay` has a transaction's own writes that are newer than `runs`. `open` a
    segment, then take the `batches` of its row groups, of at most `rows_max` rows.
    """

    cdef Runs runs
    cdef list columns
    cdef list types
    cdef uint64_t ts
    cdef bint with_key
    cdef MemTable overlay
    cdef Shadows shadows
    cdef object schema
    cdef dict sets               # ColumnSet by RowMap (None: the same layout)
    cdef ArrowColumns key_out
    # of the open segment
    cdef Segment segment
    cdef bint own
    cdef ColumnSet mapped
    cdef Shadow shadow           # of what is committed
    cdef Shadow own_shadow       # of what is the transaction's own
    cdef list newer
    cdef list own_newer
    cdef readonly uint32_t rows_max
    cdef Span* span
    cdef uint32_t span_room
    cdef uint32_t span_count

    def __cinit__(
        self, Runs runs not None, columns, arrow_types, uint64_t ts, bint with_key,
        MemTable overlay, Shadows shadows not None, schema not None,
    ):
        self.span = NULL
        self.runs = runs
        self.columns = list(columns)
        self.types = list(arrow_types)
        self.ts = ts
        self.with_key = with_key
        self.overlay = overlay
        self.shadows = shadows
        self.schema = schema
        self.sets = {}
        if with_key:
            self.key_out = ArrowColumns(KEY_LAYOUT, [0, 1], [pa.binary(), pa.uint64()])

    def __dealloc__(self):
        free(self.span)

    def open(self, int run, int piece):
        """Goes to a segment: number `piece` of run number `run` of `runs`."""
        cdef int at
        own, pieces = self.runs.runs[run]
        segment, map = pieces[piece]
        self.segment = segment
        self.own = own
        self.mapped = self.column_set(map)
        self.rows_max = self.mapped.rows_max
        self.newer = []
        self.own_newer = [] if self.overlay is None else [self.overlay]
        for at in range(run):
            is_own, pieces = self.runs.runs[at]
            for source, _ in pieces:
                (self.own_newer if is_own else self.newer).append(source)
        self.own_shadow = Shadow(segment) if self.own_newer or own else None
        self.shadow = None if own else self.shadows.of(segment)

    cdef ColumnSet column_set(self, map):
        cdef ColumnSet made = self.sets.get(map)
        if made is not None:
            return made
        made = ColumnSet()
        made.map = map
        made.source = [
            position if map is None else map.source_of[position] for position in self.columns
        ]
        made.present = [place for place, source in enumerate(made.source) if source >= 0]
        made.out = ArrowColumns(
            self.runs.layout,
            [self.columns[place] for place in made.present],
            [self.types[place] for place in made.present],
        )
        made.constant = {}
        made.rows_max = 0xFFFFFFFF
        for position, source in zip(self.columns, made.source):
            if source < 0:
                size = max(made.map.c.missing[<int> position].len, 1)
                made.rows_max = min(made.rows_max, CONSTANT_MAX_BYTES // size)
        self.sets[map] = made
        return made

    def batches(self, int group, uint32_t low, uint32_t high):
        """RecordBatches of the visible rows of [low, high) of a row group, none of them empty.

        CoreError XX001 names the place if the file is damaged.
        """
        cdef uint8_t* hidden
        cdef bint some = False
        cdef uint32_t rows = self.segment.group[group].rows
        cdef uint32_t count = 0
        cdef uint32_t number
        assert low < high <= rows
        hidden = <uint8_t*> calloc((rows + 63) // 64 * 8, 1)
        if hidden == NULL:
            raise MemoryError
        try:
            if self.shadow is not None:
                self.shadow.absorb(self.segment, group, self.newer)
                some = self.shadow.hide(self.segment, group, self.ts, hidden)
            if self.own_shadow is not None:
                self.own_shadow.absorb(self.segment, group, self.own_newer)
                if self.own:
                    some = self.own_shadow.hide(self.segment, group, NEWEST, hidden)
                elif self.own_shadow.hide_marked(group, NEWEST, hidden):
                    some = True
            if some:
                self.make_span_room(rows)
                with nogil:
                    count = self.find_spans(hidden, low, high)
        finally:
            free(hidden)
        # What memtables had until now is enough for this snapshot, in all groups.
        self.newer = [source for source in self.newer if isinstance(source, Segment)]
        self.own_newer = [source for source in self.own_newer if isinstance(source, Segment)]
        if not some or count == high - low:
            return [self.whole(group, low, high - low)]
        if count == 0:
            return []
        if count // self.span_count >= PASSED_ON_ROWS:
            batch = self.whole(group, low, high - low)
            return [
                batch.slice(self.span[number].start - low, self.span[number].count)
                for number in range(self.span_count)
            ]
        return [self.chosen(group, count)]

    cdef int make_span_room(self, uint32_t rows) except -1:
        """Visible rows and hidden ones take turns at most."""
        cdef uint32_t room = rows // 2 + 1
        if room <= self.span_room:
            return 0
        free(self.span)
        self.span_room = 0
        self.span = <Span*> malloc(room * sizeof(Span))
        if self.span == NULL:
            raise MemoryError
        self.span_room = room
        return 0

    cdef uint32_t find_spans(
        self, const uint8_t* hidden, uint32_t low, uint32_t high
    ) noexcept nogil:
        """Notes the runs of visible rows; how many rows they have."""
        cdef uint32_t count = 0
        cdef uint32_t start = next_bit(hidden, low, high, NEWEST)
        cdef uint32_t end
        self.span_count = 0
        while start < high:
            end = next_bit(hidden, start, high, 0)
            self.span[self.span_count].start = start
            self.span[self.span_count].count = end - start
            self.span_count += 1
            count += end - start
            start = next_bit(hidden, end, high, NEWEST)
        return count

    cdef object whole(self, int group, uint32_t low, uint32_t count):
        """Rows as they lie in the file."""
        arrays = []
        for place, source in enumerate(self.mapped.source):
            if source < 0:
                arrays.append(self.constant(place, count))
            else:
                array = self.segment.array(group, SYSTEM_COLUMNS + source, self.types[place])
                arrays.append(self.cut(array, low, count))
        if self.with_key:
            arrays.append(
                self.cut(self.segment.array(group, KEY_COLUMN, pa.binary()), low, count)
            )
            if self.own:
                arrays.append(self.stamps(count))
            else:
                arrays.append(
                    self.cut(self.segment.array(group, TS_COLUMN, pa.uint64()), low, count)
                )
        return self.made(arrays, count)

    cdef object cut(self, array, uint32_t low, uint32_t count):
        return array if len(array) == count else array.slice(low, count)

    cdef object chosen(self, int group, uint32_t count):
        """The rows of the spans."""
        cdef ColumnSet of = self.mapped
        cdef Py_ssize_t at
        copied = self.copy(
            of.out, group, [SYSTEM_COLUMNS + of.source[place] for place in of.present], count
        )
        arrays = [None] * len(of.source)
        for at, place in enumerate(of.present):
            arrays[place] = copied[at]
        for place, source in enumerate(of.source):
            if source < 0:
                arrays[place] = self.constant(place, count)
        if self.with_key:
            stamped = self.own or self.segment.link_ts
            keys = self.copy(
                self.key_out, group, [KEY_COLUMN, -1 if stamped else TS_COLUMN], count
            )
            arrays.append(keys[0])
            arrays.append(self.stamps(count) if stamped else keys[1])
        return self.made(arrays, count)

    cdef list copy(self, ArrowColumns out, int group, list columns, uint32_t count):
        """The spans' rows of some columns of a group as arrays; of columns -1 they mean nothing."""
        cdef Py_ssize_t at
        cdef Chunk* chunks = <Chunk*> calloc(out.count or 1, sizeof(Chunk))
        cdef list held = []
        cdef int column
        if chunks == NULL:
            raise MemoryError
        try:
            for at in range(out.count):
                column = columns[at]
                if column >= 0:
                    self.segment.load(group, column)
                    chunks[at] = self.segment.group[group].chunk[column]
                    held.append(self.segment.hold(group))
            out.begin(count)
            with nogil:
                for at in range(out.count):
                    if chunks[at].ready and out.out[at].shape == SHAPE_VARIABLE:
                        self.measure(out, at, &chunks[at])
            out.allocate(count)
            with nogil:
                for at in range(out.count):
                    if chunks[at].ready:
                        self.fill(out, at, &chunks[at])
            return out.arrays(count)
        finally:
            free(chunks)

    cdef void measure(self, ArrowColumns out, Py_ssize_t at, const Chunk* chunk) noexcept nogil:
        cdef uint32_t number
        cdef Py_ssize_t to = 0
        for number in range(self.span_count):
            measure_span(
                &out.out[at], chunk.offsets, self.span[number].start, to, self.span[number].count
            )
            to += self.span[number].count

    cdef void fill(self, ArrowColumns out, Py_ssize_t at, const Chunk* chunk) noexcept nogil:
        cdef uint32_t number
        cdef Py_ssize_t to = 0
        for number in range(self.span_count):
            fill_span(
                &out.out[at], chunk.validity, chunk.offsets, chunk.values,
                self.span[number].start, to, self.span[number].count,
            )
            to += self.span[number].count

    cdef object stamps(self, uint32_t count):
        """The timestamp that all rows have: of own writes 0."""
        return pa.repeat(pa.scalar(0 if self.own else self.segment.link_ts, pa.uint64()), count)

    cdef object constant(self, place, uint32_t count):
        """`count` times what a column is that the segment lacks."""
        array = self.mapped.constant.get(place)
        if array is None or len(array) < count:
            array = repeated(
                self.runs.layout, self.columns[place], self.types[place],
                self.mapped.map.missing_row, count,
            )
            self.mapped.constant[place] = array
        return array.slice(0, count)

    cdef object made(self, list arrays, uint32_t count):
        return pa.RecordBatch.from_arrays(arrays or [pa.nulls(count)], schema=self.schema)


cdef object repeated(RowLayout layout, int position, kind, bytes row, uint32_t count):
    """`count` times a column of a row of `layout`, NULL without a row."""
    cdef ArrowColumns out = ArrowColumns(layout, [position], [kind])
    cdef RowColumn column = row_column(layout, position)
    cdef FoundRow* found
    cdef uint32_t at
    if row is None:
        return pa.nulls(count, kind)
    found = <FoundRow*> calloc(count or 1, sizeof(FoundRow))
    if found == NULL:
        raise MemoryError
    try:
        for at in range(count):
            found[at].row = PyBytes_AS_STRING(row)
        out.begin(count)
        if out.out[0].shape == SHAPE_VARIABLE:
            measure_rows(&layout.c, &column, &out.out[0], found, 0, count)
        out.allocate(count)
        fill_rows(&layout.c, &column, &out.out[0], found, 0, count)
        return out.arrays(count)[0]
    finally:
        free(found)
