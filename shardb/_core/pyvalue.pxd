# Python values to and from Datum, for tests and slow paths. See pyvalue.pyx for the Python types.

from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum

# Raises TypeError / CoreError. `out` may point into `value`, which the caller keeps alive.
cdef int datum_from_object(int type, int typmod, object value, Datum* out, Arena* arena) except -1
cdef object datum_to_object(const Datum* d, int typmod)
