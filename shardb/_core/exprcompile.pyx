"""Expression values compiled to C nodes (see the .pxd and expr.pxd).

The binder has inserted the casts; what an operator cannot take is refused here with 0A000, so that
the planner can choose another plan.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from shardb._core.arith cimport ARITH_ADD, ARITH_NEG, temporal_supported
from shardb._core.buffer cimport arena_alloc, arena_free, arena_init, raise_core
from shardb._core.datum cimport (
    T_BOOL, T_BPCHAR, T_BYTEA, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_JSON,
    T_NUMERIC, T_TEXT, T_TIME, T_TIMESTAMP, T_TIMESTAMPTZ, T_UNKNOWN, T_VARCHAR, datum_from_text,
)
from shardb._core.expr cimport *

from shardb._core.coreerror import CoreError

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
