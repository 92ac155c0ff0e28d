"""The memtable: a skip list of keys, each with its chain of versions, and a hash index for points.

Skip list after Pugh (1990) with the publication order of LevelDB's: a node is complete before a
release store links it, level by level from the bottom, so readers need no lock. Each node carries
the first eight key bytes as a number, which decides most comparisons in one instruction. The last
insert's predecessors are kept (a finger), so ascending loads do not search. Memory comes from an
arena and is freed all at once. See memtable.pxd for the rules on threads.

A search in a large table waits for memory, not for comparisons. So nodes are at each next level
with probability 1/2, not the usual 1/4: as many nodes are compared, but more of them are what is
past the key at some level, and these are fetched before it is known that the search goes down to
them (`fetch_below`). Fewer waits follow one another, for 5 bytes a key.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy

import os

from shardb._core.sanitize cimport PIECEWISE

cdef extern from "keyhash.h":
    uint64_t read_be "shardb_read_be"(const char* p, size_t n) noexcept nogil
    uint64_t hash_bytes "shardb_hash"(const char* p, size_t n, uint64_t seed) noexcept nogil

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* p) noexcept nogil
    uint32_t trailing_zeros "__builtin_ctzll"(uint64_t bits) noexcept nogil

cdef extern from "chunk.h":
    void* chunk_new "shardb_chunk_new"(size_t size) noexcept nogil
    void* chunk_zeroed "shardb_chunk_zeroed"(size_t size) noexcept nogil
    void chunk_free "shardb_chunk_free"(void* p, size_t size) noexcept nogil

cdef enum:
    CHUNK_FIRST_BYTES = 16 * 1024
    CHUNK_MAX_BYTES = 2 * 1024 * 1024       # one huge page
    SLOTS_FIRST = 64
    SLOTS_MOVED_PER_INSERT = 16     # of the old hash table; it must be empty before the next growth

# Of this process: keys chosen by a client must not meet in one slot.
cdef uint64_t HASH_SEED = int.from_bytes(os.urandom(8), "little")
TS_MAX = 2**64 - 1
cdef uint64_t memtables_made = 0


cdef int key_compare(
    const char* a, Py_ssize_t a_len, const char* b, Py_ssize_t b_len
) noexcept nogil:
    cdef int order = memcmp(a, b, a_len if a_len < b_len else b_len)
    if order != 0:
        return order
    return (a_len > b_len) - (a_len < b_len)


cdef uint64_t key_prefix(const char* key, Py_ssize_t key_length) noexcept nogil:
    return read_be(key, key_length)


cdef inline bint node_before(
    const Node* node, uint64_t prefix, const char* key, Py_ssize_t key_length
) noexcept nogil:
    """True if the node's key sorts before `key`, whose prefix is given."""
    if node.prefix != prefix:
        return node.prefix < prefix
    return key_compare(node_key(node), node.key_length, key, key_length) < 0


# --- arena

cdef void* arena_take(Table* table, size_t size) noexcept nogil:
    """`size` bytes, 8-aligned, that live as long as the table; NULL if there is no memory."""
    cdef Chunk* chunk
    cdef void* taken
    cdef size_t wanted
    if not PIECEWISE:
        size = (size + 7) & ~(<size_t> 7)
    if PIECEWISE or size > table.free_bytes:
        wanted = table.chunk_bytes - sizeof(Chunk)
        if PIECEWISE or size > wanted // 4:
            # A large row gets a chunk of its own and leaves the current one in use.
            chunk = <Chunk*> chunk_new(sizeof(Chunk) + size)
            if chunk == NULL:
                return NULL
            chunk.size = size
            chunk.previous = table.chunks
            table.chunks = chunk
            table.bytes += sizeof(Chunk) + size
            return <void*> (chunk + 1)
        chunk = <Chunk*> chunk_new(sizeof(Chunk) + wanted)
        if chunk == NULL:
            return NULL
        chunk.size = wanted
        chunk.previous = table.chunks
        table.chunks = chunk
        table.bytes += sizeof(Chunk) + wanted
        table.free_at = <char*> (chunk + 1)
        table.free_bytes = wanted
        if table.chunk_bytes < CHUNK_MAX_BYTES:
            table.chunk_bytes *= 2
    taken = table.free_at
    table.free_at += size
    table.free_bytes -= size
    return taken


