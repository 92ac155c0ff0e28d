# Runs of a tablet merged into record batches in a segment file's form: flush and compaction.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from shardb._core.buffer cimport Buf
from shardb._core.rowcodec cimport RowLayout
from shardb._core.rowcolumns cimport ArrowColumns, FoundRow, OutColumn
from shardb._core.runsource cimport Source, View

# Why `walk` came back.
cdef enum Stop:
    STOP_FULL                    # the batch is
    STOP_ENDED                   # all sources are at their end
    STOP_GROUP                   # the first source needs its next row group
    STOP_CANCELLED
    STOP_DAMAGED                 # a row is not of its source's layout

# Consecutive rows of the batch that come from one place.
ctypedef struct Piece:
    const Source* source
    const View* view             # NULL: rows of a memtable
    Py_ssize_t start             # the first row in the row group, or in `found`
    Py_ssize_t at                # the first row in the batch
    Py_ssize_t rows

cdef class RunMerge:
    cdef RowLayout layout
    cdef ArrowColumns out
    cdef readonly object schema  # of the batches: pyarrow.Schema
    cdef uint64_t gc_ts
    cdef bint drop_tombstones
    cdef bytes start
    cdef bytes end
    cdef Py_ssize_t group_rows
    cdef int64_t group_bytes
    cdef int cancelled
    cdef bint opened
    cdef bint failed
    # The sources that have rows, the one with the first head first.
    cdef list sources
    cdef Source** order
    cdef int active
    # The last row that came: its key, and whether a version at or below gc_ts was met.
    cdef const char* last_key
    cdef uint32_t last_length
    cdef uint64_t last_prefix
    cdef uint64_t last_ts
    cdef bint has_last
    cdef bint settled
    cdef Buf last_copy           # the key, from one batch to the next
    # The batch being built.
    cdef list kept               # row groups that pieces point into
    cdef FoundRow* found         # rows of memtables
    cdef Py_ssize_t found_count
    cdef Piece* piece
    cdef Py_ssize_t piece_count
    cdef Py_ssize_t rows
    cdef int64_t bytes           # about as many as the rows take
    cdef int64_t key_bytes
    cdef FoundRow* missing       # a block of rows that have what columns of -1 are
    cdef bytes null_row          # of the layout
    cdef const char* null_row_at
    cdef int32_t* variable       # the variable columns of the target
    cdef int variable_count
    cdef OutColumn keys
    cdef uint64_t* stamps
    cdef uint8_t* deleted
    cdef int open(self) except -1
    cdef int next_group(self) except -1
    cdef int copy_last_key(self) except -1
    cdef object batch(self)
    # --- the walk
    cdef void begin(self) noexcept nogil
    cdef Stop walk(self) noexcept nogil
    cdef bint wanted(self, const Source* head) noexcept nogil
    cdef bint take_version(self, const Source* head) noexcept nogil
    cdef uint32_t take_rows(self, Source* head, bint want) noexcept nogil
    cdef void add_piece(self, const Source* source, Py_ssize_t start,
                        Py_ssize_t count) noexcept nogil
    cdef int64_t span_bytes(self, const Source* source, uint32_t start,
                            Py_ssize_t count) noexcept nogil
    cdef void add_rows(self, Source* source, uint32_t start, Py_ssize_t count) noexcept nogil
    cdef void measure(self) noexcept nogil
    # --- columns that a source does not have
    cdef void missing_rows(self, const Piece* piece, Py_ssize_t first,
                           Py_ssize_t count) noexcept nogil
    cdef void measure_missing(self, const Piece* piece, int column) noexcept nogil
    cdef void fill_missing(self, const Piece* piece, int column) noexcept nogil
    # --- the fill
    cdef Stop fill(self) noexcept nogil
    cdef void fill_column(self, const Piece* piece, int column) noexcept nogil
    cdef void fill_system(self, const Piece* piece) noexcept nogil

