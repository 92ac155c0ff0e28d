# Expressions as trees of C nodes and their evaluation over Datums.
#
# Nodes live in the arena of the Compiler (exprcompile) that made them and are immutable afterwards.

from libc.stdint cimport int32_t, uint8_t
from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum
from shardb._core.rowcodec cimport Layout

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

ctypedef struct Expr:
    int32_t op
    int32_t kind          # the specialisation that the argument types chose
    uint8_t type          # result
    int32_t typmod
    int32_t index         # of a column or parameter
    int32_t count
    Expr** args
    Datum value           # of a constant

# What an expression reads. `row` and `excluded` may be NULL where no column of them is read.
ctypedef struct Frame:
    const Layout* row_layout
    const char* row
    const char* excluded
    const Layout* param_layout
    const char* params
    Arena* arena

# Evaluates to *out: 0, or -1 with the error slot set. Strings point into the row, the parameters,
# the program or the arena.
cdef int eval_expr(const Expr* e, const Frame* f, Datum* out) noexcept nogil
# 1 true, 0 false or NULL, -1 error.
cdef int eval_condition(const Expr* e, const Frame* f) noexcept nogil
