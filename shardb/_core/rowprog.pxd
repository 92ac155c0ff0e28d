# Row programs: one compiled statement on one table, run against its runs.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from shardb._core.datum cimport Datum
from shardb._core.rowspec cimport CompiledSpec, ExprList
from shardb._core.runs cimport Runs

cdef class Program(CompiledSpec):
    cdef const uint8_t* formats
    cdef Py_ssize_t format_count
    cdef object collected           # list of keys that `candidates` gathers, or None

    cdef int take_formats(self, bytes formats) except -1
    cdef int run(self, Runs runs, uint64_t ts, object overlay, bytes low, bytes high,
                 uint64_t* newest) except -1
    cdef int run_interval(self, Runs runs, uint64_t ts, object overlay, bytes low,
                          bytes high, uint64_t* newest) except -1
    cdef object interval_in_call(self, bytes low, bytes high)
    cdef int visit(self, const char* key, Py_ssize_t key_length, const char* row) except -1
    cdef int put_field(self, const Datum* d, int index, int typmod) except -1
    cdef int out_of_memory(self) except -1
    cdef int emit(self) except -1
    cdef int emit_aggregates(self) except -1
    cdef int assign(self, const ExprList* list) except -1
