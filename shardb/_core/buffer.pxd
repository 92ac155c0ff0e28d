# Byte buffers, arenas and the error slot that `nogil` functions share.
#
# A nogil function reports an error by `return core_fail(...)` (always -1); the slot is one per
# thread, and `raise_core()` turns it into a CoreError once the GIL is held.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
from shardb._core.sanitize cimport PIECEWISE

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline void shardb_put_be16(char* p, uint16_t v) { v = __builtin_bswap16(v); memcpy(p, &v, 2); }
    static inline void shardb_put_be32(char* p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
    static inline void shardb_put_be64(char* p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }
    static inline uint16_t shardb_get_be16(const char* p) { uint16_t v; memcpy(&v, p, 2); return __builtin_bswap16(v); }
    static inline uint32_t shardb_get_be32(const char* p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }
    static inline uint64_t shardb_get_be64(const char* p) { uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v); }
    """
    void put_be16 "shardb_put_be16"(char* p, uint16_t v) noexcept nogil
    void put_be32 "shardb_put_be32"(char* p, uint32_t v) noexcept nogil
    void put_be64 "shardb_put_be64"(char* p, uint64_t v) noexcept nogil
    uint16_t get_be16 "shardb_get_be16"(const char* p) noexcept nogil
    uint32_t get_be32 "shardb_get_be32"(const char* p) noexcept nogil
    uint64_t get_be64 "shardb_get_be64"(const char* p) noexcept nogil

# A growable buffer. Zero-initialised is empty. When memory runs out `failed` is set and further
# appends are ignored; buf_bytes then raises MemoryError. The owner calls buf_free.
ctypedef struct Buf:
    char* data
    size_t len
    size_t cap
    int failed

cdef int buf_grow(Buf* b, size_t extra) noexcept nogil
cdef bytes buf_bytes(Buf* b)

cdef inline void buf_init(Buf* b) noexcept nogil:
    b.data = NULL
    b.len = 0
    b.cap = 0
    b.failed = 0

cdef inline void buf_free(Buf* b) noexcept nogil:
    free(b.data)
    buf_init(b)

# Room for `extra` more bytes: 0, or -1 if memory ran out.
cdef inline int buf_reserve(Buf* b, size_t extra) noexcept nogil:
    if b.cap - b.len >= extra and not b.failed:
        return 0
    return buf_grow(b, extra)

cdef inline void buf_u8(Buf* b, uint8_t v) noexcept nogil:
    if buf_reserve(b, 1) == 0:
        b.data[b.len] = <char>v
        b.len += 1

cdef inline void buf_be16(Buf* b, uint16_t v) noexcept nogil:
    if buf_reserve(b, 2) == 0:
        put_be16(b.data + b.len, v)
        b.len += 2

cdef inline void buf_be32(Buf* b, uint32_t v) noexcept nogil:
    if buf_reserve(b, 4) == 0:
        put_be32(b.data + b.len, v)
        b.len += 4

cdef inline void buf_be64(Buf* b, uint64_t v) noexcept nogil:
    if buf_reserve(b, 8) == 0:
        put_be64(b.data + b.len, v)
        b.len += 8

cdef inline void buf_put(Buf* b, const char* p, size_t n) noexcept nogil:
    if n and buf_reserve(b, n) == 0:
        memcpy(b.data + b.len, p, n)
        b.len += n

# A bump allocator for strings that a conversion produces; arena_reset keeps the newest block.
ctypedef struct ArenaBlock:
    ArenaBlock* next
    size_t cap
    size_t used

ctypedef struct Arena:
    ArenaBlock* head

cdef char* arena_grow(Arena* a, size_t n) noexcept nogil
cdef void arena_reset(Arena* a) noexcept nogil
cdef void arena_free(Arena* a) noexcept nogil

cdef inline void arena_init(Arena* a) noexcept nogil:
    a.head = NULL

# `n` bytes, 16-byte aligned, valid until arena_reset; NULL if memory ran out.
cdef inline char* arena_alloc(Arena* a, size_t n) noexcept nogil:
    cdef ArenaBlock* h = a.head
    cdef size_t want = (n + 15) & ~<size_t>15
    cdef char* p
    if PIECEWISE:
        return arena_grow(a, n)
    if h != NULL and h.cap - h.used >= want:
        p = <char*>h + 32 + h.used
        h.used += want
        return p
    return arena_grow(a, want)

# --- the error slot. `sqlstate` and `message` are NUL-terminated; the value is quoted and cut.
cdef int core_fail(const char* sqlstate, const char* message) noexcept nogil
# "<before>"value"<after>", e.g. invalid input syntax for type integer: "abc"
cdef int core_fail_value(const char* sqlstate, const char* before, const char* value,
                         Py_ssize_t length, const char* after) noexcept nogil
cdef void core_detail(const char* detail) noexcept nogil
cdef const char* core_sqlstate() noexcept nogil
cdef const char* core_message() noexcept nogil
# Raises the thread's last error as CoreError. Never returns.
cdef object raise_core()
