"""What a row program is compiled to, and the keys it names.

`CompiledSpec(spec, table)` reads a `shardb.program.ProgramSpec` and the table's descriptor by
attribute (`_core` imports nothing of shardb). It is the base of `rowprog.Program`, which runs it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from shardb._core.buffer cimport (
    Buf, arena_alloc, arena_free, arena_init, arena_reset, buf_bytes,
    buf_free, buf_init, raise_core,
)
from shardb._core.cast cimport datum_cast
from shardb._core.datum cimport T_INT8, T_TIMESTAMPTZ, datum_to_text
from shardb._core.expr cimport OP_CONST, eval_expr
from shardb._core.keycodec cimport KeyCodec, key_append, key_successor
from shardb._core.rowagg cimport aggregate_function
from shardb._core.rowcodec cimport row_check, row_fit, row_get, row_put, row_size
from shardb._core.rowkey cimport (
    BOUND_HIGH, BOUND_LOW, BOUND_POINT, KEY_ERROR, KEY_NONE, KEY_UNBOUNDED, KEY_VALUE, key_comparable,
    key_value,
)

from shardb._core.coreerror import CoreError

cdef Py_ssize_t KEY_BYTES_MAX = 8192
cdef Py_ssize_t ROW_BYTES_MAX = 64 << 20


cdef bint successor(Buf* b) noexcept:
    """Turns a key prefix into the least key above all keys that begin with it; False if none."""
    b.len = key_successor(b.data, b.len)
    return b.len != 0


cdef class CompiledSpec:
    """A compiled statement: its key expressions, filter, outputs and assignments, and scratch space
    for one call at a time."""

    def __cinit__(self, *_):
        arena_init(&self.arena)
        buf_init(&self.key)
        buf_init(&self.out)

    def __dealloc__(self):
        cdef int k
        if self.aggregate != NULL:
            for k in range(self.output_count):
                buf_free(&self.aggregate[k].text)
            free(self.aggregate)
        arena_free(&self.arena)
        buf_free(&self.key)
        buf_free(&self.out)
        free(self.values)

    def __init__(self, spec, table):
        cdef int k
        cdef list types = [(int(c.type_code), c.typmod) for c in table.columns]
        cdef list params = [(int(p.code), p.typmod) for p in spec.params]
        cdef int now = -1
        self.kind = spec.kind
        if self.kind not in ("select", "insert", "update", "delete"):
            raise CoreError("XX000", f"unknown kind of row program: {spec.kind}")
        self.columns = len(types)
        self.table_name = table.name
        self.column_names = tuple(c.name for c in table.columns)
        self.row_layout = RowLayout(table.schema_version, types)
        self.param_layout = RowLayout(0, params)
        self.key_codec = KeyCodec([(*types[at], False, False) for at in table.primary_key])
        for k in range(len(params)):
            if params[k][0] == T_TIMESTAMPTZ:
                now = k
        self.compiler = Compiler(self.columns, len(params), now)
        self.values = <Datum*>calloc(2 * self.columns + 1, sizeof(Datum))
        if self.values == NULL:
            raise MemoryError
        self.fresh = self.values + self.columns
        self.not_null = <uint8_t*>self.keep(self.columns)
        self.key_columns = len(table.primary_key)
        self.key_position = <int32_t*>self.keep(self.key_columns * sizeof(int32_t))
        for k in range(self.columns):
            self.not_null[k] = bool(table.columns[k].not_null)
        for k in range(self.key_columns):
            self.key_position[k] = table.primary_key[k]
            self.not_null[self.key_position[k]] = 1
        self.rowid_column = -1
        if table.columns[table.primary_key[0]].hidden:
            self.rowid_column = table.primary_key[0]
        self.frame.row_layout = &self.row_layout.c
        self.frame.param_layout = &self.param_layout.c
        self.frame.arena = &self.arena
        self.reverse = spec.reverse
        self.has_aggregates = len(spec.aggregates) > 0
        if spec.filter is not None:
            self.filter = self.compiler.compile(spec.filter)
        if spec.limit is not None:
            self.limit = self.compiler.compile(spec.limit)
        if spec.offset is not None:
            self.offset = self.compiler.compile(spec.offset)
        self.has_limit = spec.limit is not None or spec.offset is not None
        self.output = self.compile_list(spec.output)
        self.output_count = self.output.count
        self.assignments = self.compile_assignments(spec.assignments)
        self.compile_keys(spec.key)
        self.compile_rows(spec.rows)
        if spec.conflict is not None:
            self.conflict = self.compile_assignments(spec.conflict.assignments)
            for k in range(self.conflict.count):
                if self.conflict.column[k] in table.primary_key:
                    raise CoreError("0A000", "ON CONFLICT that changes the primary key is not "
                                             "supported in a row program")
            if spec.conflict.filter is not None:
                self.conflict_filter = self.compiler.compile(spec.conflict.filter)
        if self.has_aggregates:
            self.compile_aggregates(spec.aggregates)

    # --- compilation

    cdef void* keep(self, size_t size) except NULL:
        """Zeroed memory that lives as long as the program."""
        cdef void* p = arena_alloc(&self.compiler.arena, size + 1)
        if p == NULL:
            raise MemoryError
        memset(p, 0, size + 1)
        return p

    cdef ExprList compile_list(self, object nodes) except *:
        cdef ExprList out
        out.count = len(nodes)
        out.expr = self.compiler.compile_all(nodes)
        out.column = NULL
        return out

    cdef ExprList compile_assignments(self, object pairs) except *:
        cdef ExprList out
        cdef int k
        out.count = len(pairs)
        out.expr = <Expr**>self.keep(out.count * sizeof(Expr*))
        out.column = <int32_t*>self.keep(out.count * sizeof(int32_t))
        for k in range(out.count):
            out.column[k] = pairs[k][0]
            if not 0 <= out.column[k] < self.columns:
                raise CoreError("XX000", f"program assigns column {pairs[k][0]}")
            out.expr[k] = self.compiler.compile_assigned(pairs[k][1])
        return out

    cdef int compile_keys(self, object key) except -1:
        cdef int k
        self.point_count = len(key.points)
        self.is_points = self.point_count > 0 or self.kind == "insert"
        self.point = <ExprList*>self.keep(self.point_count * sizeof(ExprList))
        for k in range(self.point_count):
            if len(key.points[k]) != self.key_columns:
                raise CoreError("XX000", "a key point of a program has too few columns")
            self.point[k] = self.compile_list(key.points[k])
            self.check_key(&self.point[k])
        if len(key.prefix) > self.key_columns - (key.low is not None or key.high is not None):
            raise CoreError("XX000", "the key interval of a program has too many columns")
        self.prefix = self.compile_list(key.prefix)
        self.check_key(&self.prefix)
        self.low_inclusive = key.low_inclusive
        self.high_inclusive = key.high_inclusive
        if key.low is not None:
            self.low = self.compiler.compile(key.low)
            self.check_key_value(self.prefix.count, self.low)
        if key.high is not None:
            self.high = self.compiler.compile(key.high)
            self.check_key_value(self.prefix.count, self.high)
        return 0

    cdef int check_key(self, const ExprList* list) except -1:
        cdef int k
        for k in range(list.count):
            self.check_key_value(k, list.expr[k])
        return 0

    cdef int check_key_value(self, int position, const Expr* e) except -1:
        """Refuses comparisons with a key column that its encoding does not order."""
        cdef int type = self.row_layout.c.column[self.key_position[position]].type
        if not key_comparable(type, e.type) and not (e.op == OP_CONST and e.value.null):
            raise CoreError("0A000", "comparing a key column with this type is not supported in a "
                                     "row program")
        return 0

    cdef int compile_rows(self, object rows) except -1:
        cdef int k
        cdef tuple params = self.param_layout.types
        self.insert_count = len(rows)
        self.insert_row = <ExprList*>self.keep(self.insert_count * sizeof(ExprList))
        for k in range(self.insert_count):
            pairs = [(at, e) for at, e in enumerate(rows[k]) if at != self.rowid_column]
            if len(pairs) != self.columns - (self.rowid_column >= 0):
                raise CoreError("XX000", "a row of a program has too few columns")
            self.insert_row[k] = self.compile_assignments(pairs)
        if self.insert_count and self.rowid_column >= 0:
            # The parameter that the first row names for it, else the last one.
            self.rowid_param = len(params) - 1
            named = rows[0][self.rowid_column] if len(rows[0]) > self.rowid_column else None
            if type(named).__name__ == "Param":
                self.rowid_param = named.index
            if not 0 <= self.rowid_param < len(params) or params[self.rowid_param][0] != T_INT8:
                raise CoreError("XX000", "program has no parameter for the row id")
        return 0

    cdef int compile_aggregates(self, object aggregates) except -1:
        cdef int k
        cdef Accumulator* a
        self.output_count = len(aggregates)
        self.aggregate = <Accumulator*>calloc(self.output_count, sizeof(Accumulator))
        if self.aggregate == NULL:
            raise MemoryError
        for k in range(self.output_count):
            a = &self.aggregate[k]
            a.type = <uint8_t>int(aggregates[k].type.code)
            a.typmod = aggregates[k].type.typmod
            a.function = aggregate_function(
                aggregates[k].function, a.type,
                0 if aggregates[k].argument is None else int(aggregates[k].argument.type.code))
            if aggregates[k].argument is not None:
                a.argument = self.compiler.compile(aggregates[k].argument)
            elif a.function != 0:
                raise CoreError("XX000", "an aggregate of a program has no argument")
        return 0

    # --- the call at hand

    cdef int begin(self, bytes params) except -1:
        arena_reset(&self.arena)
        if row_check(&self.param_layout.c, PyBytes_AS_STRING(params),
                     PyBytes_GET_SIZE(params)) != 0:
            raise CoreError("XX000", "malformed parameters of a row program")
        self.frame.params = PyBytes_AS_STRING(params)
        self.frame.row = NULL
        self.frame.excluded = NULL
        return 0

    cdef int take_limits(self) except -1:
        cdef Datum d
        self.left = -1
        self.skip = 0
        self.rows = 0
        if self.limit != NULL:
            if eval_expr(self.limit, &self.frame, &d) != 0:
                raise_core()
            if not d.null:
                if d.i < 0:
                    raise CoreError("2201W", "LIMIT must not be negative")
                self.left = d.i
        if self.offset != NULL:
            if eval_expr(self.offset, &self.frame, &d) != 0:
                raise_core()
            if not d.null:
                if d.i < 0:
                    raise CoreError("2201X", "OFFSET must not be negative")
                self.skip = d.i
        return 0

    # --- keys

    cdef int put_key_value(self, int position, const Expr* e, int bound, bint* inclusive) except -2:
        """Appends one column of a key to the key buffer; KEY_... says what the value means."""
        cdef Datum d
        cdef int status
        cdef int at = self.key_position[position]
        if eval_expr(e, &self.frame, &d) != 0:
            raise_core()
        if d.null:
            return KEY_NONE
        status = key_value(&d, self.row_layout.c.column[at].type,
                           self.row_layout.c.column[at].typmod, bound, inclusive, &self.arena)
        if status == KEY_ERROR:
            raise_core()
        if status == KEY_VALUE:
            key_append(&self.key_codec.column[position], &d, &self.key)
        return status

    cdef int put_point(self, const ExprList* point) except -1:
        """The key of a point in the key buffer, or False if it selects nothing."""
        cdef int k
        cdef bint inclusive = True
        self.key.len = 0
        for k in range(point.count):
            if self.put_key_value(k, point.expr[k], BOUND_POINT, &inclusive) != KEY_VALUE:
                return False
        return True

    cdef list point_keys(self):
        cdef int k
        cdef set keys
        if self.point_count == 1:
            return [buf_bytes(&self.key)] if self.put_point(&self.point[0]) else []
        keys = set()
        for k in range(self.point_count):
            if self.put_point(&self.point[k]):
                keys.add(buf_bytes(&self.key))
        return sorted(keys)

    cpdef list points(self, bytes params):
        """The keys that the statement names (an insert: of its rows), ascending, each once."""
        cdef int k
        cdef set keys
        self.begin(params)
        if self.insert_count == 0:
            return self.point_keys()
        keys = set()
        for k in range(self.insert_count):
            self.insert_values(k)
            keys.add(self.row_key(self.fresh))
        return sorted(keys)

    cpdef tuple interval(self, bytes params):
        """`(low, high)` of the keys that may match (empty high: to the last), or None for no key."""
        self.begin(params)
        return self.key_interval()

    cdef tuple key_interval(self):
        cdef int k
        cdef int status
        cdef size_t stem
        cdef bint inclusive = True
        cdef bytes low
        cdef bytes high
        self.key.len = 0
        for k in range(self.prefix.count):
            if self.put_key_value(k, self.prefix.expr[k], BOUND_POINT, &inclusive) != KEY_VALUE:
                return None
        stem = self.key.len
        if self.low != NULL:
            inclusive = self.low_inclusive
            status = self.put_key_value(self.prefix.count, self.low, BOUND_LOW, &inclusive)
            if status == KEY_NONE:
                return None
            if status == KEY_VALUE and not inclusive and not successor(&self.key):
                return None
        low = buf_bytes(&self.key)
        # The successor may have changed or shortened the stem: rebuild it.
        self.key.len = 0
        for k in range(self.prefix.count):
            self.put_key_value(k, self.prefix.expr[k], BOUND_POINT, &inclusive)
        status = KEY_UNBOUNDED
        inclusive = True
        if self.high != NULL:
            inclusive = self.high_inclusive
            status = self.put_key_value(self.prefix.count, self.high, BOUND_HIGH, &inclusive)
            if status == KEY_NONE:
                return None
            if status == KEY_UNBOUNDED:
                inclusive = True
        if inclusive and not successor(&self.key):
            self.key.len = 0
        high = buf_bytes(&self.key)
        if high and high <= low:
            return None
        return low, high

    cdef bytes row_key(self, const Datum* values):
        cdef int k
        self.key.len = 0
        for k in range(self.key_columns):
            key_append(&self.key_codec.column[k], &values[self.key_position[k]], &self.key)
        if <Py_ssize_t>self.key.len > KEY_BYTES_MAX:
            raise CoreError("54000", f"primary key of {self.key.len} bytes exceeds maximum "
                                     f"{KEY_BYTES_MAX}")
        return buf_bytes(&self.key)

    cdef bytes row_bytes(self, const Datum* values):
        cdef Py_ssize_t size = row_size(&self.row_layout.c, values)
        cdef bytes row
        if size > ROW_BYTES_MAX:
            raise CoreError("54000", f"row of {size} bytes exceeds maximum {ROW_BYTES_MAX}")
        row = PyBytes_FromStringAndSize(NULL, size)
        row_put(&self.row_layout.c, values, PyBytes_AS_STRING(row))
        return row

    # --- values of new rows

    cdef int store(self, int column, Datum* d) except -1:
        """Makes *d a value of the column as an assignment does; NULL is not looked at."""
        cdef int type = self.row_layout.c.column[column].type
        if d.null:
            d.type = <uint8_t>type
            return 0
        if d.type != type and datum_cast(
            d, type, self.row_layout.c.column[column].typmod, d, &self.arena
        ) != 0:
            raise_core()
        if row_fit(&self.row_layout.c, column, d, &self.arena) != 0:
            raise_core()
        return 0

    cdef int insert_values(self, int index) except -1:
        """Evaluates row `index` of an insert into `fresh`."""
        cdef ExprList* row = &self.insert_row[index]
        cdef Datum* d
        cdef int k
        if self.rowid_column >= 0:
            d = &self.fresh[self.rowid_column]
            row_get(&self.param_layout.c, self.frame.params, self.rowid_param, d)
            d.i += index
        for k in range(row.count):
            d = &self.fresh[row.column[k]]
            if eval_expr(row.expr[k], &self.frame, d) != 0:
                raise_core()
            self.store(row.column[k], d)
        for k in range(self.columns):
            if self.fresh[k].null and self.not_null[k]:
                raise self.null_violation(k, self.fresh)
        return 0

    cdef object null_violation(self, int column, const Datum* values):
        """PostgreSQL's error for a NULL in a NOT NULL column, with the failing row."""
        cdef list shown = []
        cdef int k
        cdef bytes text
        for k in range(self.columns):
            if k == self.rowid_column:
                continue
            if values[k].null:
                shown.append("null")
                continue
            self.key.len = 0
            if datum_to_text(&values[k], self.row_layout.c.column[k].typmod, &self.key) != 0:
                raise_core()
            text = buf_bytes(&self.key)
            if len(text) > 64:
                shown.append(text[:64].decode("utf-8", "ignore") + "...")
            else:
                shown.append(text.decode("utf-8", "replace"))
        return CoreError(
            "23502",
            f'null value in column "{self.column_names[column]}" of relation '
            f'"{self.table_name}" violates not-null constraint',
            f"Failing row contains ({', '.join(shown)}).")