# --- hash index (writer thread)

cdef inline void slot_insert(Slot* slots, uint64_t count, uint64_t hash, Node* node) noexcept nogil:
    cdef uint64_t at = hash & (count - 1)
    while slots[at].node != NULL:
        at = (at + 1) & (count - 1)
    slots[at].hash = hash
    slots[at].node = node


cdef inline Node* slot_find(
    const Slot* slots, uint64_t count, uint64_t hash, const char* key, Py_ssize_t key_length
) noexcept nogil:
    cdef uint64_t at = hash & (count - 1)
    cdef Node* node
    while True:
        node = slots[at].node
        if node == NULL:
            return NULL
        if (
            slots[at].hash == hash
            and node.key_length == key_length
            and memcmp(node_key(node), key, key_length) == 0
        ):
            return node
        at = (at + 1) & (count - 1)


cdef Node* table_find(
    const Table* table, const char* key, Py_ssize_t key_length, uint64_t hash
) noexcept nogil:
    cdef Node* node = slot_find(table.slots, table.slot_count, hash, key, key_length)
    if node == NULL and table.old_slots != NULL:
        node = slot_find(table.old_slots, table.old_count, hash, key, key_length)
    return node


cdef void slots_move(Table* table, uint64_t how_many) noexcept nogil:
    """Moves some slots of the old table to the new one, so that growth never stalls one insert."""
    cdef uint64_t end = table.old_moved + how_many
    if end > table.old_count:
        end = table.old_count
    while table.old_moved < end:
        if table.old_slots[table.old_moved].node != NULL:
            slot_insert(table.slots, table.slot_count, table.old_slots[table.old_moved].hash,
                        table.old_slots[table.old_moved].node)
        table.old_moved += 1
    if table.old_moved == table.old_count:
        chunk_free(table.old_slots, table.old_count * sizeof(Slot))
        table.old_slots = NULL
        table.bytes -= table.old_count * sizeof(Slot)


cdef int slots_reserve(Table* table) noexcept nogil:
    """Makes room in the hash index for one more node; -1 if there is no memory."""
    cdef Slot* grown
    if table.old_slots != NULL:
        slots_move(table, SLOTS_MOVED_PER_INSERT)
    if table.slots_used + 1 <= table.slot_count - table.slot_count // 4:
        return 0
    if table.old_slots != NULL:
        slots_move(table, table.old_count)
    grown = <Slot*> chunk_zeroed(table.slot_count * 2 * sizeof(Slot))
    if grown == NULL:
        return -1
    table.bytes += table.slot_count * 2 * sizeof(Slot)
    table.old_slots = table.slots
    table.old_count = table.slot_count
    table.old_moved = 0
    table.slots = grown
    table.slot_count *= 2
    return 0


# --- skip list

cdef Node* node_create(
    Table* table, const char* key, Py_ssize_t key_length, uint32_t height
) noexcept nogil:
    cdef size_t links = (height - 1) * sizeof(Node*)
    cdef Node* node = <Node*> arena_take(table, sizeof(Node) + links + key_length)
    cdef uint32_t level
    if node == NULL:
        return NULL
    node.newest = NULL
    node.after = NULL
    node.prefix = read_be(key, key_length)
    node.key_length = <uint32_t> key_length
    node.height = height
    for level in range(height):
        node.next[level] = NULL
    memcpy(<char*> node_key(node), key, key_length)
    return node


cdef uint32_t random_height(Table* table) noexcept nogil:
    """1 plus a geometric number with p = 1/2."""
    table.random ^= table.random << 13
    table.random ^= table.random >> 7
    table.random ^= table.random << 17
    return 1 + trailing_zeros(table.random | (<uint64_t> 1 << (MEMTABLE_HEIGHT_MAX - 1)))


cdef inline void fetch_node(Node* node) noexcept nogil:
    """Fetches what a search looks at. The node may be NULL: hence a sum of integers."""
    prefetch(<const void*> (<uintptr_t> node + sizeof(Node) - sizeof(Node*) - sizeof(uint64_t)))


