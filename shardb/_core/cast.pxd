# Casts between types with PostgreSQL's semantics.

from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum

# `src` as `type`(typmod) into `dst` (which may be `src`). NULL gives NULL.
# `explicit_cast` cuts strings that are too long where an assignment raises 22001.
cdef int datum_cast(const Datum* src, int type, int typmod, Datum* dst, Arena* arena) noexcept nogil
cdef int datum_cast_explicit(const Datum* src, int type, int typmod, Datum* dst,
                             Arena* arena) noexcept nogil
