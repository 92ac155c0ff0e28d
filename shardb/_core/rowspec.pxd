# Row programs, compiled: expressions, keys and the scratch space of a call.

from libc.stdint cimport int32_t, uint8_t, uint64_t
from shardb._core.buffer cimport Arena, Buf
from shardb._core.datum cimport Datum
from shardb._core.expr cimport Expr, Frame
from shardb._core.exprcompile cimport Compiler
from shardb._core.keycodec cimport KeyCodec
from shardb._core.rowagg cimport Accumulator
from shardb._core.rowcodec cimport RowLayout

# A list of expressions, each with the column that it is for (or -1).
ctypedef struct ExprList:
    int32_t count
    Expr** expr
    int32_t* column

cdef class CompiledSpec:
    # --- what is known of the program
    cdef readonly KeyCodec key_codec
    cdef readonly RowLayout row_layout
    cdef readonly RowLayout param_layout
    cdef readonly str kind
    cdef readonly bint is_points
    cdef readonly bint has_aggregates
    cdef readonly bint has_limit    # or an offset
    cdef readonly int output_count
    cdef readonly str table_name
    cdef tuple column_names
    cdef Compiler compiler
    # --- compiled parts; NULL where absent. Memory: the compiler's arena.
    cdef Expr* filter
    cdef Expr* limit
    cdef Expr* offset
    cdef Expr* low
    cdef Expr* high
    cdef bint low_inclusive
    cdef bint high_inclusive
    cdef bint reverse
    cdef ExprList prefix
    cdef ExprList output
    cdef ExprList assignments
    cdef ExprList conflict
    cdef Expr* conflict_filter
    cdef ExprList* point            # key expressions of each point
    cdef int point_count
    cdef ExprList* insert_row
    cdef int insert_count
    cdef Accumulator* aggregate
    cdef int columns
    cdef int key_columns
    cdef int32_t* key_position
    cdef uint8_t* not_null
    cdef int rowid_column           # -1 if the key is declared
    cdef int rowid_param
    # --- scratch of the call at hand
    cdef Frame frame
    cdef Arena arena
    cdef Buf key
    cdef Buf out
    cdef Datum* values
    cdef Datum* fresh
    cdef long long skip
    cdef long long left             # rows that LIMIT still allows, -1 for all
    cdef long long rows

    cdef void* keep(self, size_t size) except NULL
    cdef int begin(self, bytes params) except -1
    cdef int take_limits(self) except -1
    cdef ExprList compile_list(self, object nodes) except *
    cdef ExprList compile_assignments(self, object pairs) except *
    cdef int compile_keys(self, object key) except -1
    cdef int check_key(self, const ExprList* list) except -1
    cdef int check_key_value(self, int position, const Expr* e) except -1
    cdef int compile_rows(self, object rows) except -1
    cdef int compile_aggregates(self, object aggregates) except -1
    cdef int put_key_value(self, int position, const Expr* e, int bound, bint* inclusive) except -2
    cdef int put_point(self, const ExprList* point) except -1
    cdef list point_keys(self)
    cpdef list points(self, bytes params)
    cpdef tuple interval(self, bytes params)
    cdef tuple key_interval(self)
    cdef bytes row_key(self, const Datum* values)
    cdef bytes row_bytes(self, const Datum* values)
    cdef int store(self, int column, Datum* d) except -1
    cdef int insert_values(self, int index) except -1
    cdef object null_violation(self, int column, const Datum* values)
