# COPY data cut into records and fields: the text format and CSV.

from libc.stdint cimport int64_t, uint64_t
from shardb._core.buffer cimport Arena

cdef extern from "copyscan.h":
    ctypedef struct Wanted "shardb_wanted":
        char want[4]
    uint64_t scan64 "shardb_scan64"(const Wanted* wanted, const char* p, uint64_t* odd) noexcept nogil

cdef enum:
    NEED_MORE = 0
    GOT_ROW = 1
    END_OF_DATA = 2
    FAILED = -1
    SCAN_BYTES = 64        # that may be read after the end of the data

# A field: where its bytes are; `null` if it is NULL, `plain` if they are ASCII without NUL for sure.
ctypedef struct Field:
    const char* p
    Py_ssize_t len
    bint null
    bint plain

ctypedef struct Splitter:
    # --- the format
    bint csv
    char delimiter
    char quote
    char escape
    const char* null_p
    Py_ssize_t null_len
    Py_ssize_t width                 # fields a record has
    const char* field_flags          # by field: 2 force null, 4 force not null
    # --- the data: data[start:end] is left. REQUIRES: SCAN_BYTES after `end` may be read.
    char* data
    Py_ssize_t start, end
    Arena* arena                     # for fields that are not as they stand in the data
    # --- the record at hand
    Field* fields                    # `width` of them
    int64_t line                     # 1-based, of its first line; of the last one in errors
    const char* record
    Py_ssize_t record_len
    Py_ssize_t record_fields
    # --- where the scan is
    Wanted wanted
    const char* block                # the next to be scanned
    uint64_t found                   # wanted bytes of the block before it that are left
    uint64_t block_odd               # bytes of that block that are not plain
    uint64_t odd                     # not 0: the record may have such bytes

# Sets the scan up; call it again whenever `data` or `start` were changed from outside.
cdef void split_begin(Splitter* self) noexcept nogil
# The next record: GOT_ROW (`fields[:record_fields]` are set, at most `width`; further ones are only
# counted), NEED_MORE (never if `final`), END_OF_DATA at the end marker, or FAILED with 22P04 or
# 53200 set. What it returns points into the data and the arena.
cdef int split_next(Splitter* self, bint final) noexcept nogil
