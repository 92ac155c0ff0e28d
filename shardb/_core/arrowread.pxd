# Cells of Arrow record batches as Datums, through the Arrow C data interface.

from libc.stdint cimport int32_t, int64_t, uint8_t
from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum

# The structures of https://arrow.apache.org/docs/format/CDataInterface.html
cdef extern from *:
    """
    #ifndef ARROW_C_DATA_INTERFACE
    #define ARROW_C_DATA_INTERFACE
    struct ArrowSchema {
        const char* format; const char* name; const char* metadata; int64_t flags;
        int64_t n_children; struct ArrowSchema** children; struct ArrowSchema* dictionary;
        void (*release)(struct ArrowSchema*); void* private_data;
    };
    struct ArrowArray {
        int64_t length; int64_t null_count; int64_t offset; int64_t n_buffers; int64_t n_children;
        const void** buffers; struct ArrowArray** children; struct ArrowArray* dictionary;
        void (*release)(struct ArrowArray*); void* private_data;
    };
    #endif
    """
    struct ArrowSchema:
        const char* format
        const char* name
        const char* metadata
        int64_t flags
        int64_t n_children
        ArrowSchema** children
        ArrowSchema* dictionary
        void (*release)(ArrowSchema*) noexcept nogil
        void* private_data
    struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void** buffers
        ArrowArray** children
        ArrowArray* dictionary
        void (*release)(ArrowArray*) noexcept nogil
        void* private_data

ctypedef struct ArrowColumn:
    int kind               # how cells are stored (arrowread.pyx)
    int source             # the Datum type that cells are read as
    int type               # the type that is asked for
    int typmod
    int scale              # of decimals
    int64_t factor         # microseconds per unit, or units per microsecond if negative
    int64_t offset
    const uint8_t* validity
    const char* values
    const char* data       # of strings with offsets
    const void** buffers   # of string views
    ArrowColumn* values_of # the dictionary's values, if there is one
    bint same              # the source is of the asked type: no cast

# Cell `row` as the asked type: 0, or -1 with an error set. Strings point into the batch or arena.
cdef int arrow_get(const ArrowColumn* column, int64_t row, Datum* out, Arena* arena) noexcept nogil

cdef class ArrowBatch:
    cdef ArrowArray array
    cdef ArrowSchema schema
    cdef ArrowColumn* column
    cdef ArrowColumn* dictionaries
    cdef readonly int64_t rows
    cdef readonly int columns