cdef inline void fetch_below(Node* node, int level) noexcept nogil:
    """Fetches where a search at `node` goes if its next node at `level` is past the key.

    Two levels, as the next node of the first is past it too every second time.
    """
    if level:
        fetch_node(shardb_load_node(&node.next[level - 1]))
    if level > 1:
        fetch_node(shardb_load_node(&node.next[level - 2]))


cdef void move_finger(Table* table, const char* key, Py_ssize_t key_length) noexcept nogil:
    """Sets finger[level] to the last node before `key` at each level. REQUIRES: `key` is absent."""
    cdef uint64_t prefix = read_be(key, key_length)
    cdef Node* node = table.finger[0]
    cdef Node* following
    cdef int level = <int> table.height - 1
    cdef int climbed = 0
    cdef bint advanced = False
    if node != table.head and node_before(node, prefix, key, key_length):
        # Climb only until a level where the finger's next node is past the key: whatever is above
        # is then right already, as its nodes are a subset.
        while climbed < level:
            following = table.finger[climbed].next[climbed]
            if following == NULL or not node_before(following, prefix, key, key_length):
                break
            climbed += 1
        level = climbed
    else:
        for climbed in range(level + 1):
            table.finger[climbed] = table.head
    while True:
        if not advanced:
            # Every finger is at or before the last insert; the lower one is never behind.
            node = table.finger[level]
        following = node.next[level]
        fetch_below(node, level)
        while following != NULL and node_before(following, prefix, key, key_length):
            node = following
            following = node.next[level]
            fetch_below(node, level)
            advanced = True
        table.finger[level] = node
        if level == 0:
            return
        level -= 1


cdef Node* table_insert(
    Table* table, const char* key, Py_ssize_t key_length, uint64_t hash, Version* version
) noexcept nogil:
    """Links a new node for an absent key with its first version; NULL if there is no memory."""
    cdef uint32_t height = random_height(table)
    cdef uint32_t level
    cdef Node* node
    if slots_reserve(table) < 0:
        return NULL
    node = node_create(table, key, key_length, height)
    if node == NULL:
        return NULL
    node.newest = version
    while table.height < height:
        table.finger[table.height] = table.head
        shardb_store_height(&table.height, table.height + 1)
    move_finger(table, key, key_length)
    for level in range(height):
        node.next[level] = table.finger[level].next[level]
    for level in range(height):
        store_node(&table.finger[level].next[level], node)
        table.finger[level] = node
    store_node(&table.last_inserted.after, node)
    store_node(&table.last_inserted, node)
    slot_insert(table.slots, table.slot_count, hash, node)
    table.slots_used += 1
    table.entries += 1
    return node


cdef Version* version_create(
    Table* table, const char* row, Py_ssize_t row_length, uint64_t ts
) noexcept nogil:
    cdef Version* version
    if row == NULL:
        row_length = 0
    version = <Version*> arena_take(table, sizeof(Version) + row_length)
    if version == NULL:
        return NULL
    version.older = NULL
    version.ts = ts
    version.length = <uint32_t> row_length
    version.tombstone = row == NULL
    if row_length:
        memcpy(<char*> version_row(version), row, row_length)
    return version


cdef int table_put(
    Table* table, const char* key, Py_ssize_t key_length, uint64_t hash, const char* row,
    Py_ssize_t row_length, uint64_t ts,
) noexcept nogil:
    """Adds a version; it hides an earlier one of the same key and timestamp. -1: no memory."""
    cdef Node* node
    cdef Version* version
    cdef Version* above
    # Waited for while the version is made.
    prefetch(&table.slots[hash & (table.slot_count - 1)])
    version = version_create(table, row, row_length, ts)
    if version == NULL:
        return -1
    node = table_find(table, key, key_length, hash)
    if node == NULL:
        node = table_insert(table, key, key_length, hash, version)
        if node == NULL:
            return -1
        table.live += row != NULL
    elif node.newest.ts <= ts:
        table.live += (row != NULL) - (not node.newest.tombstone)
        version.older = node.newest
        store_version(&node.newest, version)
    else:
        # Out of order: only when a log is replayed.
        above = node.newest
        while above.older != NULL and above.older.ts > ts:
            above = above.older
        version.older = above.older
        store_version(&above.older, version)
    table.versions += 1
    if ts > table.newest_ts:
        table.newest_ts = ts
    return 0


