# cython: language_level=3
"""COPY FROM in text and CSV format: bytes of the client to dealt rows, without the GIL.

Follows the manual's page of COPY ("File Formats") and PostgreSQL's messages. Data comes in chunks
cut anywhere; `feed` deals the rows of the lines that are complete and keeps the rest. Bad data
raises `CoreError` with an attribute `where` that names the table, line and column as PostgreSQL's
CONTEXT does; the reader is of no use after that.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, memset

cimport cython

from shardb._core.buffer cimport (
    Arena, Buf, arena_free, arena_init, arena_reset, buf_bytes, buf_free, buf_init,
    core_fail, raise_core,
)
from shardb._core.copysplit cimport (
    END_OF_DATA, FAILED, Field, NEED_MORE, SCAN_BYTES, Splitter, split_begin, split_next,
)
from shardb._core.copyvalue cimport plain_value
from shardb._core.coreerror import CoreError
from shardb._core.datum cimport (
    Datum, T_INT8, datum_from_text, datum_init, datum_to_text, type_is_text, utf8_check,
)
from shardb._core.rowcodec cimport Layout, RowLayout, row_fit, row_get
from shardb._core.rowdeal cimport RowDealer
from shardb._core.sanitize cimport PIECEWISE

cdef enum:
    CONTEXT_MAX_BYTES = 100
    FAILING_VALUE_MAX_BYTES = 64  # as in PostgreSQL's ExecBuildSlotValueDescription


@cython.final
cdef class CopyReader:
    """Reads COPY data for one table and deals its rows by `dealer`.

    `names` are of the table's columns; `columns` are the positions that the data has,
    in its order. Columns that it lacks take their value from the row `defaults`, `rowid` (a position
    or -1) counts up from `next_rowid`. `header`: 0 none, 1 skip a line, 2 it must match the names.
    `force_null`, `force_not_null` are positions (CSV).
    """

    cdef RowLayout layout
    cdef RowDealer dealer
    cdef list names
    cdef str table
    cdef bytes defaults_row
    cdef bytes null_text
    cdef Splitter split
    cdef int header
    cdef int rowid
    cdef readonly int64_t next_rowid
    cdef readonly bint ended         # the end-of-data marker was seen
    cdef Py_ssize_t width            # fields a record has
    cdef int* target
    cdef char* flags                 # by position: 1 not null, 2 force null, 4 force not null
    cdef char* field_flags           # the same by field
    cdef Datum* values
    cdef Py_ssize_t capacity
    cdef Arena arena
    cdef int bad_column              # position of the column at fault, -1 if none
    cdef Py_ssize_t bad_field

    def __cinit__(
        self, RowDealer dealer not None, str table not None, names, columns, not_null,
        bytes defaults not None, bint csv=False, bytes delimiter=b"\t", bytes quote=b'"',
        bytes escape=b'"', bytes null=b"\\N", int header=0, force_null=(), force_not_null=(),
        int rowid=-1, int64_t next_rowid=0,
    ):
        cdef RowLayout layout = dealer.layout
        cdef Py_ssize_t n = layout.c.columns, i
        memset(&self.split, 0, sizeof(Splitter))
        self.target = NULL
        self.flags = NULL
        self.field_flags = NULL
        self.values = NULL
        arena_init(&self.arena)
        self.layout = layout
        self.dealer = dealer
        self.table = table
        self.names = list(names)
        self.defaults_row = defaults
        self.null_text = null
        self.split.null_p = PyBytes_AS_STRING(self.null_text)
        self.split.null_len = len(self.null_text)
        self.split.csv = csv
        self.split.delimiter = delimiter[0]
        self.split.quote = quote[0]
        self.split.escape = escape[0]
        self.split.arena = &self.arena
        self.header = header
        self.rowid = rowid
        self.next_rowid = next_rowid
        self.width = len(columns)
        self.target = <int*> calloc(self.width + 1, sizeof(int))
        self.flags = <char*> calloc(n + 1, 1)
        self.values = <Datum*> calloc(n + 1, sizeof(Datum))
        self.split.fields = <Field*> calloc(self.width + 1, sizeof(Field))
        self.field_flags = <char*> calloc(self.width + 1, 1)
        if not self.target or not self.flags or not self.values or not self.split.fields:
            raise MemoryError()
        if not self.field_flags:
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
        for i in range(self.width):
            self.field_flags[i] = self.flags[self.target[i]]
        self.split.field_flags = self.field_flags
        self.split.width = self.width
        layout.check(defaults)
        for i in range(n):
            row_get(&layout.c, PyBytes_AS_STRING(self.defaults_row), <int> i, &self.values[i])
        self.bad_column = -1

    def __dealloc__(self):
        free(self.split.data)
        free(self.target)
        free(self.flags)
        free(self.values)
        free(self.split.fields)
        free(self.field_flags)
        arena_free(&self.arena)

    @property
    def line(self):
        """The line of the record at hand, 1-based."""
        return self.split.line

    @property
    def pending(self):
        """Bytes of an incomplete line that are kept."""
        return self.split.end - self.split.start

    def feed(self, parts, bint final=False):
        """Adds data, a sequence of bytes, and deals the rows of the lines that are complete.

        `final`: no more data comes; a last line without its newline counts. False if the dealer is
        full and lines are left: take from it and feed again, best without more data.
        """
        cdef int state
        self._append(parts)
        if self.header and not self.ended:
            self._read_header(final)
        if not self.header:
            with nogil:
                self.dealer.prepare()
                state = self._run(final)
            if state < 0:
                self._raise()
        return not self.dealer.full

    cdef int _append(self, parts) except -1:
        cdef Splitter* split = &self.split
        cdef Py_ssize_t more = SCAN_BYTES, live = split.end - split.start
        cdef Py_ssize_t capacity
        cdef bytes part
        cdef char* grown
        for part in parts:
            more += PyBytes_GET_SIZE(part)
        if PIECEWISE or self.capacity - split.end < more:
            if split.start:
                memmove(split.data, split.data + split.start, live)
                split.start = 0
                split.end = live
            if PIECEWISE or self.capacity - live < more:
                capacity = live + more if PIECEWISE else 2 * (live + more)
                grown = <char*> realloc(split.data, capacity)
                if grown == NULL:
                    raise MemoryError()
                split.data = grown
                self.capacity = capacity
        for part in parts:
            memcpy(split.data + split.end, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
            split.end += PyBytes_GET_SIZE(part)
        split_begin(split)
        return 0

    cdef int _read_header(self, bint final) except -1:
        cdef int state
        cdef Py_ssize_t i
        cdef bytes name
        with nogil:
            state = split_next(&self.split, final)
        if state == NEED_MORE:
            return 0
        if state == FAILED:
            self._raise()
        if self.header == 2:
            if self.split.record_fields != self.width:
                raise self._error("22P04", "wrong number of fields in header line")
            for i in range(self.width):
                name = PyBytes_FromStringAndSize(self.split.fields[i].p, self.split.fields[i].len)
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
        while not self.ended and not self.dealer.full:
            state = split_next(&self.split, final)
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
            if self.split.record_fields < self.width:
                self.bad_column = self.target[self.split.record_fields]
                return core_fail("22P04", "missing data")
            if self.split.record_fields > self.width:
                return core_fail("22P04", "extra data after last expected column")
            for i in range(self.width):
                field = &self.split.fields[i]
                at = self.target[i]
                value = &self.values[at]
                if field.null:
                    value.null = 1
                    continue
                if plain_value(&layout.column[at], field.p, field.len, field.plain, value,
                               &self.arena):
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
            if self.dealer.deal(self.values) != 0:
                return -1
            arena_reset(&self.arena)
        return 0

    # --- errors

    cdef object _where(self):
        cdef bytes text
        cdef str where = f"COPY {self.table}, line {self.split.line}"
        if self.bad_field >= 0 and self.bad_column >= 0:
            text = PyBytes_FromStringAndSize(
                self.split.fields[self.bad_field].p,
                min(self.split.fields[self.bad_field].len, CONTEXT_MAX_BYTES))
            return f'{where}, column {self.names[self.bad_column]}: "{text.decode("utf-8", "replace")}"'
        text = PyBytes_FromStringAndSize(self.split.record, min(self.split.record_len, CONTEXT_MAX_BYTES))
        shown = text.decode("utf-8", "replace")
        if self.split.record_len > CONTEXT_MAX_BYTES:
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
