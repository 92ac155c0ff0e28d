# cython: language_level=3
"""Rows dealt out to ranges: keys and rows framed as Write messages have them, without the GIL.

Each row is written once, to where its message is sent from. A `RowDealer` is used by one thread at a
time; the `Block`s that it gives away are read only and belong to whoever has them.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

cimport cython

from shardb._core.arrowread cimport ArrowBatch, arrow_get
from shardb._core.buffer cimport (
    Arena, arena_free, arena_init, arena_reset, buf_free, buf_init, buf_reserve, core_fail,
    raise_core,
)
from shardb._core.coreerror import CoreError
from shardb._core.keycodec cimport key_append
from shardb._core.rowcodec cimport Layout, row_fit, row_put, row_size

cdef enum:
    KEY_COLUMNS_MAX = 64
    ITEM_HEAD = 4


@cython.final
cdef class Block:
    """Bytes made by `RowDealer`; `bytes(block)` copies them."""

    def __cinit__(self):
        buf_init(&self.buf)

    def __dealloc__(self):
        buf_free(&self.buf)

    def __len__(self):
        return <Py_ssize_t> self.buf.len

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.buf.data, <Py_ssize_t> self.buf.len, True, flags)


cdef int fail_size(const char* text, size_t size, size_t limit) noexcept nogil:
    cdef char message[128]
    snprintf(message, sizeof(message), text, size, limit)
    return core_fail(b"54000", message)


cdef Block take_buf(Buf* buf):
    """Moves a buffer's memory to a block."""
    cdef Block block = Block()
    block.buf = buf[0]
    buf_init(buf)
    return block


