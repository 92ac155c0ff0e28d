# cython: language_level=3
"""The reading side of the Postgres wire protocol: frontend messages out of a growing buffer.

`FrontendBuffer` keeps what came from the socket and walks over complete messages; the parse methods
read the current message in place, every access checked against the message's end. A message longer
than the limit, or one that lies about its lengths, raises `CoreError` 08P01.

The exported values are Python objects that own their bytes; nothing points into the buffer.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy, memmove

cimport cython

from shardb._core.coreerror import CoreError
from shardb._core.sanitize cimport PIECEWISE

cdef enum:
    INITIAL_BYTES = 8192
    KEEP_BYTES = 1 << 20      # a buffer that grew above this shrinks when it runs empty


cdef inline uint16_t _be16(const char* at) noexcept nogil:
    return (<uint16_t> <uint8_t> at[0] << 8) | <uint8_t> at[1]


cdef inline uint32_t _be32(const char* at) noexcept nogil:
    return ((<uint32_t> <uint8_t> at[0] << 24) | (<uint32_t> <uint8_t> at[1] << 16)
            | (<uint32_t> <uint8_t> at[2] << 8) | <uint32_t> <uint8_t> at[3])


cdef bytes _FORMAT_TEXT = b""
cdef bytes _FORMAT_ONE_TEXT = b"\x00"
cdef bytes _FORMAT_ONE_BINARY = b"\x01"


@cython.final
cdef class FrontendBuffer:
    """Bytes from a client, consumed message by message.

    Invariant: `start <= end <= capacity`; the current message, if any, is `[at, stop)` within it and
    stays valid until the next call of `next` or `feed`.
    """

    cdef char* data
    cdef size_t start
    cdef size_t end
    cdef size_t capacity
    cdef size_t limit
    cdef const char* at
    cdef const char* stop

    def __cinit__(self, size_t limit):
        self.data = NULL
        self.start = self.end = self.capacity = 0
        self.limit = limit
        self.at = self.stop = NULL

    def __dealloc__(self):
        free(self.data)

    @property
    def pending(self):
        """Bytes received and not yet consumed."""
        return self.end - self.start

    cdef int _reserve(self, size_t more) except -1:
        cdef size_t live = self.end - self.start
        cdef size_t capacity
        cdef char* grown
        if self.capacity - self.end >= more and not PIECEWISE:
            return 0
        if self.start:
            memmove(self.data, self.data + self.start, live)
            self.start = 0
            self.end = live
            if self.capacity - live >= more and not PIECEWISE:
                return 0
        capacity = self.capacity * 2 if self.capacity else INITIAL_BYTES
        while capacity < live + more:
            capacity *= 2
        if PIECEWISE:
            capacity = live + more
        grown = <char*> realloc(self.data, capacity)
        if grown == NULL:
            raise MemoryError()
        self.data = grown
        self.capacity = capacity
        return 0

    def feed(self, data not None):
        """Appends received bytes. The caller bounds how much it feeds ahead (`pending`)."""
        cdef const unsigned char[::1] view
        cdef Py_ssize_t length
        self.at = self.stop = NULL
        if self.start == self.end:
            self.start = self.end = 0
            if self.capacity > KEEP_BYTES:
                free(self.data)
                self.data = NULL
                self.capacity = 0
        if type(data) is bytes:
            length = len(<bytes> data)
            if length == 0:
                return
            self._reserve(<size_t> length)
            memcpy(self.data + self.end, PyBytes_AS_STRING(data), <size_t> length)
        else:
            view = data
            length = view.shape[0]
            if length == 0:
                return
            self._reserve(<size_t> length)
            memcpy(self.data + self.end, &view[0], <size_t> length)
        self.end += <size_t> length

    def next(self):
        """Steps to the next complete message; its type byte as int, or 0 if there is none yet."""
        cdef size_t have = self.end - self.start
        cdef uint32_t length
        cdef const char* head
        self.at = self.stop = NULL
        if have < 5:
            return 0
        head = self.data + self.start
        length = _be32(head + 1)
        if head[0] == 0:
            raise CoreError("08P01", "invalid frontend message type 0")
        if length < 4:
            raise CoreError("08P01", "invalid message length")
        if length > self.limit:
            raise CoreError("08P01", f"message of {length} bytes is longer than {self.limit} bytes")
        if have < <size_t> length + 1:
            return 0
        self.at = head + 5
        self.stop = head + 1 + length
        self.start += <size_t> length + 1
        return <uint8_t> head[0]

    def peek(self):
        """The type byte of the message after the current one if its header is here, else 0."""
        if self.end - self.start < 5:
            return 0
        return <uint8_t> self.data[self.start]

    def next_startup(self, size_t limit):
        """The next start-up packet without its length, or None if it is not complete."""
        cdef size_t have = self.end - self.start
        cdef uint32_t length
        cdef bytes packet
        if have < 4:
            return None
        length = _be32(self.data + self.start)
        if length < 8 or length > limit:
            raise CoreError("08P01", "invalid length of startup packet")
        if have < length:
            return None
        packet = PyBytes_FromStringAndSize(self.data + self.start + 4, length - 4)
        self.start += length
        return packet

    # --- the current message

    cdef int _need(self, Py_ssize_t count) except -1:
        if count < 0 or self.stop - self.at < count:
            raise CoreError("08P01", "insufficient data left in message")
        return 0

    cdef int _done(self) except -1:
        if self.at != self.stop:
            raise CoreError("08P01", "invalid message format")
        return 0

    cdef bytes _string(self):
        cdef const char* zero
        cdef bytes out
        if self.at >= self.stop:
            raise CoreError("08P01", "invalid string in message")
        zero = <const char*> memchr(self.at, 0, self.stop - self.at)
        if zero == NULL:
            raise CoreError("08P01", "invalid string in message")
        out = PyBytes_FromStringAndSize(self.at, zero - self.at)
        self.at = zero + 1
        return out

    cdef bytes _formats(self):
        # A list of Int16 format codes as one byte each.
        cdef Py_ssize_t count, index
        cdef uint16_t code
        cdef bytes out
        cdef char* to
        self._need(2)
        count = _be16(self.at)
        self.at += 2
        if count == 0:
            return _FORMAT_TEXT
        self._need(2 * count)
        if count == 1:
            code = _be16(self.at)
            self.at += 2
            if code > 1:
                raise CoreError("22023", f"invalid format code: {code}")
            return _FORMAT_ONE_BINARY if code else _FORMAT_ONE_TEXT
        out = PyBytes_FromStringAndSize(NULL, count)
        to = PyBytes_AS_STRING(out)
        for index in range(count):
            code = _be16(self.at)
            self.at += 2
            if code > 1:
                raise CoreError("22023", f"invalid format code: {code}")
            to[index] = <char> code
        return out

    def payload(self):
        """The rest of the current message as bytes."""
        cdef bytes out = PyBytes_FromStringAndSize(self.at, self.stop - self.at)
        self.at = self.stop
        return out

    def payloads(self):
        """The current message's payload and those of the like messages that follow it, joined.

        They are consumed; a message that is not complete, or whose header is bad, is left to `next`.
        """
        cdef const char* first = self.at - 5
        cdef const char* limit = self.data + self.end
        cdef const char* head = first
        cdef Py_ssize_t total = 0
        cdef uint32_t length
        cdef bytes out
        cdef char* to
        while limit - head >= 5 and head[0] == first[0]:
            length = _be32(head + 1)
            if length < 4 or length > self.limit or limit - head < <Py_ssize_t> length + 1:
                break
            total += length - 4
            head += length + 1
        out = PyBytes_FromStringAndSize(NULL, total)
        to = PyBytes_AS_STRING(out)
        self.start = head - self.data
        self.at = self.stop = head
        while first < head:
            length = _be32(first + 1)
            memcpy(to, first + 5, length - 4)
            to += length - 4
            first += length + 1
        return out

    def text(self):
        """Query, CopyFail: the one string of the message, without its terminator."""
        cdef bytes out = self._string()
        self._done()
        return out

    def parse(self):
        """Parse: (statement name, query, parameter type OIDs)."""
        cdef bytes name = self._string()
        cdef bytes query = self._string()
        cdef Py_ssize_t count, index
        cdef list oids
        self._need(2)
        count = _be16(self.at)
        self.at += 2
        self._need(4 * count)
        if count == 0:
            self._done()
            return name, query, ()
        oids = []
        for index in range(count):
            oids.append(_be32(self.at))
            self.at += 4
        self._done()
        return name, query, tuple(oids)

    def bind(self):
        """Bind: (portal, statement, parameter formats, values, result formats).

        Formats are one byte a column, 0 text and 1 binary; an empty list means all text and a list
        of one means all that. A NULL value is None.
        """
        cdef bytes portal = self._string()
        cdef bytes statement = self._string()
        cdef bytes formats = self._formats()
        cdef bytes results
        cdef Py_ssize_t count, index
        cdef int32_t length
        cdef list values = []
        self._need(2)
        count = _be16(self.at)
        self.at += 2
        if len(formats) > 1 and len(formats) != count:
            raise CoreError(
                "08P01",
                f"bind message has {len(formats)} parameter formats but {count} parameters",
            )
        for index in range(count):
            self._need(4)
            length = <int32_t> _be32(self.at)
            self.at += 4
            if length == -1:
                values.append(None)
                continue
            self._need(length)
            values.append(PyBytes_FromStringAndSize(self.at, length))
            self.at += length
        results = self._formats()
        self._done()
        return portal, statement, formats, values, results

    def target(self):
        """Describe, Close: (b"S"[0] or b"P"[0], name)."""
        cdef int kind
        cdef bytes name
        self._need(1)
        kind = <uint8_t> self.at[0]
        self.at += 1
        name = self._string()
        self._done()
        if kind != 0x53 and kind != 0x50:
            raise CoreError("08P01", "invalid DESCRIBE or CLOSE message subtype")
        return kind, name

    def execute(self):
        """Execute: (portal name, row limit; 0 is none)."""
        cdef bytes portal = self._string()
        cdef int32_t limit
        self._need(4)
        limit = <int32_t> _be32(self.at)
        self.at += 4
        self._done()
        return portal, limit if limit > 0 else 0
