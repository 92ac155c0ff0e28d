"""Loops in C over a segment for benchmarks: calls from Python cost more than what they would time.

The server uses none of it. Keys come as one bytes object of `width` bytes each.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

from shardb._core.bloom cimport bloom_hash
from shardb._core.buffer cimport Buf, buf_free, buf_init
from shardb._core.segment cimport Segment


def find_each(Segment segment not None, bytes keys not None, Py_ssize_t width, uint64_t ts):
    """How many of the keys have a version at `ts`."""
    return run(segment, keys, width, ts, False)


def get_each(Segment segment not None, bytes keys not None, Py_ssize_t width, uint64_t ts):
    """The same, each row put together in the segment's own layout. REQUIRES: no tombstones."""
    return run(segment, keys, width, ts, True)


cdef Py_ssize_t run(
    Segment segment, bytes keys, Py_ssize_t width, uint64_t ts, bint build
) except -1:
    cdef Py_ssize_t index
    cdef Py_ssize_t found = 0
    cdef const char* key = PyBytes_AS_STRING(keys)
    cdef int group = 0
    cdef uint32_t row = 0
    cdef Buf out
    if width < 1 or PyBytes_GET_SIZE(keys) % width:
        raise ValueError(f"{PyBytes_GET_SIZE(keys)} bytes are not keys of {width}")
    buf_init(&out)
    try:
        for index in range(PyBytes_GET_SIZE(keys) // width):
            if segment.find(key, width, bloom_hash(key, width), ts, &group, &row):
                found += 1
                if build:
                    out.len = 0
                    segment.build(group, row, NULL, &segment.layout.c, &out)
            key += width
    finally:
        buf_free(&out)
    return found
