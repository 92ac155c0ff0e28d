"""Row programs: one compiled statement on one table, run against its runs without SQL in sight.

Calls belong to one thread, keep no state between them and never call back. Errors are CoreError
with PostgreSQL's SQLSTATE and message. Oracle: tests/unit/test_rowprog.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp

from shardb._core.buffer cimport (
    arena_reset, buf_be16, buf_be32, buf_free, buf_u8, put_be32, raise_core,
)
from shardb._core.datum cimport datum_to_binary, datum_to_text
from shardb._core.expr cimport eval_condition, eval_expr
from shardb._core.rowagg cimport aggregate_add, aggregate_reset, aggregate_result
from shardb._core.rowcodec cimport row_get
from shardb._core.rowcursor cimport RowCursor
from shardb._core.runs cimport Runs

from shardb._core.coreerror import CoreError
from shardb._core.exprcompile import OPERATORS, supported

__all__ = ["OPERATORS", "Program", "supported"]

cdef object ABSENT = object()
cdef size_t SCRATCH_BYTES_MAX = 1 << 20


cdef inline int compare(const char* a, Py_ssize_t n, const char* b, Py_ssize_t m) noexcept:
    cdef int r = memcmp(a, b, n if n < m else m)
    return r if r != 0 else (n > m) - (n < m)


cdef inline bint within(const char* key, Py_ssize_t n, bytes low, bytes high) noexcept:
    """low <= key < high; an absent or empty bound does not bind."""
    if low is not None and compare(key, n, PyBytes_AS_STRING(low), PyBytes_GET_SIZE(low)) < 0:
        return False
    return (
        high is None or PyBytes_GET_SIZE(high) == 0
        or compare(key, n, PyBytes_AS_STRING(high), PyBytes_GET_SIZE(high)) < 0
    )


cdef class Program(CompiledSpec):
    """A compiled statement. Rows and parameters are bytes in the row encoding, keys memcomparable.

    Common arguments: `params` in `param_layout`; `formats` one byte an output column (0 text,
    1 binary), or one for all, or none for text; `overlay` the transaction's own writes, a mapping of
    key to row or None (deleted), seen before the runs; `low`, `high` the range's bounds (None or
    empty: unbounded) outside of which nothing is seen; `ts` the snapshot, 2**64 - 1 for the newest.
    """

    cdef int take_formats(self, bytes formats) except -1:
        self.formats = <const uint8_t*>PyBytes_AS_STRING(formats)
        self.format_count = PyBytes_GET_SIZE(formats)
        if self.format_count > 1 and self.format_count != self.output_count:
            raise CoreError("08P01", f"bind message has {self.format_count} result formats but "
                                     f"query has {self.output_count} columns")
        if self.out.cap > SCRATCH_BYTES_MAX:
            buf_free(&self.out)
        self.out.len = 0
        return 0

    # --- reading

    def select(self, Runs runs not None, uint64_t ts, bytes params not None,
               bytes formats not None, overlay=None, bytes low=None, bytes high=None):
        """`(data, rows, newest_ts)`: ready DataRow messages, their number, and the largest commit
        timestamp met (of deletions too; own writes have none)."""
        cdef uint64_t newest = 0
        self.begin(params)
        self.take_formats(formats)
        self.take_limits()
        self.collected = None
        if self.has_aggregates:
            for k in range(self.output_count):
                aggregate_reset(&self.aggregate[k])
        self.run(runs, ts, overlay, low, high, &newest)
        if self.has_aggregates:
            self.rows = 0
            if self.left != 0 and self.skip == 0:
                self.emit_aggregates()
        return PyBytes_FromStringAndSize(self.out.data, self.out.len), self.rows, newest

    def candidates(self, Runs runs not None, uint64_t ts, bytes params not None,
                   overlay=None, bytes low=None, bytes high=None):
        """Keys of the rows that match key and filter, in the order of the statement, within its
        limit and offset."""
        cdef uint64_t newest = 0
        cdef list keys = []
        self.begin(params)
        self.take_limits()
        self.collected = keys
        try:
            self.run(runs, ts, overlay, low, high, &newest)
        finally:
            self.collected = None
        return keys

    cdef int run(self, Runs runs, uint64_t ts, object overlay, bytes low, bytes high,
                 uint64_t* newest) except -1:
        cdef const char* row = NULL
        cdef uint64_t commit_ts = 0
        cdef uint32_t length = 0
        cdef bytes key
        cdef list keys
        cdef int found
        if self.left == 0:
            return 0
        if self.point_count == 0:
            return self.run_interval(runs, ts, overlay, low, high, newest)
        if self.point_count == 1 and not overlay:
            # The hot path: no Python object but the answer.
            if self.put_point(&self.point[0]) and within(self.key.data, self.key.len, low, high):
                if runs.lookup(self.key.data, self.key.len, ts, &row, &length, newest):
                    self.visit(self.key.data, self.key.len, row)
            return 0
        keys = self.point_keys()
        if self.reverse:
            keys.reverse()
        for key in keys:
            if not within(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), low, high):
                continue
            own = overlay.get(key, ABSENT) if overlay else ABSENT
            if own is None:
                continue
            if own is not ABSENT:
                row = PyBytes_AS_STRING(<bytes?>own)
            else:
                found = runs.lookup(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), ts, &row,
                                    &length, &commit_ts)
                if commit_ts > newest[0]:
                    newest[0] = commit_ts
                if not found:
                    continue
            if not self.visit(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), row):
                break
        return 0

    cdef int run_interval(self, Runs runs, uint64_t ts, object overlay, bytes low,
                          bytes high, uint64_t* newest) except -1:
        cdef RowCursor cursor
        bounds = self.interval_in_call(low, high)
        if bounds is None:
            return 0
        cursor = RowCursor(runs, bounds[0], bounds[1], ts, self.reverse, overlay)
        while cursor.next():
            arena_reset(&self.arena)
            if not self.visit(cursor.key, cursor.key_length, cursor.row):
                break
        newest[0] = cursor.newest_ts
        return 0

    cdef object interval_in_call(self, bytes low, bytes high):
        """The program's interval cut to the range's bounds, or None if nothing is left."""
        cdef tuple bounds
        bounds = self.key_interval()
        if bounds is None:
            return None
        start, end = bounds
        if low is not None and low > start:
            start = low
        if high and (not end or high < end):
            end = high
        if end and start >= end:
            return None
        return start, end

    cdef int visit(self, const char* key, Py_ssize_t key_length, const char* row) except -1:
        """Takes one row under the key condition; 0 when no more are wanted, else 1."""
        cdef int k
        self.frame.row = row
        if self.filter != NULL:
            k = eval_condition(self.filter, &self.frame)
            if k < 0:
                raise_core()
            if k == 0:
                return 1
        if self.has_aggregates:
            for k in range(self.output_count):
                if aggregate_add(&self.aggregate[k], &self.frame) != 0:
                    raise_core()
            return 1
        if self.skip > 0:
            self.skip -= 1
            return 1
        if self.collected is not None:
            (<list>self.collected).append(PyBytes_FromStringAndSize(key, key_length))
        else:
            self.emit()
        self.rows += 1
        if self.left > 0:
            self.left -= 1
        return self.left != 0

    # --- answers

    cdef int put_field(self, const Datum* d, int index, int typmod) except -1:
        """Appends one column of a DataRow."""
        cdef size_t at
        cdef bint binary = False
        if d.null:
            buf_be32(&self.out, 0xFFFFFFFF)
            return 0
        at = self.out.len
        buf_be32(&self.out, 0)
        if self.format_count:
            binary = self.formats[index if self.format_count > 1 else 0] == 1
        if binary:
            if datum_to_binary(d, typmod, &self.out) != 0:
                raise_core()
        elif datum_to_text(d, typmod, &self.out) != 0:
            raise_core()
        if self.out.failed:
            self.out_of_memory()
        put_be32(self.out.data + at, <uint32_t>(self.out.len - at - 4))
        return 0

    cdef int out_of_memory(self) except -1:
        buf_free(&self.out)
        raise MemoryError

    cdef int emit(self) except -1:
        """Appends a DataRow message of the output expressions on the row at hand."""
        cdef size_t start = self.out.len
        cdef Datum d
        cdef int k
        buf_u8(&self.out, 68)  # 'D'
        buf_be32(&self.out, 0)
        buf_be16(&self.out, <uint16_t>self.output_count)
        for k in range(self.output_count):
            if eval_expr(self.output.expr[k], &self.frame, &d) != 0:
                raise_core()
            self.put_field(&d, k, self.output.expr[k].typmod)
        if self.out.failed:
            self.out_of_memory()
        put_be32(self.out.data + start + 1, <uint32_t>(self.out.len - start - 1))
        return 0

    cdef int emit_aggregates(self) except -1:
        cdef Datum d
        cdef int k
        buf_u8(&self.out, 68)
        buf_be32(&self.out, 0)
        buf_be16(&self.out, <uint16_t>self.output_count)
        for k in range(self.output_count):
            if aggregate_result(&self.aggregate[k], &d) != 0:
                raise_core()
            self.put_field(&d, k, self.aggregate[k].typmod)
        if self.out.failed:
            self.out_of_memory()
        put_be32(self.out.data + 1, <uint32_t>(self.out.len - 1))
        self.rows = 1
        return 0

    def returning(self, bytes row not None, bytes params not None, bytes formats not None):
        """The DataRow message of RETURNING (or of a locking select) for one row; empty without."""
        self.begin(params)
        self.take_formats(formats)
        if self.output_count == 0:
            return b""
        self.frame.row = PyBytes_AS_STRING(row)
        self.emit()
        return PyBytes_FromStringAndSize(self.out.data, self.out.len)

    # --- writing

    def matches(self, bytes row not None, bytes params not None):
        """True if the row passes the filter (its key is taken to match)."""
        cdef int status
        if self.filter == NULL:
            return True
        self.begin(params)
        self.frame.row = PyBytes_AS_STRING(row)
        status = eval_condition(self.filter, &self.frame)
        if status < 0:
            raise_core()
        return status == 1

    def update(self, bytes row not None, bytes params not None):
        """`(key, row)` that the update makes of the row, or None if its filter refuses it."""
        cdef int status
        self.begin(params)
        self.frame.row = PyBytes_AS_STRING(row)
        if self.filter != NULL:
            status = eval_condition(self.filter, &self.frame)
            if status < 0:
                raise_core()
            if status == 0:
                return None
        self.assign(&self.assignments)
        return self.row_key(self.values), self.row_bytes(self.values)

    cdef int assign(self, const ExprList* list) except -1:
        """`values` becomes the row at hand with the assignments applied."""
        cdef int k
        cdef int column
        for k in range(list.count):
            column = list.column[k]
            if eval_expr(list.expr[k], &self.frame, &self.fresh[column]) != 0:
                raise_core()
            self.store(column, &self.fresh[column])
        for k in range(self.columns):
            row_get(&self.row_layout.c, self.frame.row, k, &self.values[k])
        for k in range(list.count):
            column = list.column[k]
            self.values[column] = self.fresh[column]
        for k in range(list.count):
            column = list.column[k]
            if self.values[column].null and self.not_null[column]:
                raise self.null_violation(column, self.values)
        return 0

    def insert(self, bytes params not None, bytes low=None, bytes high=None):
        """`[(key, row)]` of an insert's rows in their order, those in `[low, high)` only."""
        cdef list rows = []
        cdef int k
        cdef bytes key
        self.begin(params)
        for k in range(self.insert_count):
            self.insert_values(k)
            key = self.row_key(self.fresh)
            if within(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), low, high):
                rows.append((key, self.row_bytes(self.fresh)))
        return rows

    def upsert(self, bytes row not None, bytes excluded not None, bytes params not None):
        """The row that ON CONFLICT makes of the existing `row`, or None if it stays as it is."""
        cdef int status
        if self.conflict.count == 0:
            return None
        self.begin(params)
        self.frame.row = PyBytes_AS_STRING(row)
        self.frame.excluded = PyBytes_AS_STRING(excluded)
        if self.conflict_filter != NULL:
            status = eval_condition(self.conflict_filter, &self.frame)
            if status < 0:
                raise_core()
            if status == 0:
                return None
        self.assign(&self.conflict)
        return self.row_bytes(self.values)
