# Values as bounds of key columns.

from shardb._core.buffer cimport Arena
from shardb._core.datum cimport Datum

cdef enum:
    BOUND_POINT = 0
    BOUND_LOW = 1
    BOUND_HIGH = 2

cdef enum:
    KEY_ERROR = -1
    KEY_NONE = 0        # no key satisfies the condition
    KEY_VALUE = 1       # *d is of the column's type and *inclusive holds
    KEY_UNBOUNDED = 2   # every key satisfies the condition

# True if key_value takes values of type `value` for a column of `type`.
cdef bint key_comparable(int type, int value) noexcept nogil
# Turns the non-NULL *d, compared with a key column of `type`(typmod), into a value of that type.
# *inclusive tells on entry if the bound is, and is changed where the value had to be rounded.
cdef int key_value(Datum* d, int type, int typmod, int bound, bint* inclusive,
                   Arena* arena) noexcept nogil
