"""Rows of a key interval, a transaction's own writes seen first (see the .pxd)."""

from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, node_key, node_next, node_version, version_row,
)


cdef void cursor_open(Cursor* c, MemTable table) noexcept:
    c.newest_ts = 0
    if c.reverse:
        c.node = table.seek_before(c.high, c.high_length) if c.high_length else table.last()
        c.own_at = c.own_count - 1
    else:
        c.node = table.seek(c.low, c.low_length) if c.low_length else table.first()
        c.own_at = 0


cdef inline bint inside(const Cursor* c, Node* node) noexcept:
    """True if the node, reached in the cursor's direction, has not left the interval."""
    if c.reverse:
        return c.low_length == 0 or key_compare(
            node_key(node), node.key_length, c.low, c.low_length) >= 0
    return c.high_length == 0 or key_compare(
        node_key(node), node.key_length, c.high, c.high_length) < 0


cdef inline Node* step(const Cursor* c, MemTable table) noexcept:
    if c.reverse:
        return table.seek_before(node_key(c.node), c.node.key_length)
    return node_next(c.node)


cdef int cursor_next(Cursor* c, MemTable table) noexcept:
    cdef const Version* version
    cdef OwnWrite* own
    cdef int order
    while True:
        if c.node != NULL and not inside(c, c.node):
            c.node = NULL
        own = NULL
        if 0 <= c.own_at < c.own_count:
            own = &c.own[c.own_at]
        if own != NULL:
            order = -1
            if c.node != NULL:
                order = key_compare(own.key, own.key_length, node_key(c.node), c.node.key_length)
                if c.reverse:
                    order = -order
            if order <= 0:
                c.own_at += -1 if c.reverse else 1
                if order == 0:
                    c.node = step(c, table)
                if own.row == NULL:
                    continue
                c.key = own.key
                c.key_length = own.key_length
                c.row = own.row
                c.row_length = own.row_length
                return 1
        if c.node == NULL:
            return 0
        version = node_version(c.node, c.ts)
        c.key = node_key(c.node)
        c.key_length = c.node.key_length
        c.node = step(c, table)
        if version == NULL:
            continue
        if version.ts > c.newest_ts:
            c.newest_ts = version.ts
        if version.tombstone:
            continue
        c.row = version_row(version)
        c.row_length = version.length
        return 1