cdef Node* table_seek(
    Table* table, const char* key, Py_ssize_t key_length, Node** before
) noexcept nogil:
    """The first node >= `key` (or NULL); *before is the last one < `key`, or the head."""
    cdef uint64_t prefix = read_be(key, key_length)
    cdef Node* node = table.head
    cdef Node* following = NULL
    # A level that the writer is adding is at most missed: the ones below have all its nodes.
    cdef int level = <int> shardb_load_height(&table.height) - 1
    while level >= 0:
        following = shardb_load_node(&node.next[level])
        fetch_below(node, level)
        while following != NULL and node_before(following, prefix, key, key_length):
            node = following
            following = shardb_load_node(&node.next[level])
            fetch_below(node, level)
        level -= 1
    before[0] = node
    return following


@cython.final
cdef class MemTable:
    """Key (bytes) to versions of a row (bytes, None for deleted). See memtable.pxd for threads."""

    def __cinit__(self) -> None:
        global memtables_made
        cdef int level
        memtables_made += 1
        self.number = memtables_made
        self.c.chunk_bytes = CHUNK_FIRST_BYTES
        self.c.random = 0x9E3779B97F4A7C15
        self.c.slot_count = SLOTS_FIRST
        self.c.slots = <Slot*> chunk_zeroed(SLOTS_FIRST * sizeof(Slot))
        self.c.head = node_create(&self.c, b"", 0, MEMTABLE_HEIGHT_MAX)
        if self.c.slots == NULL or self.c.head == NULL:
            raise MemoryError
        self.c.bytes += SLOTS_FIRST * sizeof(Slot)
        self.c.height = 1
        self.c.last_inserted = self.c.head
        for level in range(MEMTABLE_HEIGHT_MAX):
            self.c.finger[level] = self.c.head

    def __dealloc__(self) -> None:
        cdef Chunk* chunk = self.c.chunks
        cdef Chunk* previous
        while chunk != NULL:
            previous = chunk.previous
            chunk_free(chunk, sizeof(Chunk) + chunk.size)
            chunk = previous
        chunk_free(self.c.slots, self.c.slot_count * sizeof(Slot))
        chunk_free(self.c.old_slots, self.c.old_count * sizeof(Slot))

    cdef const char* lookup(self, const char* key, Py_ssize_t key_length, uint64_t ts,
                            uint32_t* row_length, uint64_t* commit_ts) noexcept nogil:
        cdef Node* node = self.find(key, key_length)
        cdef const Version* version
        row_length[0] = 0
        commit_ts[0] = 0
        if node == NULL:
            return NULL
        version = node_version(node, ts)
        if version == NULL:
            return NULL
        commit_ts[0] = version.ts
        if version.tombstone:
            return NULL
        row_length[0] = version.length
        return version_row(version)

    cdef Node* find(self, const char* key, Py_ssize_t key_length) noexcept nogil:
        return table_find(&self.c, key, key_length, hash_bytes(key, key_length, HASH_SEED))

    cdef void fetch_ahead(self, const char* key, Py_ssize_t key_length) noexcept nogil:
        cdef uint64_t hash = hash_bytes(key, key_length, HASH_SEED)
        prefetch(&self.c.slots[hash & (self.c.slot_count - 1)])

    cdef int add(self, const char* key, Py_ssize_t key_length, const char* row,
                 Py_ssize_t row_length, uint64_t ts) noexcept nogil:
        return table_put(
            &self.c, key, key_length, hash_bytes(key, key_length, HASH_SEED), row, row_length, ts
        )

    cdef Node* first(self) noexcept nogil:
        return node_next(self.c.head)

    cdef Node* seek(self, const char* key, Py_ssize_t key_length) noexcept nogil:
        cdef Node* before
        return table_seek(&self.c, key, key_length, &before)

    cdef Node* seek_before(self, const char* key, Py_ssize_t key_length) noexcept nogil:
        cdef Node* before
        table_seek(&self.c, key, key_length, &before)
        return before if before != self.c.head else NULL

    cdef Node* last(self) noexcept nogil:
        cdef Node* node = self.c.head
        cdef Node* following
        cdef int level = <int> shardb_load_height(&self.c.height) - 1
        while level >= 0:
            following = shardb_load_node(&node.next[level])
            while following != NULL:
                node = following
                following = shardb_load_node(&node.next[level])
            level -= 1
        return node if node != self.c.head else NULL

    cdef Node* last_inserted(self) noexcept nogil:
        return shardb_load_node(&self.c.last_inserted)

    def put(self, bytes key not None, bytes row, uint64_t commit_ts):
        """Adds a version of `key` at `commit_ts`; None deletes the row from then on."""
        if self.add(
            PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
            NULL if row is None else PyBytes_AS_STRING(row),
            0 if row is None else PyBytes_GET_SIZE(row), commit_ts,
        ) < 0:
            raise MemoryError

    def get(self, bytes key not None, uint64_t ts):
        """(row or None if deleted, its commit_ts) visible at `ts`, or None. Writer thread only."""
        cdef Node* node = self.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        cdef const Version* version
        if node == NULL:
            return None
        version = node_version(node, ts)
        if version == NULL:
            return None
        return _row(version), version.ts

    def newest(self, bytes key not None):
        """(row or None if deleted, its commit_ts) of the newest version, or None."""
        cdef Node* node = self.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if node == NULL:
            return None
        return _row(node.newest), node.newest.ts

    def versions_of(self, bytes key not None):
        """All versions of a key, newest first, as (row or None, commit_ts)."""
        cdef Node* node = self.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        cdef const Version* version = NULL if node == NULL else node.newest
        found = []
        while version != NULL:
            found.append((_row(version), version.ts))
            version = version.older
        return found

    def cursor(self, bytes start=b"", bytes end=b"", uint64_t ts=TS_MAX, bint reverse=False):
        """Iterates (key, row, commit_ts) of `[start, end)` at `ts`; an empty `end` is no bound."""
        return Cursor(self, start, end, ts, reverse)

    @property
    def entries(self):
        """Keys, deleted ones included."""
        return self.c.entries

    @property
    def live(self):
        """Keys whose newest version is a row."""
        return self.c.live

    @property
    def versions(self):
        return self.c.versions

    @property
    def memory_bytes(self):
        """Memory taken from the allocator."""
        return self.c.bytes

    @property
    def newest_ts(self):
        """The largest commit timestamp put so far, 0 if none."""
        return self.c.newest_ts


