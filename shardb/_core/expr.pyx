"""Expressions of row programs: typed trees compiled to C nodes and evaluated without the GIL.

Semantics are PostgreSQL's: three-valued logic, errors 22003, 22012 and 22P02, text compared by
bytes, bpchar without its trailing blanks. The binder has inserted the casts; what an operator
cannot take is refused at compile time with 0A000, so that the planner can choose another plan.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.string cimport memcpy, memset

from shardb._core.arith cimport (
    ARITH_ABS, ARITH_ADD, ARITH_DIV, ARITH_MOD, ARITH_MUL, ARITH_NEG, ARITH_SUB, float_arith,
    int_arith, number_as_double, numeric_arith, numeric_compare, temporal_arith, temporal_supported,
)
from shardb._core.buffer cimport arena_alloc, arena_free, arena_init, core_fail, raise_core
from shardb._core.cast cimport datum_cast, datum_cast_explicit
from shardb._core.datum cimport (
    T_BOOL, T_BPCHAR, T_BYTEA, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_INTERVAL,
    T_JSON, T_JSONB, T_NUMERIC, T_TEXT, T_TIME, T_TIMESTAMP, T_TIMESTAMPTZ, T_UNKNOWN, T_UUID,
    T_VARCHAR, datum_cmp, datum_from_text,
)
from shardb._core.rowcodec cimport row_get
from shardb._core.textops cimport (
    blank_stripped, fold_case, like_match, text_compare, text_concat, text_length,
)

from shardb._core.coreerror import CoreError

cdef enum Op:
    OP_CONST
    OP_PARAM
    OP_COLUMN
    OP_EXCLUDED
    OP_EQ
    OP_NE
    OP_LT
    OP_LE
    OP_GT
    OP_GE
    OP_ADD
    OP_SUB
    OP_MUL
    OP_DIV
    OP_MOD
    OP_NEG
    OP_ABS
    OP_AND
    OP_OR
    OP_NOT
    OP_IS_NULL
    OP_IS_NOT_NULL
    OP_IS_DISTINCT
    OP_IS_NOT_DISTINCT
    OP_CAST
    OP_COALESCE
    OP_NULLIF
    OP_CASE
    OP_CONCAT
    OP_LIKE
    OP_ILIKE
    OP_IN
    OP_LOWER
    OP_UPPER
    OP_LENGTH

cdef enum Kind:
    KIND_NONE
    KIND_INT          # by the member i
    KIND_FLOAT
    KIND_NUMERIC
    KIND_TEXT
    KIND_BPCHAR
    KIND_DATUM        # datum_cmp
    KIND_DATE_STAMP   # date against timestamp
    KIND_TEMPORAL
    KIND_ASSIGN       # a cast that refuses what is too long

cdef dict NAMES = {
    "=": OP_EQ, "<>": OP_NE, "<": OP_LT, "<=": OP_LE, ">": OP_GT, ">=": OP_GE,
    "+": OP_ADD, "-": OP_SUB, "*": OP_MUL, "/": OP_DIV, "%": OP_MOD, "neg": OP_NEG, "abs": OP_ABS,
    "and": OP_AND, "or": OP_OR, "not": OP_NOT, "is_null": OP_IS_NULL,
    "is_not_null": OP_IS_NOT_NULL, "is_distinct": OP_IS_DISTINCT,
    "is_not_distinct": OP_IS_NOT_DISTINCT, "cast": OP_CAST, "coalesce": OP_COALESCE,
    "nullif": OP_NULLIF, "case": OP_CASE, "||": OP_CONCAT, "like": OP_LIKE, "ilike": OP_ILIKE,
    "in": OP_IN, "lower": OP_LOWER, "upper": OP_UPPER, "length": OP_LENGTH, "now": OP_PARAM,
}
OPERATORS = frozenset(NAMES)

cdef long long STAMP_DAYS = 106751991
cdef long long DAY_US = 86400000000


cdef inline bint is_int(int t) noexcept nogil:
    return t == T_INT2 or t == T_INT4 or t == T_INT8


cdef inline bint is_float(int t) noexcept nogil:
    return t == T_FLOAT4 or t == T_FLOAT8


cdef inline bint is_number(int t) noexcept nogil:
    return is_int(t) or is_float(t) or t == T_NUMERIC


cdef inline bint is_text(int t) noexcept nogil:
    return t == T_TEXT or t == T_VARCHAR or t == T_UNKNOWN


cdef inline bint is_stamp(int t) noexcept nogil:
    return t == T_TIMESTAMP or t == T_TIMESTAMPTZ


cdef int compare_kind(int a, int b) noexcept nogil:
    """How values of two types compare, KIND_NONE if they do not."""
    if is_text(a) and is_text(b):
        return KIND_TEXT
    if (a == T_BPCHAR and (is_text(b) or b == T_BPCHAR)) or (b == T_BPCHAR and is_text(a)):
        return KIND_BPCHAR
    if is_number(a) and is_number(b):
        if is_int(a) and is_int(b):
            return KIND_INT
        if is_float(a) or is_float(b):
            return KIND_FLOAT
        return KIND_NUMERIC
    if (a == T_DATE and is_stamp(b)) or (is_stamp(a) and b == T_DATE):
        return KIND_DATE_STAMP
    if is_stamp(a) and is_stamp(b):
        return KIND_INT
    if a != b or a == T_JSON:
        return KIND_NONE
    if a == T_BOOL or a == T_DATE or a == T_TIME:
        return KIND_INT
    return KIND_DATUM


cdef inline long long as_stamp(const Datum* a) noexcept nogil:
    if a.type != T_DATE:
        return a.i
    if a.i > STAMP_DAYS:
        return INT64_MAX
    if a.i < -STAMP_DAYS:
        return INT64_MIN
    return a.i * DAY_US


cdef int compare_values(int kind, const Datum* a, const Datum* b) noexcept nogil:
    """Negative, 0 or positive; neither is NULL. NaN equals itself and is above all numbers."""
    cdef double x
    cdef double y
    cdef long long p
    cdef long long q
    if kind == KIND_INT:
        return (a.i > b.i) - (a.i < b.i)
    if kind == KIND_TEXT:
        return text_compare(a.p, a.len, b.p, b.len)
    if kind == KIND_NUMERIC:
        return numeric_compare(a, b)
    if kind == KIND_FLOAT:
        x = number_as_double(a)
        y = number_as_double(b)
        if x < y:
            return -1
        if x > y:
            return 1
        if x == y:
            return 0
        return (x != x) - (y != y)
    if kind == KIND_BPCHAR:
        return text_compare(a.p, blank_stripped(a.p, a.len), b.p, blank_stripped(b.p, b.len))
    if kind == KIND_DATE_STAMP:
        p = as_stamp(a)
        q = as_stamp(b)
        return (p > q) - (p < q)
    return datum_cmp(a, b)


cdef inline int set_bool(Datum* out, bint value) noexcept nogil:
    out.type = T_BOOL
    out.null = 0
    out.i = value
    return 0


cdef inline int set_null(Datum* out, int type) noexcept nogil:
    out.type = <uint8_t>type
    out.null = 1
    return 0


cdef int eval_logic(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    """AND and OR: an argument that decides wins over errors to its right and over NULL."""
    cdef int k
    cdef bint unknown = False
    cdef bint decides = e.op == OP_OR
    for k in range(e.count):
        if eval_expr(e.args[k], f, out) != 0:
            return -1
        if out.null:
            unknown = True
        elif (out.i != 0) == decides:
            return set_bool(out, decides)
    if unknown:
        return set_null(out, T_BOOL)
    return set_bool(out, not decides)


cdef int eval_compare(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    cdef Datum a
    cdef Datum b
    cdef int r
    cdef int op = e.op
    if eval_expr(e.args[0], f, &a) != 0 or eval_expr(e.args[1], f, &b) != 0:
        return -1
    if op == OP_IS_DISTINCT or op == OP_IS_NOT_DISTINCT:
        if a.null or b.null:
            r = a.null != b.null
        else:
            r = compare_values(e.kind, &a, &b) != 0
        return set_bool(out, r if op == OP_IS_DISTINCT else not r)
    if a.null or b.null:
        return set_null(out, T_BOOL)
    r = compare_values(e.kind, &a, &b)
    if op == OP_EQ:
        r = r == 0
    elif op == OP_NE:
        r = r != 0
    elif op == OP_LT:
        r = r < 0
    elif op == OP_LE:
        r = r <= 0
    elif op == OP_GT:
        r = r > 0
    else:
        r = r >= 0
    return set_bool(out, r)


cdef int eval_arith(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    cdef Datum a
    cdef Datum b
    cdef int op
    if eval_expr(e.args[0], f, &a) != 0:
        return -1
    b.i = 0
    b.null = 0
    b.type = a.type
    if e.count == 2 and eval_expr(e.args[1], f, &b) != 0:
        return -1
    if a.null or b.null:
        return set_null(out, e.type)
    op = e.op - OP_ADD + ARITH_ADD
    if e.op == OP_NEG:
        op = ARITH_NEG
    elif e.op == OP_ABS:
        op = ARITH_ABS
    if e.kind == KIND_INT:
        return int_arith(op, e.type, a.i, b.i, out)
    if e.kind == KIND_FLOAT:
        return float_arith(op, e.type, &a, &b, out)
    if e.kind == KIND_NUMERIC:
        return numeric_arith(op, &a, NULL if e.count == 1 else &b, out)
    return temporal_arith(op, e.type, &a, &b, out)


cdef int eval_in(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    cdef Datum probe
    cdef int k
    cdef bint unknown = False
    if eval_expr(e.args[0], f, &probe) != 0:
        return -1
    if probe.null:
        return set_null(out, T_BOOL)
    for k in range(1, e.count):
        if eval_expr(e.args[k], f, out) != 0:
            return -1
        if out.null:
            unknown = True
        elif compare_values(e.kind, &probe, out) == 0:
            return set_bool(out, True)
    if unknown:
        return set_null(out, T_BOOL)
    return set_bool(out, False)


cdef int eval_like(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    cdef Datum a
    cdef Datum b
    cdef Datum c
    cdef int r
    cdef char escape = c'\\'
    if eval_expr(e.args[0], f, &a) != 0 or eval_expr(e.args[1], f, &b) != 0:
        return -1
    if a.null or b.null:
        return set_null(out, T_BOOL)
    if e.count == 3:
        if eval_expr(e.args[2], f, &c) != 0:
            return -1
        if c.null:
            return set_null(out, T_BOOL)
        if c.len > 1:
            return core_fail(b"22025", b"invalid escape string")
        escape = c.p[0] if c.len == 1 else 0
    if e.op == OP_ILIKE:
        c = a
        if fold_case(&c, False, f.arena, &a) != 0:
            return -1
        c = b
        if fold_case(&c, False, f.arena, &b) != 0:
            return -1
    r = like_match(a.p, a.len, b.p, b.len, escape)
    if r < 0:
        return -1
    return set_bool(out, r)


cdef int eval_cast(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    """An explicit cast; to varchar(n) and char(n) it cuts silently where assignment would refuse."""
    cdef Datum a
    if eval_expr(e.args[0], f, &a) != 0:
        return -1
    if a.null:
        return set_null(out, e.type)
    if e.kind == KIND_ASSIGN:
        return datum_cast(&a, e.type, e.typmod, out, f.arena)
    return datum_cast_explicit(&a, e.type, e.typmod, out, f.arena)


cdef int eval_case(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    cdef int k = 0
    while k + 1 < e.count:
        if eval_expr(e.args[k], f, out) != 0:
            return -1
        if not out.null and out.i != 0:
            return eval_expr(e.args[k + 1], f, out)
        k += 2
    if k < e.count:
        return eval_expr(e.args[k], f, out)
    return set_null(out, e.type)


cdef int eval_text(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    """||, lower, upper and length."""
    cdef Datum a
    cdef Datum b
    if eval_expr(e.args[0], f, &a) != 0:
        return -1
    if e.op == OP_CONCAT:
        if eval_expr(e.args[1], f, &b) != 0:
            return -1
        if a.null or b.null:
            return set_null(out, e.type)
        out.type = e.type
        out.null = 0
        return text_concat(&a, &b, f.arena, out)
    if a.null:
        return set_null(out, e.type)
    out.type = e.type
    out.null = 0
    if e.op == OP_LENGTH:
        if a.type == T_BYTEA:
            out.i = a.len
        elif a.type == T_BPCHAR:
            out.i = text_length(a.p, blank_stripped(a.p, a.len))
        else:
            out.i = text_length(a.p, a.len)
        return 0
    return fold_case(&a, e.op == OP_UPPER, f.arena, out)


cdef int eval_expr(const Expr* e, const Frame* f, Datum* out) noexcept nogil:
    cdef Datum a
    cdef int k
    cdef int op = e.op
    if op == OP_CONST:
        out[0] = e.value
        return 0
    if op == OP_PARAM:
        row_get(f.param_layout, f.params, e.index, out)
        return 0
    if op == OP_COLUMN:
        row_get(f.row_layout, f.row, e.index, out)
        return 0
    if op == OP_EXCLUDED:
        row_get(f.row_layout, f.excluded, e.index, out)
        return 0
    if op <= OP_GE:
        return eval_compare(e, f, out)
    if op <= OP_ABS:
        return eval_arith(e, f, out)
    if op <= OP_OR:
        return eval_logic(e, f, out)
    if op == OP_NOT:
        if eval_expr(e.args[0], f, &a) != 0:
            return -1
        if a.null:
            return set_null(out, T_BOOL)
        return set_bool(out, a.i == 0)
    if op == OP_IS_NULL or op == OP_IS_NOT_NULL:
        if eval_expr(e.args[0], f, &a) != 0:
            return -1
        return set_bool(out, a.null if op == OP_IS_NULL else not a.null)
    if op == OP_IS_DISTINCT or op == OP_IS_NOT_DISTINCT:
        return eval_compare(e, f, out)
    if op == OP_CAST:
        return eval_cast(e, f, out)
    if op == OP_COALESCE:
        for k in range(e.count):
            if eval_expr(e.args[k], f, out) != 0:
                return -1
            if not out.null:
                return 0
        return set_null(out, e.type)
    if op == OP_NULLIF:
        if eval_expr(e.args[0], f, out) != 0 or eval_expr(e.args[1], f, &a) != 0:
            return -1
        if not out.null and not a.null and compare_values(e.kind, out, &a) == 0:
            return set_null(out, e.type)
        return 0
    if op == OP_CASE:
        return eval_case(e, f, out)
    if op == OP_LIKE or op == OP_ILIKE:
        return eval_like(e, f, out)
    if op == OP_IN:
        return eval_in(e, f, out)
    return eval_text(e, f, out)


cdef int eval_condition(const Expr* e, const Frame* f) noexcept nogil:
    cdef Datum d
    if eval_expr(e, f, &d) != 0:
        return -1
    return not d.null and d.i != 0


# --- compilation

cdef int arith_kind(int op, int type, list args) except -2:
    """The arithmetic that `op` on these argument types means, KIND_NONE if there is none."""
    cdef int a = args[0]
    cdef int b = args[1] if len(args) == 2 else a
    cdef bint unary = op == OP_NEG or op == OP_ABS
    cdef int arith = op - OP_ADD + ARITH_ADD
    if len(args) != (1 if unary else 2):
        return KIND_NONE
    # A NULL literal takes any part: the result is NULL.
    if a == T_UNKNOWN:
        a = b if b != T_UNKNOWN else type
    if b == T_UNKNOWN:
        b = a
    if is_number(a) and is_number(b):
        if is_int(type):
            return KIND_INT if is_int(a) and is_int(b) else KIND_NONE
        if is_float(type):
            return KIND_NONE if op == OP_MOD else KIND_FLOAT
        if type == T_NUMERIC:
            return KIND_NONE if is_float(a) or is_float(b) else KIND_NUMERIC
        return KIND_NONE
    if op == OP_NEG:
        arith = ARITH_NEG
    elif op == OP_ABS:
        return KIND_NONE
    return KIND_TEMPORAL if temporal_supported(arith, type, a, b) else KIND_NONE


cdef bint texts(list args) except -1:
    for code in args:
        if not (is_text(code) or code == T_BPCHAR):
            return False
    return True


cdef int choose_kind(int op, int type, list args) except -2:
    """The specialisation of `op` for argument types `args`; -1 if it has none."""
    cdef int kind
    cdef int a
    cdef int n = len(args)
    if OP_EQ <= op <= OP_GE or op in (OP_IS_DISTINCT, OP_IS_NOT_DISTINCT, OP_NULLIF):
        if n != 2:
            return -1
        kind = pair_kind(args[0], args[1])
        return kind if kind != KIND_NONE else -1
    if OP_ADD <= op <= OP_ABS:
        kind = arith_kind(op, type, args)
        return kind if kind != KIND_NONE else -1
    if op == OP_IN:
        if n < 1:
            return -1
        kind = KIND_INT
        for k in range(1, n):
            a = pair_kind(args[0], args[k])
            if a == KIND_NONE:
                return -1
            if args[k] == T_UNKNOWN:
                continue
            if kind == KIND_INT or kind == a:
                kind = a
            elif not (kind == KIND_NUMERIC and a == KIND_INT):
                return -1
        return kind
    if op in (OP_LIKE, OP_ILIKE):
        return KIND_TEXT if n in (2, 3) and texts(args) else -1
    if op in (OP_LOWER, OP_UPPER):
        return KIND_TEXT if n == 1 and texts(args) else -1
    if op == OP_LENGTH:
        return KIND_TEXT if n == 1 and (texts(args) or args[0] == T_BYTEA) else -1
    if op == OP_CONCAT:
        if n != 2:
            return -1
        if type == T_BYTEA:
            return KIND_TEXT if all(t in (T_BYTEA, T_UNKNOWN) for t in args) else -1
        return KIND_TEXT if texts(args) and (is_text(type) or type == T_BPCHAR) else -1
    if op in (OP_AND, OP_OR):
        return KIND_NONE if n and all(t in (T_BOOL, T_UNKNOWN) for t in args) else -1
    if op == OP_NOT:
        return KIND_NONE if n == 1 and args[0] in (T_BOOL, T_UNKNOWN) else -1
    if op in (OP_IS_NULL, OP_IS_NOT_NULL, OP_CAST):
        return KIND_NONE if n == 1 else -1
    if op == OP_CASE:
        return KIND_NONE if n >= 2 else -1
    if op == OP_COALESCE:
        return KIND_NONE if n else -1
    return KIND_NONE if op == OP_PARAM and n == 0 else -1


cdef int pair_kind(int a, int b) noexcept:
    """compare_kind with UNKNOWN (a NULL literal, or text) standing for the other type."""
    if a == T_UNKNOWN:
        return compare_kind(b, b)
    if b == T_UNKNOWN:
        return compare_kind(a, a)
    return compare_kind(a, b)


def supported(op, result, arguments):
    """True if the row programs have `op` on these type codes (UNKNOWN stands for a NULL literal)."""
    return op in NAMES and choose_kind(NAMES[op], result, list(arguments)) >= 0


cdef object unsupported(str what):
    return CoreError("0A000", f"{what} is not supported in a row program")


cdef class Compiler:
    """Turns expression values (`shardb.program`) into C nodes and owns them.

    Nodes are told apart by class name (Const, Param, Col, Call), so that `_core` need not know the
    classes. `now` reads parameter `now_index`.
    """

    def __cinit__(self, int columns, int param_count, int now_index):
        arena_init(&self.arena)
        self.columns = columns
        self.param_count = param_count
        self.now_index = now_index

    def __dealloc__(self):
        arena_free(&self.arena)

    cdef Expr** compile_all(self, object nodes) except? NULL:
        cdef Expr** out
        cdef int k
        if len(nodes) == 0:
            return NULL
        out = <Expr**>arena_alloc(&self.arena, len(nodes) * sizeof(Expr*))
        if out == NULL:
            raise MemoryError
        for k in range(len(nodes)):
            out[k] = self.compile(nodes[k])
        return out

    cdef Expr* compile_assigned(self, object node) except NULL:
        """As compile; a cast on top is the assignment's own, and does not cut strings."""
        cdef Expr* e = self.compile(node)
        if e.op == OP_CAST:
            e.kind = KIND_ASSIGN
        return e

    cdef Expr* compile(self, object node) except NULL:
        cdef Expr* e = <Expr*>arena_alloc(&self.arena, sizeof(Expr))
        cdef str name = type(node).__name__
        if e == NULL:
            raise MemoryError
        memset(e, 0, sizeof(Expr))
        e.type = <uint8_t>int(node.type.code)
        e.typmod = node.type.typmod
        if name == "Const":
            self._constant(e, node.text)
        elif name == "Param":
            e.op = OP_PARAM
            e.index = node.index
            if not 0 <= e.index < self.param_count:
                raise CoreError("XX000", f"program reads parameter {e.index} of {self.param_count}")
        elif name == "Col":
            e.op = OP_COLUMN
            e.index = node.index
            if e.index >= self.columns:
                e.op = OP_EXCLUDED
                e.index -= self.columns
            if not 0 <= e.index < self.columns:
                raise CoreError("XX000", f"program reads column {node.index} of {self.columns}")
        elif name == "Call":
            self._call(e, node)
        else:
            raise CoreError("XX000", f"program has an expression node {name}")
        return e

    cdef int _constant(self, Expr* e, object text) except -1:
        cdef bytes raw
        cdef char* kept
        e.op = OP_CONST
        e.value.type = e.type
        if text is None:
            e.value.null = 1
            return 0
        raw = text.encode()
        kept = arena_alloc(&self.arena, len(raw) + 1)
        if kept == NULL:
            raise MemoryError
        memcpy(kept, <const char*>raw, len(raw) + 1)
        if datum_from_text(e.type, e.typmod, kept, len(raw), &e.value, &self.arena) != 0:
            raise_core()
        return 0

    cdef int _call(self, Expr* e, object node) except -1:
        cdef int k
        cdef list codes
        if node.op not in NAMES:
            raise unsupported(f"operator {node.op}")
        e.op = NAMES[node.op]
        if node.op == "now":
            if self.now_index < 0:
                raise CoreError("XX000", "program reads the time without a parameter for it")
            e.index = self.now_index
            return 0
        e.count = len(node.args)
        e.args = self.compile_all(node.args)
        codes = []
        for k in range(e.count):
            codes.append(e.args[k].type)
            if (
                e.args[k].type == T_UNKNOWN
                and not (e.args[k].op == OP_CONST and e.args[k].value.null)
                and not texts([c.type.code for c in node.args])
                and e.op not in (OP_CAST, OP_IS_NULL, OP_IS_NOT_NULL)
            ):
                raise unsupported(f"operator {node.op} on an untyped value")
        e.kind = choose_kind(e.op, e.type, codes)
        if e.kind < 0:
            raise unsupported(f"operator {node.op} on these types")
        return 0
