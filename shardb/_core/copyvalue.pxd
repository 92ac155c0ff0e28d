# Values in their usual text form, read at once into what a column stores.

from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum
from shardb._core.rowcodec cimport ColumnLayout

# True if *out is now what datum_from_text and row_fit make of p[:n]; else it is theirs to read, or to
# refuse. `plain`: the bytes are ASCII without NUL. Reads no more than the n bytes.
cdef bint plain_value(const ColumnLayout* column, const char* p, Py_ssize_t n, bint plain, Datum* out,
                      Arena* arena) noexcept nogil
