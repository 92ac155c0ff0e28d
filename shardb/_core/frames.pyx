"""Frames of the shard protocol: cutting a byte stream into them, and the two hot messages by hand.

A frame is `u32 length | u8 kind | u32 request id | body`, little-endian; `length` counts everything
after itself. `Execute` and `Rows` have fixed binary bodies here (docs/formats/rpc.md); all other
bodies are left as bytes for the caller. Rows in bulk are framed as `u32 length, bytes` items.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    HEADER = 9
    LONG = 64 * 1024        # bytes of a frame that is not joined of pieces but filled in
    KIND_EXECUTE = 3
    KIND_ROWS = 4
    EXECUTE_FIXED = 41      # five u64 and the flags
    TXN_BYTES = 36          # id, state, statement, txn_ts
    ROWS_FIXED = 32
    FLAG_TXN = 1
    FLAG_COMMIT = 2
    NOWAIT_SHIFT = 2


cdef inline char* put32(char* at, uint32_t value) noexcept nogil:
    memcpy(at, &value, 4)
    return at + 4


cdef inline char* put64(char* at, uint64_t value) noexcept nogil:
    memcpy(at, &value, 8)
    return at + 8


cdef inline uint32_t get32(const char* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline uint64_t get64(const char* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef inline char* put_header(char* at, Py_ssize_t body, uint8_t kind, uint32_t request_id) noexcept nogil:
    at = put32(at, <uint32_t> (body + 5))
    at[0] = <char> kind
    return put32(at + 1, request_id)


def pack_execute(uint32_t request_id, message) -> bytes:
    """The frame of an `Execute` message."""
    cdef bytes params = message.params
    cdef bytes formats = message.formats
    cdef object txn = message.txn
    cdef bytes txn_id = b""
    cdef Py_ssize_t params_length = PyBytes_GET_SIZE(params)
    cdef Py_ssize_t formats_length = PyBytes_GET_SIZE(formats)
    cdef Py_ssize_t body = EXECUTE_FIXED + 4 + params_length + formats_length
    cdef uint8_t flags = <uint8_t> ((<int> message.nowait) << NOWAIT_SHIFT)
    if message.commit:
        flags |= FLAG_COMMIT
    if txn is not None:
        flags |= FLAG_TXN
        body += TXN_BYTES
        txn_id = txn.txn_id
        if PyBytes_GET_SIZE(txn_id) != 16:
            raise ValueError("a transaction id has 16 bytes")
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER + body)
    cdef char* at = put_header(PyBytes_AS_STRING(frame), body, KIND_EXECUTE, request_id)
    at = put64(at, message.range_id)
    at = put64(at, message.program_id)
    at = put64(at, message.read_ts)
    at = put64(at, message.floor)
    at = put64(at, message.known_issued)
    at[0] = <char> flags
    at += 1
    if txn is not None:
        memcpy(at, PyBytes_AS_STRING(txn_id), 16)
        at = put64(at + 16, txn.state_id)
        at = put32(at, txn.statement)
        at = put64(at, txn.txn_ts)
    at = put32(at, <uint32_t> params_length)
    memcpy(at, PyBytes_AS_STRING(params), params_length)
    memcpy(at + params_length, PyBytes_AS_STRING(formats), formats_length)
    return frame


def pack_rows(
    uint32_t request_id, bytes data, uint64_t rows, uint64_t state_id, uint64_t commit_ts,
    uint64_t newest_ts,
) -> bytes:
    """The frame of a `Rows` message."""
    cdef Py_ssize_t length = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t body = ROWS_FIXED + length
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER + body)
    cdef char* at = put_header(PyBytes_AS_STRING(frame), body, KIND_ROWS, request_id)
    at = put64(at, rows)
    at = put64(at, state_id)
    at = put64(at, commit_ts)
    at = put64(at, newest_ts)
    memcpy(at, PyBytes_AS_STRING(data), length)
    return frame


def pack_frame(uint32_t request_id, uint8_t kind, bytes body) -> bytes:
    """A frame with any body."""
    cdef Py_ssize_t length = PyBytes_GET_SIZE(body)
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER + length)
    cdef char* at = put_header(PyBytes_AS_STRING(frame), length, kind, request_id)
    memcpy(at, PyBytes_AS_STRING(body), length)
    return frame


def pack_header(uint32_t request_id, uint8_t kind, Py_ssize_t body, bytes rest) -> bytes:
    """The header of a frame whose body has `body` bytes, and the first of them, `rest`."""
    cdef Py_ssize_t length = PyBytes_GET_SIZE(rest)
    cdef bytes head = PyBytes_FromStringAndSize(NULL, HEADER + length)
    cdef char* at = put_header(PyBytes_AS_STRING(head), body, kind, request_id)
    memcpy(at, PyBytes_AS_STRING(rest), length)
    return head


cdef class FrameReader:
    """Cuts a byte stream into frames. The classes are those of the hot messages.

    `limit` is the longest frame accepted, in bytes. Invariant: bytes that wait for more are either
    all in `_parts` or, if they are the beginning of a long frame, all in `_body`.
    """

    cdef object _execute
    cdef object _txn_ref
    cdef object _rows
    cdef list _parts
    cdef Py_ssize_t _have
    cdef Py_ssize_t _need
    cdef Py_ssize_t _limit
    cdef bytes _body                # of the long frame under way, or None
    cdef Py_ssize_t _filled
    cdef uint8_t _kind
    cdef uint32_t _request_id

    def __cinit__(self, execute_class, txn_ref_class, rows_class, Py_ssize_t limit):
        self._execute = execute_class
        self._txn_ref = txn_ref_class
        self._rows = rows_class
        self._parts = []
        self._have = 0
        self._need = 0
        self._limit = limit

    def feed(self, bytes data) -> list:
        """The frames completed by `data`, as (kind, request id, message or body bytes).

        Raises ValueError on a frame that is too long or malformed; the connection is then useless.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t length
        cdef const char* start
        cdef uint8_t kind
        cdef uint32_t request_id
        cdef list out = []
        if self._body is not None:
            at = self._fill(PyBytes_AS_STRING(data), size)
            if self._filled < PyBytes_GET_SIZE(self._body):
                return out
            out.append((self._kind, self._request_id, self._body))
            self._body = None
        elif self._have:
            self._parts.append(data)
            self._have += size
            if self._have < self._need:
                return out
            data = b"".join(self._parts)
            self._parts = []
            self._have = 0
            size = PyBytes_GET_SIZE(data)
        start = PyBytes_AS_STRING(data)
        self._need = HEADER
        while size - at >= 4:
            length = get32(start + at)
            if length < 5 or length > self._limit:
                raise ValueError(f"frame of {length} bytes")
            if size - at < 4 + length:
                self._need = 4 + length
                if length >= LONG and size - at >= HEADER and self._begin(start + at, length):
                    self._fill(start + at + HEADER, size - at - HEADER)
                    return out
                break
            kind = <uint8_t> start[at + 4]
            request_id = get32(start + at + 5)
            if kind == KIND_EXECUTE:
                out.append((kind, request_id, self._read_execute(start + at + HEADER, length - 5)))
            elif kind == KIND_ROWS:
                out.append((kind, request_id, self._read_rows(start + at + HEADER, length - 5)))
            else:
                out.append((
                    kind, request_id,
                    PyBytes_FromStringAndSize(start + at + HEADER, length - 5),
                ))
            at += 4 + length
            self._need = HEADER
        if at < size:
            self._parts.append(data[at:] if at else data)
            self._have = size - at
        return out

    cdef bint _begin(self, const char* start, Py_ssize_t length) except -1:
        """Begins to gather the body of a long frame where it is to stay."""
        self._kind = <uint8_t> start[4]
        if self._kind == KIND_EXECUTE or self._kind == KIND_ROWS:
            return False
        self._request_id = get32(start + 5)
        self._body = PyBytes_FromStringAndSize(NULL, length - 5)
        self._filled = 0
        return True

    cdef Py_ssize_t _fill(self, const char* start, Py_ssize_t size) except -1:
        """Adds to the long frame under way; how many bytes of `size` were of it."""
        cdef Py_ssize_t taken = min(size, PyBytes_GET_SIZE(self._body) - self._filled)
        memcpy(PyBytes_AS_STRING(self._body) + self._filled, start, taken)
        self._filled += taken
        return taken

    cdef object _read_execute(self, const char* at, Py_ssize_t length):
        cdef uint8_t flags
        cdef Py_ssize_t fixed = EXECUTE_FIXED + 4
        cdef Py_ssize_t params_length
        cdef const char* rest
        cdef object txn = None
        if length < fixed:
            raise ValueError("short Execute")
        flags = <uint8_t> at[40]
        rest = at + EXECUTE_FIXED
        if flags & FLAG_TXN:
            fixed += TXN_BYTES
            if length < fixed:
                raise ValueError("short Execute")
            txn = self._txn_ref(
                PyBytes_FromStringAndSize(rest, 16), get64(rest + 16), get32(rest + 24),
                get64(rest + 28),
            )
            rest += TXN_BYTES
        params_length = get32(rest)
        if length < fixed + params_length:
            raise ValueError("short Execute")
        rest += 4
        return self._execute(
            get64(at), get64(at + 8), get64(at + 16), get64(at + 24), get64(at + 32), txn,
            (flags & FLAG_COMMIT) != 0, (flags >> NOWAIT_SHIFT) & 3,
            PyBytes_FromStringAndSize(rest, params_length),
            PyBytes_FromStringAndSize(rest + params_length, length - fixed - params_length),
        )

    cdef object _read_rows(self, const char* at, Py_ssize_t length):
        if length < ROWS_FIXED:
            raise ValueError("short Rows")
        return self._rows(
            PyBytes_FromStringAndSize(at + ROWS_FIXED, length - ROWS_FIXED), get64(at),
            get64(at + 8), get64(at + 16), get64(at + 24),
        )


