"""Evaluation of row programs' expressions, without the GIL (see the .pxd).

Semantics are PostgreSQL's: three-valued logic, errors 22003, 22012 and 22P02, text compared by
bytes, bpchar without its trailing blanks.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN

from shardb._core.arith cimport (
    ARITH_ABS, ARITH_ADD, ARITH_NEG, float_arith, int_arith, number_as_double, numeric_arith, numeric_compare, temporal_arith,
)
from shardb._core.buffer cimport core_fail
from shardb._core.cast cimport datum_cast, datum_cast_explicit
from shardb._core.datum cimport T_BOOL, T_BPCHAR, T_BYTEA, T_DATE, datum_cmp
from shardb._core.rowcodec cimport row_get
from shardb._core.textops cimport (
    blank_stripped, fold_case, like_match, text_compare, text_concat, text_length,
)

cdef long long STAMP_DAYS = 106751991
cdef long long DAY_US = 86400000000


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