@cython.final
cdef class RowDealer:
    """Deals rows of one table out to the ranges that begin at `starts`, in order, the least first.

    `positions` are the key's columns. A key over `key_limit` or a row over `row_limit` bytes is 54000.
    It is `full` when one range has `batch_bytes` of keys and rows, or all together `held_limit`.
    """

    def __cinit__(
        self, RowLayout layout not None, KeyCodec codec not None, positions, starts,
        size_t key_limit, size_t row_limit, size_t batch_bytes, size_t held_limit,
    ):
        cdef Py_ssize_t i
        cdef bytes start
        self.positions = NULL
        self.starts = NULL
        self.hands = NULL
        self.ranges = 0
        buf_init(&self.key)
        self.layout = layout
        self.codec = codec
        self.starts_kept = tuple(starts)
        self.key_limit = key_limit
        self.row_limit = row_limit
        self.last = 0
        self.batch_bytes = batch_bytes
        self.held_limit = held_limit
        self.held = 0
        self.full = False
        if len(positions) != codec.count or codec.count > KEY_COLUMNS_MAX:
            raise ValueError("one position for each key column, at most 64")
        if not self.starts_kept:
            raise ValueError("there are no ranges")
        self.positions = <int*> calloc(codec.count + 1, sizeof(int))
        self.starts = <Start*> calloc(len(self.starts_kept), sizeof(Start))
        self.hands = <Hand*> calloc(len(self.starts_kept), sizeof(Hand))
        if self.positions == NULL or self.starts == NULL or self.hands == NULL:
            raise MemoryError
        self.ranges = len(self.starts_kept)
        for i in range(codec.count):
            self.positions[i] = positions[i]
            if (not 0 <= self.positions[i] < layout.c.columns
                    or layout.c.column[self.positions[i]].type != codec.column[i].type):
                raise ValueError(f"position {positions[i]} is not a column of key column {i}'s type")
        for i in range(self.ranges):
            start = self.starts_kept[i]
            self.starts[i].key = PyBytes_AS_STRING(start)
            self.starts[i].length = PyBytes_GET_SIZE(start)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.ranges):
            buf_free(&self.hands[i].keys)
            buf_free(&self.hands[i].rows)
        free(self.positions)
        free(self.starts)
        free(self.hands)
        buf_free(&self.key)

    cdef int deal(self, const Datum* values) noexcept nogil:
        cdef const Layout* layout = &self.layout.c
        cdef const Datum* value
        cdef Hand* hand
        cdef Py_ssize_t size
        cdef uint32_t length
        cdef int k
        self.key.len = 0
        for k in range(self.codec.count):
            value = &values[self.positions[k]]
            if value.null and not self.codec.column[k].nullable:
                return core_fail(b"23502", b"null value in a key column")
            key_append(&self.codec.column[k], value, &self.key)
        size = row_size(layout, values)
        if self.key.len > self.key_limit:
            return fail_size(
                b"index row size %zu exceeds maximum of %zu bytes", self.key.len, self.key_limit)
        if <size_t> size > self.row_limit:
            return fail_size(
                b"row of %zu bytes exceeds maximum of %zu bytes", <size_t> size, self.row_limit)
        hand = &self.hands[self.find()]
        if (self.key.failed
                or buf_reserve(&hand.keys, ITEM_HEAD + self.key.len) != 0
                or buf_reserve(&hand.rows, ITEM_HEAD + size) != 0):
            return core_fail(b"53200", b"out of memory")
        length = <uint32_t> self.key.len
        memcpy(hand.keys.data + hand.keys.len, &length, ITEM_HEAD)
        if length:
            memcpy(hand.keys.data + hand.keys.len + ITEM_HEAD, self.key.data, length)
        hand.keys.len += ITEM_HEAD + length
        length = <uint32_t> size
        memcpy(hand.rows.data + hand.rows.len, &length, ITEM_HEAD)
        row_put(layout, values, hand.rows.data + hand.rows.len + ITEM_HEAD)
        hand.rows.len += ITEM_HEAD + length
        hand.count += 1
        self.held += 2 * ITEM_HEAD + self.key.len + length
        if hand.keys.len + hand.rows.len >= self.batch_bytes or self.held >= self.held_limit:
            self.full = True
        return 0

    cdef Py_ssize_t find(self) noexcept nogil:
        """The range of the key at hand. Rows often come in the order of their keys."""
        cdef Py_ssize_t low = self.last, high = self.last + 1, middle
        if not self.at_or_after(low):
            low = 0
            high = self.last
        elif high < self.ranges and self.at_or_after(high):
            low = high
            high = self.ranges
        while high - low > 1:
            middle = (low + high) >> 1
            if self.at_or_after(middle):
                low = middle
            else:
                high = middle
        self.last = low
        return low

    cdef bint at_or_after(self, Py_ssize_t at) noexcept nogil:
        """True if the key at hand is not below a range's first key."""
        cdef const Start* start = &self.starts[at]
        cdef Py_ssize_t length = <Py_ssize_t> self.key.len
        cdef int order
        if start.length == 0:
            return True
        order = 0
        if length and start.length:
            order = memcmp(
                self.key.data, start.key, length if length < start.length else start.length
            )
        return order > 0 or (order == 0 and length >= start.length)

    def take(self, bint all_of_it=False):
        """Batches of ranges that have enough, or of all: (range index, rows, framed keys, framed
        rows) each. Enough is a full batch, and where there is none, as much as others on average.
        """
        cdef list out = []
        cdef Py_ssize_t i
        cdef size_t enough = self.batch_bytes
        cdef Hand* hand
        if all_of_it:
            enough = 0
        elif not self.full:
            return out
        elif self.held >= self.held_limit:
            enough = min(enough, self.held // self.ranges)
        for i in range(self.ranges):
            hand = &self.hands[i]
            if hand.count and hand.keys.len + hand.rows.len >= enough:
                self.held -= hand.keys.len + hand.rows.len
                hand.keys_before = hand.keys.len
                hand.rows_before = hand.rows.len
                out.append((i, hand.count, take_buf(&hand.keys), take_buf(&hand.rows)))
                hand.count = 0
        self.full = False
        return out

    cdef void prepare(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef Hand* hand
        for i in range(self.ranges):
            hand = &self.hands[i]
            if hand.rows.data == NULL and hand.rows_before:
                buf_reserve(&hand.keys, hand.keys_before + hand.keys_before // 16)
                buf_reserve(&hand.rows, hand.rows_before + hand.rows_before // 16)

    def deal_arrow(self, batch, int64_t start):
        """Deals the rows of a pyarrow.RecordBatch with a column for each of the layout's, in order.

        Begins at row `start` and ends after the row that makes it `full`; returns the row to go on
        with. Works without the GIL. An error carries the `row` and `column` it was
        found at (column -1: the row as a whole).
        """
        cdef ArrowBatch cells = ArrowBatch(batch, self.layout.types)
        cdef const Layout* layout = &self.layout.c
        cdef Datum* values = <Datum*> calloc(layout.columns + 1, sizeof(Datum))
        cdef Arena arena
        cdef int64_t at = start
        cdef int i = -1, why = 0
        if values == NULL:
            raise MemoryError
        arena_init(&arena)
        with nogil:
            self.prepare()
            while at < cells.rows and not self.full:
                for i in range(layout.columns):
                    why = arrow_get(&cells.column[i], at, &values[i], &arena)
                    if why == 0 and layout.column[i].typmod < 0:
                        why = row_fit(layout, i, &values[i], &arena)
                    if why != 0:
                        break
                else:
                    i = -1
                    why = self.deal(values)
                if why != 0:
                    break
                arena_reset(&arena)
                at += 1
            arena_free(&arena)
            free(values)
        if why != 0:
            try:
                raise_core()
            except CoreError as error:
                error.row = at
                error.column = i
                raise
        return at
