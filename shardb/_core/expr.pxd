# Expressions as trees of C nodes and their evaluation over Datums.
#
# Nodes live in the arena of the Compiler that made them and are immutable afterwards.

from libc.stdint cimport int32_t, uint8_t
from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum
from shardb._core.rowcodec cimport Layout

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

cdef class Compiler:
    cdef Arena arena
    cdef readonly int columns         # of the table; EXCLUDED follows
    cdef readonly int now_index       # parameter that `now` reads, -1 if there is none
    cdef readonly int param_count
    cdef Expr* compile(self, object node) except NULL
    # For a value stored in a column: a cast on top raises 22001 where an explicit one would cut.
    cdef Expr* compile_assigned(self, object node) except NULL
    cdef Expr** compile_all(self, object nodes) except? NULL
    cdef int _constant(self, Expr* e, object text) except -1
    cdef int _call(self, Expr* e, object node) except -1