def join_items(items) -> bytes:
    """A sequence of bytes as `u32 length, bytes` items."""
    cdef Py_ssize_t total = 0
    cdef bytes item
    for item in items:
        total += 4 + PyBytes_GET_SIZE(item)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, total)
    cdef char* at = PyBytes_AS_STRING(out)
    for item in items:
        at = put32(at, <uint32_t> PyBytes_GET_SIZE(item))
        memcpy(at, PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item))
        at += PyBytes_GET_SIZE(item)
    return out


def split_items(bytes data, Py_ssize_t count) -> list:
    """The `count` items of `data`; ValueError if it is not exactly that."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t length
    cdef const char* start = PyBytes_AS_STRING(data)
    cdef list out = []
    while at < size:
        if size - at < 4:
            raise ValueError("short item")
        length = get32(start + at)
        if size - at - 4 < length:
            raise ValueError("short item")
        out.append(PyBytes_FromStringAndSize(start + at + 4, length))
        at += 4 + length
    if len(out) != count:
        raise ValueError(f"{len(out)} items instead of {count}")
    return out


def slice_items(bytes keys, bytes rows, Py_ssize_t count, Py_ssize_t slice_bytes) -> list:
    """`count` keys and their rows, as items, cut into (count, keys, rows) of about `slice_bytes`.

    ValueError if there are not exactly so many of both.
    """
    cdef const char* key = PyBytes_AS_STRING(keys)
    cdef const char* row = PyBytes_AS_STRING(rows)
    cdef Py_ssize_t key_size = PyBytes_GET_SIZE(keys)
    cdef Py_ssize_t row_size = PyBytes_GET_SIZE(rows)
    cdef Py_ssize_t key_at = 0
    cdef Py_ssize_t row_at = 0
    cdef Py_ssize_t key_from = 0
    cdef Py_ssize_t row_from = 0
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t index
    cdef list slices = []
    for index in range(count):
        if key_size - key_at < 4 or row_size - row_at < 4:
            raise ValueError("short item")
        key_at += 4 + <Py_ssize_t> get32(key + key_at)
        row_at += 4 + <Py_ssize_t> get32(row + row_at)
        if key_at > key_size or row_at > row_size:
            raise ValueError("short item")
        if key_at - key_from + row_at - row_from >= slice_bytes or index == count - 1:
            slices.append((index + 1 - first, keys[key_from:key_at], rows[row_from:row_at]))
            first, key_from, row_from = index + 1, key_at, row_at
    if key_at != key_size or row_at != row_size:
        raise ValueError(f"more than {count} items")
    return slices


cdef inline int compare(const char* a, Py_ssize_t a_length, const char* b, Py_ssize_t b_length) noexcept nogil:
    cdef int order = memcmp(a, b, a_length if a_length < b_length else b_length)
    if order != 0:
        return order
    return (a_length > b_length) - (a_length < b_length)


def items_within(bytes data, Py_ssize_t count, bytes low, bytes high) -> bool:
    """True if all of the `count` items are in `[low, high)`; an empty `high` is no bound.

    ValueError if `data` is not exactly so many items.
    """
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t length
    cdef Py_ssize_t found = 0
    cdef const char* start = PyBytes_AS_STRING(data)
    cdef const char* item
    cdef bint within = True
    while at < size:
        if size - at < 4:
            raise ValueError("short item")
        length = get32(start + at)
        item = start + at + 4
        if size - at - 4 < length:
            raise ValueError("short item")
        if compare(item, length, PyBytes_AS_STRING(low), PyBytes_GET_SIZE(low)) < 0:
            within = False
        if PyBytes_GET_SIZE(high) and compare(
            item, length, PyBytes_AS_STRING(high), PyBytes_GET_SIZE(high)
        ) >= 0:
            within = False
        found += 1
        at += 4 + length
    if found != count:
        raise ValueError(f"{found} items instead of {count}")
    return within


def split_by_range(
    const uint8_t[::1] keys, const uint64_t[::1] key_offsets,
    rows, const uint64_t[::1] row_offsets, starts,
) -> list:
    """Deals rows out to ranges: (range index, indexes, framed keys, framed rows) for each met.

    `starts` are the ranges' first keys in order, the first one being the least key. `rows` may be
    None (deletes); `indexes` is a list, or None if all rows go to that range.
    """
    cdef Py_ssize_t count = key_offsets.shape[0] - 1
    cdef Py_ssize_t ranges = len(starts)
    cdef Py_ssize_t i, low, high, middle, met
    cdef const char* key_data = b""
    cdef const uint8_t[::1] row_view
    cdef const char* row_data = b""
    cdef bint with_rows = rows is not None
    cdef bytes start
    cdef list members
    cdef bytes framed_keys, framed_rows
    if keys.shape[0]:
        key_data = <const char*> &keys[0]
    if with_rows:
        row_view = rows
        if row_view.shape[0]:
            row_data = <const char*> &row_view[0]
    if count <= 0:
        return []
    cdef dict buckets = {}
    if ranges > 1:
        for i in range(count):
            low = 0
            high = ranges
            while high - low > 1:
                middle = (low + high) >> 1
                start = starts[middle]
                if compare(
                    key_data + key_offsets[i], key_offsets[i + 1] - key_offsets[i],
                    PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start),
                ) >= 0:
                    low = middle
                else:
                    high = middle
            members = <list> buckets.get(low)
            if members is None:
                members = []
                buckets[low] = members
            members.append(i)
    if len(buckets) <= 1:
        met = next(iter(buckets)) if buckets else 0
        return [(
            met, None, frame_all(key_data, key_offsets),
            frame_all(row_data, row_offsets) if with_rows else b"",
        )]
    out = []
    for met in sorted(buckets):
        members = buckets[met]
        framed_keys = frame_some(key_data, key_offsets, members)
        framed_rows = frame_some(row_data, row_offsets, members) if with_rows else b""
        out.append((met, members, framed_keys, framed_rows))
    return out


cdef bytes frame_all(const char* data, const uint64_t[::1] offsets):
    cdef Py_ssize_t count = offsets.shape[0] - 1
    cdef Py_ssize_t i
    cdef int64_t length
    cdef bytes out = PyBytes_FromStringAndSize(NULL, offsets[count] - offsets[0] + 4 * count)
    cdef char* at = PyBytes_AS_STRING(out)
    with nogil:
        for i in range(count):
            length = offsets[i + 1] - offsets[i]
            at = put32(at, <uint32_t> length)
            memcpy(at, data + offsets[i], length)
            at += length
    return out


cdef bytes frame_some(const char* data, const uint64_t[::1] offsets, list members):
    cdef Py_ssize_t total = 0
    cdef Py_ssize_t i
    cdef int64_t length
    for i in members:
        total += 4 + offsets[i + 1] - offsets[i]
    cdef bytes out = PyBytes_FromStringAndSize(NULL, total)
    cdef char* at = PyBytes_AS_STRING(out)
    for i in members:
        length = offsets[i + 1] - offsets[i]
        at = put32(at, <uint32_t> length)
        memcpy(at, data + offsets[i], length)
        at += length
    return out