cdef inline object _row(const Version* version):
    if version.tombstone:
        return None
    return PyBytes_FromStringAndSize(version_row(version), version.length)


@cython.final
cdef class Cursor:
    """Visible rows in key order. Sees what is put while it runs, if its `ts` allows."""

    cdef MemTable table
    cdef Node* node
    cdef bytes start
    cdef bytes end
    cdef uint64_t ts
    cdef bint reverse

    def __cinit__(self, MemTable table not None, bytes start, bytes end, uint64_t ts, bint reverse):
        self.table = table
        self.start = start
        self.end = end
        self.ts = ts
        self.reverse = reverse
        if not reverse:
            self.node = table.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        elif PyBytes_GET_SIZE(end) == 0:
            self.node = table.last()
        else:
            self.node = table.seek_before(PyBytes_AS_STRING(end), PyBytes_GET_SIZE(end))

    def __iter__(self):
        return self

    def __next__(self):
        cdef Node* node = self.node
        cdef const Version* version = NULL
        while node != NULL and not self.past(node):
            version = node_version(node, self.ts)
            if version != NULL and not version.tombstone:
                break
            version = NULL
            node = self.step(node)
        if version == NULL:
            self.node = NULL
            raise StopIteration
        self.node = self.step(node)
        key = PyBytes_FromStringAndSize(node_key(node), node.key_length)
        return key, _row(version), version.ts

    cdef bint past(self, Node* node):
        if self.reverse:
            return key_compare(
                node_key(node), node.key_length,
                PyBytes_AS_STRING(self.start), PyBytes_GET_SIZE(self.start),
            ) < 0
        return PyBytes_GET_SIZE(self.end) != 0 and key_compare(
            node_key(node), node.key_length,
            PyBytes_AS_STRING(self.end), PyBytes_GET_SIZE(self.end),
        ) >= 0

    cdef Node* step(self, Node* node):
        if self.reverse:
            return self.table.seek_before(node_key(node), node.key_length)
        return node_next(node)
