# cython: language_level=3
"""COPY FROM in text and CSV format: bytes of the client to encoded rows, without the GIL.

Follows the manual's page of COPY ("File Formats") and PostgreSQL's messages. Data comes in chunks
cut anywhere; `feed` returns the rows of the lines that are complete and keeps the rest. Bad data
raises `CoreError` with an attribute `where` that names the table, line and column as PostgreSQL's
CONTEXT does; the reader is of no use after that.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove

cimport cython

from shardb._core.buffer cimport (
    Arena, Buf, arena_alloc, arena_free, arena_init, arena_reset, buf_bytes, buf_free, buf_init,
    core_fail, raise_core,
)
from shardb._core.copyescape cimport unescape_text, unquote_csv
from shardb._core.coreerror import CoreError
from shardb._core.datum cimport (
    Datum, T_INT8, datum_from_text, datum_init, datum_to_text, type_is_text, utf8_check,
)
from shardb._core.rowcodec cimport Layout, RowLayout, row_append, row_fit, row_get
from shardb._core.sanitize cimport PIECEWISE

cdef enum:
    NEED_MORE = 0
    GOT_ROW = 1
    END_OF_DATA = 2
    FAILED = -1
    CONTEXT_MAX_BYTES = 100
    FAILING_VALUE_MAX_BYTES = 64  # as in PostgreSQL's ExecBuildSlotValueDescription

# A field: where its bytes are; `null` if it is NULL.
ctypedef struct Field:
    const char* p
    Py_ssize_t len
    bint null


@cython.final
cdef class CopyReader:
    """Reads COPY data for one table.

    `layout` and `names` are of the table's columns; `columns` are the positions that the data has,
    in its order. Columns that it lacks take their value from the row `defaults`, `rowid` (a position
    or -1) counts up from `next_rowid`. `header`: 0 none, 1 skip a line, 2 it must match the names.
    `force_null`, `force_not_null` are positions (CSV).
    """

    cdef RowLayout layout
    cdef list names
    cdef str table
    cdef bytes defaults_row
    cdef bytes null_text
    cdef const char* null_p
    cdef Py_ssize_t null_len
    cdef bint csv
    cdef char delimiter
    cdef char quote
    cdef char escape
    cdef int header
    cdef int rowid
    cdef readonly int64_t next_rowid
    cdef readonly int64_t line       # of the record at hand, 1-based
    cdef readonly bint ended         # the end-of-data marker was seen
    cdef Py_ssize_t width            # fields a record has
    cdef int* target
    cdef char* flags                 # by position: 1 not null, 2 force null, 4 force not null
    cdef Datum* values
    cdef Field* fields
    cdef char* data
    cdef Py_ssize_t start, end, capacity
    cdef Arena arena
    cdef Buf rows
    cdef uint64_t* offsets
    cdef Py_ssize_t count, offsets_cap
    cdef int bad_column              # position of the column at fault, -1 if none
    cdef Py_ssize_t bad_field
    cdef const char* record
    cdef Py_ssize_t record_len
    cdef Py_ssize_t record_fields    # fields the record at hand has

    def __cinit__(
        self, RowLayout layout not None, str table not None, names, columns, not_null,
        bytes defaults not None, bint csv=False, bytes delimiter=b"\t", bytes quote=b'"',
        bytes escape=b'"', bytes null=b"\\N", int header=0, force_null=(), force_not_null=(),
        int rowid=-1, int64_t next_rowid=0,
    ):
        cdef Py_ssize_t n = layout.c.columns, i
        self.data = NULL
        self.target = NULL
        self.flags = NULL
        self.values = NULL
        self.fields = NULL
        self.offsets = NULL
        arena_init(&self.arena)
        buf_init(&self.rows)
        self.layout = layout
        self.table = table
        self.names = list(names)
        self.defaults_row = defaults
        self.null_text = null
        self.null_p = PyBytes_AS_STRING(self.null_text)
        self.null_len = len(self.null_text)
        self.csv = csv
        self.delimiter = delimiter[0]
        self.quote = quote[0]
        self.escape = escape[0]
        self.header = header
        self.rowid = rowid
        self.next_rowid = next_rowid
        self.width = len(columns)
        self.target = <int*> calloc(self.width + 1, sizeof(int))
        self.flags = <char*> calloc(n + 1, 1)
        self.values = <Datum*> calloc(n + 1, sizeof(Datum))
        self.fields = <Field*> calloc(self.width + 1, sizeof(Field))
        if not self.target or not self.flags or not self.values or not self.fields:
            raise MemoryError()
        for i in range(self.width):
            if not 0 <= columns[i] < n:
                raise ValueError("column position out of range")
            self.target[i] = columns[i]
        for i in not_null:
            self.flags[i] |= 1
        for i in force_null:
            self.flags[i] |= 2
        for i in force_not_null:
            self.flags[i] |= 4
        layout.check(defaults)
        for i in range(n):
            row_get(&layout.c, PyBytes_AS_STRING(self.defaults_row), <int> i, &self.values[i])
        self.line = 0
        self.bad_column = -1

    def __dealloc__(self):
        free(self.data)
        free(self.target)
        free(self.flags)
        free(self.values)
        free(self.fields)
        free(self.offsets)
        arena_free(&self.arena)
        buf_free(&self.rows)

    @property
    def pending(self):
        """Bytes of an incomplete line that are kept."""
        return self.end - self.start

    def feed(self, bytes data not None, bint final=False):
        """(encoded rows, their offsets as native u64, one more than rows) of the complete lines.

        `final`: no more data comes; a last line without its newline counts.
        """
        cdef int state
        cdef bytes rows, offsets
        self._append(data)
        self.count = 0
        self.rows.len = 0
        self._push_offset()
        if self.header and not self.ended:
            self._read_header(final)
        if not self.header:
            with nogil:
                state = self._run(final)
            if state < 0:
                self._raise()
        rows = buf_bytes(&self.rows)
        self.rows.len = 0
        offsets = PyBytes_FromStringAndSize(<char*> self.offsets, self.count * sizeof(uint64_t))
        return rows, offsets

    cdef int _append(self, bytes data) except -1:
        cdef Py_ssize_t more = len(data), live = self.end - self.start
        cdef char* grown
        cdef Py_ssize_t capacity
        if PIECEWISE or self.capacity - self.end < more:
            if self.start:
                memmove(self.data, self.data + self.start, live)
                self.start = 0
                self.end = live
            if PIECEWISE or self.capacity - live < more:
                capacity = live + more if PIECEWISE else 2 * (live + more)
                grown = <char*> realloc(self.data, capacity or 1)
                if grown == NULL:
                    raise MemoryError()
                self.data = grown
                self.capacity = capacity
        if more:
            memcpy(self.data + self.end, PyBytes_AS_STRING(data), more)
            self.end += more
        return 0

    cdef int _push_offset(self) noexcept nogil:
        cdef uint64_t* grown
        if self.count == self.offsets_cap:
            grown = <uint64_t*> realloc(
                self.offsets, sizeof(uint64_t) * <size_t> (2 * self.offsets_cap + 1024))
            if grown == NULL:
                return core_fail("53200", "out of memory")
            self.offsets = grown
            self.offsets_cap = 2 * self.offsets_cap + 1024
        self.offsets[self.count] = self.rows.len
        self.count += 1
        return 0

    cdef int _read_header(self, bint final) except -1:
        cdef int state
        cdef Py_ssize_t i
        cdef bytes name
        with nogil:
            state = self._split(final)
        if state == NEED_MORE:
            return 0
        if state == FAILED:
            self._raise()
        if self.header == 2:
            if self.record_fields != self.width:
                raise self._error("22P04", "wrong number of fields in header line")
            for i in range(self.width):
                name = PyBytes_FromStringAndSize(self.fields[i].p, self.fields[i].len)
                if name.decode("utf-8", "replace") != self.names[self.target[i]]:
                    raise self._error(
                        "22P04",
                        f"column name mismatch in header line field {i + 1}: got "
                        f'"{name.decode("utf-8", "replace")}", expected '
                        f'"{self.names[self.target[i]]}"')
        self.header = 0
        return 0

    cdef int _run(self, bint final) noexcept nogil:
        cdef int state
        cdef Py_ssize_t i
        cdef int at
        cdef Field* field
        cdef Datum* value
        cdef const Layout* layout = &self.layout.c
        while not self.ended:
            state = self._split(final)
            if state == NEED_MORE:
                arena_reset(&self.arena)
                return 0
            if state == END_OF_DATA:
                self.ended = True
                return 0
            if state == FAILED:
                return -1
            self.bad_column = -1
            self.bad_field = -1
            if self.record_fields < self.width:
                self.bad_column = self.target[self.record_fields]
                return core_fail("22P04", "missing data")
            if self.record_fields > self.width:
                return core_fail("22P04", "extra data after last expected column")
            for i in range(self.width):
                field = &self.fields[i]
                at = self.target[i]
                value = &self.values[at]
                if field.null:
                    value.null = 1
                    continue
                datum_init(value, layout.column[at].type)
                if (type_is_text(layout.column[at].type)
                        and utf8_check(field.p, field.len) >= 0):
                    self.bad_column = at
                    self.bad_field = i
                    return core_fail("22021", "invalid byte sequence for encoding \"UTF8\"")
                if (datum_from_text(layout.column[at].type, layout.column[at].typmod, field.p,
                                    field.len, value, &self.arena) != 0
                        or row_fit(layout, at, value, &self.arena) != 0):
                    self.bad_column = at
                    self.bad_field = i
                    return -1
            if self.rowid >= 0:
                datum_init(&self.values[self.rowid], T_INT8)
                self.values[self.rowid].i = self.next_rowid
                self.next_rowid += 1
            for i in range(layout.columns):
                if self.values[i].null and self.flags[i] & 1:
                    self.bad_column = <int> i
                    return core_fail("23502", "null value")
            row_append(layout, self.values, &self.rows)
            if self.rows.failed:
                return core_fail("53200", "out of memory")
            if self._push_offset() != 0:
                return -1
            arena_reset(&self.arena)
        return 0

    # --- records and fields. On GOT_ROW `fields[:record_fields]` are set (at most width, further ones
    # --- are only counted) and the record is consumed.

    cdef int _split(self, bint final) noexcept nogil:
        if self.csv:
            return self._split_csv(final)
        return self._split_text(final)

    cdef int _consume(self, const char* begin, const char* stop, const char* following) noexcept nogil:
        self.record = begin
        self.record_len = stop - begin
        self.start = following - self.data
        return GOT_ROW

    cdef int _split_text(self, bint final) noexcept nogil:
        cdef const char* begin = self.data + self.start
        cdef const char* limit = self.data + self.end
        cdef const char* at = begin
        cdef const char* stop
        cdef const char* following
        cdef const char* field
        cdef Py_ssize_t n = 0
        cdef bint escaped = False
        cdef int64_t extra = 0
        cdef char c
        cdef char delimiter = self.delimiter
        if at == limit:
            return NEED_MORE
        self.line += 1
        # Fields are cut as we go; what we find counts only once the newline is seen.
        field = at
        while True:
            if at == limit:
                if not final:
                    self.line -= 1
                    return NEED_MORE
                stop = following = at
                break
            c = at[0]
            if c == delimiter:
                if n < self.width:
                    if self._text_field(n, field, at, escaped) < 0:
                        return FAILED
                n += 1
                at += 1
                field = at
                escaped = False
            elif c == 0x0A:
                stop = at
                following = at + 1
                if stop > begin and (stop - 1)[0] == 0x0D:
                    stop -= 1
                break
            elif c == 0x5C:
                if at + 1 == limit:
                    if not final:
                        self.line -= 1
                        return NEED_MORE
                    at += 1
                    continue
                escaped = True
                if at[1] == 0x0A:
                    extra += 1
                at += 2
            elif c == 0x0D:
                if at + 1 == limit:
                    if not final:
                        self.line -= 1
                        return NEED_MORE
                elif at[1] != 0x0A:
                    self.record = begin
                    self.record_len = at - begin
                    return core_fail("22P04", "literal carriage return found in data")
                at += 1
            else:
                at += 1
        if stop - begin == 2 and begin[0] == 0x5C and begin[1] == 0x2E:
            self.start = following - self.data
            return END_OF_DATA
        if n < self.width:
            if self._text_field(n, field, stop, escaped) < 0:
                return FAILED
        n += 1
        if self.width == 0 and stop == begin:
            n = 0
        self.line += extra
        self.record_fields = n
        return self._consume(begin, stop, following)

    cdef int _text_field(
        self, Py_ssize_t n, const char* begin, const char* stop, bint escaped
    ) noexcept nogil:
        cdef Field* field = &self.fields[n]
        cdef Py_ssize_t length = stop - begin
        cdef char* out
        cdef char* to
        field.null = False
        if length == self.null_len and memcmp(begin, self.null_p, length) == 0:
            field.null = True
            return 0
        field.p = begin
        field.len = length
        if not escaped:
            return 0
        out = arena_alloc(&self.arena, length + 1)
        if out == NULL:
            return core_fail("53200", "out of memory")
        to = unescape_text(begin, stop, out)
        field.p = out
        field.len = to - out
        return 0

    cdef int _split_csv(self, bint final) noexcept nogil:
        cdef const char* begin = self.data + self.start
        cdef const char* limit = self.data + self.end
        cdef const char* at = begin
        cdef const char* stop
        cdef const char* following
        cdef const char* field
        cdef Py_ssize_t n = 0
        cdef bint quoted = False, inside = False
        cdef int64_t extra = 0
        cdef char c
        cdef char delimiter = self.delimiter, quote = self.quote, escape = self.escape
        if at == limit:
            return NEED_MORE
        self.line += 1
        field = at
        while True:
            if at == limit:
                if not final:
                    self.line -= 1
                    return NEED_MORE
                if inside:
                    self.record = begin
                    self.record_len = at - begin
                    self.line += extra
                    return core_fail("22P04", "unterminated CSV quoted field")
                stop = following = at
                break
            c = at[0]
            if inside:
                if c == escape and (escape != quote or (at + 1 < limit and at[1] == quote)):
                    if at + 1 == limit:
                        if not final:
                            self.line -= 1
                            return NEED_MORE
                        at += 1
                    elif at[1] == quote or at[1] == escape:
                        at += 2
                    else:
                        at += 1
                elif c == quote:
                    # A quote at the end of what we have may be the first of a doubled one.
                    if at + 1 == limit and not final:
                        self.line -= 1
                        return NEED_MORE
                    inside = False
                    at += 1
                else:
                    if c == 0x0A:
                        extra += 1
                    at += 1
            elif c == delimiter:
                if n < self.width:
                    if self._csv_field(n, field, at, quoted) < 0:
                        return FAILED
                n += 1
                at += 1
                field = at
                quoted = False
            elif c == quote:
                quoted = True
                inside = True
                at += 1
            elif c == 0x0A:
                stop = at
                following = at + 1
                if stop > begin and (stop - 1)[0] == 0x0D:
                    stop -= 1
                break
            elif c == 0x0D:
                if at + 1 == limit:
                    if not final:
                        self.line -= 1
                        return NEED_MORE
                elif at[1] != 0x0A:
                    self.record = begin
                    self.record_len = at - begin
                    return core_fail("22P04", "unquoted carriage return found in data")
                at += 1
            else:
                at += 1
        if stop - begin == 2 and begin[0] == 0x5C and begin[1] == 0x2E:
            self.start = following - self.data
            return END_OF_DATA
        if n < self.width:
            if self._csv_field(n, field, stop, quoted) < 0:
                return FAILED
        n += 1
        self.line += extra
        self.record_fields = n
        return self._consume(begin, stop, following)

    cdef int _csv_field(
        self, Py_ssize_t n, const char* begin, const char* stop, bint quoted
    ) noexcept nogil:
        cdef Field* field = &self.fields[n]
        cdef Py_ssize_t length = stop - begin
        cdef char flags = self.flags[self.target[n]]
        cdef char* out
        cdef char* to
        field.null = False
        field.p = begin
        field.len = length
        if quoted:
            out = arena_alloc(&self.arena, length + 1)
            if out == NULL:
                return core_fail("53200", "out of memory")
            to = unquote_csv(begin, stop, self.quote, self.escape, out)
            field.p = out
            field.len = to - out
        if (not quoted and not flags & 4) or flags & 2:
            if field.len == self.null_len and memcmp(field.p, self.null_p, field.len) == 0:
                field.null = True
        return 0

    # --- errors

    cdef object _where(self):
        cdef bytes text
        cdef str where = f"COPY {self.table}, line {self.line}"
        if self.bad_field >= 0 and self.bad_column >= 0:
            text = PyBytes_FromStringAndSize(
                self.fields[self.bad_field].p,
                min(self.fields[self.bad_field].len, CONTEXT_MAX_BYTES))
            return f'{where}, column {self.names[self.bad_column]}: "{text.decode("utf-8", "replace")}"'
        text = PyBytes_FromStringAndSize(self.record, min(self.record_len, CONTEXT_MAX_BYTES))
        shown = text.decode("utf-8", "replace")
        if self.record_len > CONTEXT_MAX_BYTES:
            shown += "..."
        return f'{where}: "{shown}"'

    cdef object _error(self, str sqlstate, str message, str detail=""):
        error = CoreError(sqlstate, message, detail)
        error.where = self._where()
        return error

    cdef str _failing_row(self):
        """The values of the record at hand as PostgreSQL shows them, without a hidden key."""
        cdef Py_ssize_t i
        cdef Buf out
        cdef bytes text
        cdef list shown = []
        buf_init(&out)
        try:
            for i in range(self.layout.c.columns):
                if i == self.rowid:
                    continue
                if self.values[i].null:
                    shown.append("null")
                    continue
                out.len = 0
                if datum_to_text(&self.values[i], self.layout.c.column[i].typmod, &out) != 0:
                    raise_core()
                text = buf_bytes(&out)
                if len(text) > FAILING_VALUE_MAX_BYTES:
                    shown.append(text[:FAILING_VALUE_MAX_BYTES].decode("utf-8", "ignore") + "...")
                else:
                    shown.append(text.decode("utf-8", "replace"))
        finally:
            buf_free(&out)
        return f"Failing row contains ({', '.join(shown)})."

    cdef object _raise(self):
        cdef Py_ssize_t i
        try:
            raise_core()
        except CoreError as error:
            if error.sqlstate == "22P04" and error.message == "missing data":
                raise self._error(
                    "22P04", f'missing data for column "{self.names[self.bad_column]}"') from None
            if error.sqlstate == "23502" and error.message == "null value":
                raise self._error(
                    "23502",
                    f'null value in column "{self.names[self.bad_column]}" of relation '
                    f'"{self.table}" violates not-null constraint',
                    self._failing_row()) from None
            raise self._error(error.sqlstate, error.message, error.detail) from None
