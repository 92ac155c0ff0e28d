# Expression values of shardb.program compiled to C nodes.

from shardb._core.buffer cimport Arena
from shardb._core.expr cimport Expr

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
