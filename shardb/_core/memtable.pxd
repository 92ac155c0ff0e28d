# An ordered, multi-version map in memory: key -> versions, newest first.
#
# Nodes are also linked in the order in which they were inserted, so that a reader can go through
# what was added since it last looked.
#
# Threads: one writer thread; any number of readers without a lock. A reader sees every version
# whose put returned before it started, and maybe later ones; it filters by commit timestamp. Nothing is
# freed before the MemTable itself, so node, key and row pointers live as long as a reference to it.
#
# The hash index behind `lookup` and `find` belongs to the writer thread; other threads use
# `seek`/`node_next`.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    MEMTABLE_HEIGHT_MAX = 22     # 2**22 keys; beyond, searches only become longer

# One version of a row; the row's bytes follow the struct.
ctypedef struct Version:
    Version* older
    uint64_t ts              # commit timestamp
    uint32_t length          # bytes of the row
    uint32_t tombstone       # 1: the row is deleted from `ts` on

# One key; `next` has `height` entries, the key's bytes follow them. What a search looks at,
# `prefix` and the low entries of `next`, lies side by side: mostly in one line of the cache.
ctypedef struct Node:
    Version* newest
    Node* after              # the node inserted next, or NULL
    uint32_t key_length
    uint32_t height
    uint64_t prefix          # the first 8 key bytes as a big-endian number, zero padded
    Node* next[1]

cdef extern from *:
    """
    #define shardb_load_node(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define shardb_load_version(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define shardb_load_height(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define shardb_store_height(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define shardb_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    Node* shardb_load_node(Node** p) noexcept nogil
    const Version* shardb_load_version(Version** p) noexcept nogil
    uint32_t shardb_load_height(uint32_t* p) noexcept nogil
    void shardb_store_height(uint32_t* p, uint32_t height) noexcept nogil
    void store_node "shardb_store_release"(Node** p, Node* node) noexcept nogil
    void store_version "shardb_store_release"(Version** p, Version* version) noexcept nogil

cdef inline Node* node_next(Node* node) noexcept nogil:
    """The node with the next key, or NULL."""
    return shardb_load_node(&node.next[0])

cdef inline Node* node_after(Node* node) noexcept nogil:
    """The node inserted next, or NULL: at any time, it may come."""
    return shardb_load_node(&node.after)

cdef inline const char* node_key(const Node* node) noexcept nogil:
    return <const char*> (<const Node* const*> &node.next[0] + node.height)

cdef inline const Version* node_newest(Node* node) noexcept nogil:
    """The newest version; never NULL."""
    return shardb_load_version(&node.newest)

cdef inline uint64_t node_oldest_ts(Node* node) noexcept nogil:
    """The commit timestamp of the oldest version."""
    cdef const Version* version = shardb_load_version(&node.newest)
    cdef const Version* older = version
    while older != NULL:
        version = older
        older = shardb_load_version(&(<Version*> version).older)
    return version.ts

cdef inline const Version* node_version(Node* node, uint64_t ts) noexcept nogil:
    """The newest version with a commit timestamp <= ts (it may be a tombstone), or NULL."""
    cdef const Version* version = shardb_load_version(&node.newest)
    while version != NULL and version.ts > ts:
        version = shardb_load_version(&(<Version*> version).older)
    return version

cdef inline const char* version_row(const Version* version) noexcept nogil:
    return <const char*> (version + 1)

# Byte order of two keys: negative, 0 or positive.
cdef int key_compare(
    const char* a, Py_ssize_t a_len, const char* b, Py_ssize_t b_len
) noexcept nogil

# The first 8 bytes of a key as in Node.prefix.
cdef uint64_t key_prefix(const char* key, Py_ssize_t key_length) noexcept nogil

ctypedef struct Chunk:
    Chunk* previous
    size_t size

ctypedef struct Slot:
    uint64_t hash
    Node* node

ctypedef struct Table:
    Node* head               # of no key; the nodes in insertion order come after it too
    Node* last_inserted      # the head if there is none
    uint32_t height          # of the highest node; readers load it without a lock
    Node* finger[MEMTABLE_HEIGHT_MAX]     # predecessors of the last insert, at each level
    uint64_t random
    Chunk* chunks
    char* free_at
    size_t free_bytes
    size_t chunk_bytes
    Slot* slots
    uint64_t slot_count      # a power of two
    uint64_t slots_used
    Slot* old_slots          # being moved to `slots`, a few with each insert
    uint64_t old_count
    uint64_t old_moved
    uint64_t entries
    uint64_t live
    uint64_t versions
    uint64_t bytes           # taken from the allocator
    uint64_t newest_ts

cdef class MemTable:
    cdef Table c
    cdef readonly uint64_t number    # of this memtable in this process; never used again
    # --- writer thread only
    # The row visible at `ts`: pointer and length; NULL if none or deleted. *commit_ts is the
    # visible version's (a tombstone's too), 0 if there is none.
    cdef const char* lookup(self, const char* key, Py_ssize_t key_length, uint64_t ts,
                            uint32_t* row_length, uint64_t* commit_ts) noexcept nogil
    # The node of exactly this key, or NULL.
    cdef Node* find(self, const char* key, Py_ssize_t key_length) noexcept nogil
    # Fetches the key's place in the hash index into cache, for an `add` or `lookup` soon.
    cdef void fetch_ahead(self, const char* key, Py_ssize_t key_length) noexcept nogil
    # Adds a version; row NULL is a tombstone. -1 if out of memory.
    cdef int add(self, const char* key, Py_ssize_t key_length, const char* row,
                 Py_ssize_t row_length, uint64_t ts) noexcept nogil
    # --- any thread
    cdef Node* first(self) noexcept nogil
    # The first node with a key >= `key`, or NULL.
    cdef Node* seek(self, const char* key, Py_ssize_t key_length) noexcept nogil
    # The last node with a key < `key`, or NULL (a step of backward iteration).
    cdef Node* seek_before(self, const char* key, Py_ssize_t key_length) noexcept nogil
    # The last node, or NULL.
    cdef Node* last(self) noexcept nogil
    # The node inserted last, or the head (`c.head`). `seek` and `node_next` find it and all before.
    cdef Node* last_inserted(self) noexcept nogil
