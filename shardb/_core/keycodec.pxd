# Memcomparable keys (docs/formats/key.md): byte order of keys is SQL order of the key columns.

from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t, uint64_t
from shardb._core.buffer cimport Arena, Buf
from shardb._core.datum cimport Datum
from shardb._core.rowcodec cimport Layout

ctypedef struct KeyColumn:
    uint8_t type
    uint8_t desc
    uint8_t nullable
    int16_t scale
    int32_t typmod

# Appends one value. NULL only where the column is nullable.
cdef void key_append(const KeyColumn* column, const Datum* d, Buf* out) noexcept nogil
# Appends the key of a row: its columns at `positions`, one for each of the `count` key columns.
cdef void key_from_row(const KeyColumn* columns, int count, const Layout* layout,
                       const int* positions, const char* row, Buf* out) noexcept nogil
# Puts a value at the key column's scale: 0; 1 if it is not exactly representable there (then no
# stored key equals it: `d` is set to the value rounded toward minus infinity); -1 with an error.
cdef int key_fit(const KeyColumn* column, Datum* d) noexcept nogil
# Reads the value at key[*at:]; moves *at on. 0, or -1 if the key is malformed.
cdef int key_read(const KeyColumn* column, const char* key, Py_ssize_t length, Py_ssize_t* at,
                  Datum* out, Arena* arena) noexcept nogil
# The least key above all keys that begin with `key`, in place (shortens): the new length; 0 if none.
cdef size_t key_successor(char* key, size_t length) noexcept nogil

cdef class KeyCodec:
    cdef KeyColumn* column
    cdef readonly int count
    cdef readonly tuple types
