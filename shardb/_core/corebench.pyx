"""Loops in C for benchmarks and stress tests: calls from Python cost more than what they would time.

The server uses none of it. Keys come as one bytes object of `width` bytes each; loops over memtables
run without the GIL, so that a test can have readers beside the writer.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, key_prefix, node_key, node_newest, node_next,
    node_version, shardb_load_version, version_row,
)
from shardb._core.rowcursor cimport RowCursor
from shardb._core.runs cimport Runs


cdef Py_ssize_t count_of(bytes keys, Py_ssize_t width) except -1:
    if width < 1 or PyBytes_GET_SIZE(keys) % width:
        raise ValueError(f"{PyBytes_GET_SIZE(keys)} bytes are not keys of {width}")
    return PyBytes_GET_SIZE(keys) // width


def insert_each(MemTable table not None, bytes keys not None, Py_ssize_t width, bytes row,
                uint64_t ts):
    """Adds each key with `row` (None deletes) at `ts`, one by one. Writer thread only."""
    cdef Py_ssize_t count = count_of(keys, width)
    cdef Py_ssize_t index
    cdef const char* key = PyBytes_AS_STRING(keys)
    cdef const char* row_at = NULL if row is None else PyBytes_AS_STRING(row)
    cdef Py_ssize_t row_length = 0 if row is None else PyBytes_GET_SIZE(row)
    cdef int failed = 0
    with nogil:
        for index in range(count):
            failed = table.add(key, width, row_at, row_length, ts)
            if failed:
                break
            key += width
    if failed:
        raise MemoryError


def get_each(MemTable table not None, bytes keys not None, Py_ssize_t width, uint64_t ts):
    """How many of the keys have a row at `ts`, by `lookup`. Writer thread only."""
    cdef Py_ssize_t count = count_of(keys, width)
    cdef Py_ssize_t index
    cdef Py_ssize_t found = 0
    cdef const char* key = PyBytes_AS_STRING(keys)
    cdef uint32_t row_length
    cdef uint64_t commit_ts
    with nogil:
        for index in range(count):
            found += table.lookup(key, width, ts, &row_length, &commit_ts) != NULL
            key += width
    return found


def seek_each(MemTable table not None, bytes keys not None, Py_ssize_t width, uint64_t ts):
    """How many of the keys have a row at `ts`, by `seek`. Any thread."""
    cdef Py_ssize_t count = count_of(keys, width)
    cdef Py_ssize_t index
    cdef Py_ssize_t found = 0
    cdef const char* key = PyBytes_AS_STRING(keys)
    cdef Node* node
    cdef const Version* version
    with nogil:
        for index in range(count):
            node = table.seek(key, width)
            if node != NULL and key_compare(node_key(node), node.key_length, key, width) == 0:
                version = node_version(node, ts)
                found += version != NULL and not version.tombstone
            key += width
    return found


def lookup_each(Runs runs not None, bytes keys not None, Py_ssize_t width, uint64_t ts):
    """How many of the keys have a row at `ts`, by `Runs.lookup`, with the GIL. Writer thread only."""
    cdef Py_ssize_t count = count_of(keys, width)
    cdef Py_ssize_t index
    cdef Py_ssize_t found = 0
    cdef const char* key = PyBytes_AS_STRING(keys)
    cdef const char* row = NULL
    cdef uint32_t row_length = 0
    cdef uint64_t commit_ts = 0
    for index in range(count):
        found += runs.lookup(key, width, ts, &row, &row_length, &commit_ts)
        key += width
    return found


def cursor_each(Runs runs not None, keys, Py_ssize_t rows, uint64_t ts, bint reverse=False):
    """The rows that short intervals have: for each of `keys`, up to `rows` rows from it on.

    In reverse, those before it. With the GIL. Writer thread only.
    """
    cdef RowCursor cursor
    cdef Py_ssize_t found = 0
    cdef Py_ssize_t left
    for key in keys:
        bounds = (b"", key) if reverse else (key, b"")
        cursor = RowCursor(runs, bounds[0], bounds[1], ts, reverse, None)
        left = rows
        while left and cursor.next():
            left -= 1
        found += rows - left
    return found


cdef const char* node_fault(Node* node, Node* before) noexcept nogil:
    """What is wrong with a node that follows `before` (or NULL, for the first), or NULL."""
    cdef const Version* version = node_newest(node)
    cdef const Version* older
    if node.prefix != key_prefix(node_key(node), node.key_length):
        return b"prefix"
    if before != NULL and key_compare(
        node_key(before), before.key_length, node_key(node), node.key_length
    ) >= 0:
        return b"key order"
    if version == NULL:
        return b"no version"
    while version != NULL:
        if version.tombstone > 1 or (version.tombstone and version.length):
            return b"version"
        older = shardb_load_version(&(<Version*> version).older)
        if older != NULL and older.ts > version.ts:
            return b"version order"
        version = older
    return NULL


def walk(MemTable table not None, uint64_t ts):
    """Walks all keys and versions: (rows visible at `ts`, the sum of their bytes). Any thread.

    Raises AssertionError if keys or versions are out of order or a node is malformed.
    """
    cdef Node* before = NULL
    cdef Node* node
    cdef const Version* version
    cdef const char* fault = NULL
    cdef uint64_t rows = 0
    cdef uint64_t total = 0
    cdef uint32_t index
    with nogil:
        node = table.first()
        while node != NULL:
            fault = node_fault(node, before)
            if fault != NULL:
                break
            version = node_version(node, ts)
            if version != NULL and not version.tombstone:
                rows += 1
                for index in range(version.length):
                    total += <unsigned char> version_row(version)[index]
            before = node
            node = node_next(node)
    if fault != NULL:
        raise AssertionError(f"memtable: bad {fault.decode()} after {rows} rows")
    return rows, total


def walk_back(MemTable table not None):
    """How many keys a walk from the last to the first meets, by `seek_before`. Any thread.

    Raises AssertionError if they are out of order.
    """
    cdef Node* node
    cdef Node* after = NULL
    cdef uint64_t keys = 0
    cdef bint wrong = False
    with nogil:
        node = table.last()
        while node != NULL:
            if after != NULL and key_compare(
                node_key(node), node.key_length, node_key(after), after.key_length
            ) >= 0:
                wrong = True
                break
            keys += 1
            after = node
            node = table.seek_before(node_key(node), node.key_length)
    if wrong:
        raise AssertionError(f"memtable: bad key order {keys} keys before the end")
    return keys
