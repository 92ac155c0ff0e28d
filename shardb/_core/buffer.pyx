"""Byte buffers, arenas and the per-thread error slot of compiled code (see the .pxd)."""

from cpython.bytes cimport PyBytes_FromStringAndSize

from shardb._core.coreerror import CoreError
from shardb._core.sanitize cimport PIECEWISE

cdef enum:
    PIECEWISE_MAX_BYTES = 64 * 1024     # a larger buffer would be copied too often

cdef extern from *:
    """
    typedef struct { char sqlstate[6]; char message[600]; char detail[300]; } shardb_error;
    static __thread shardb_error shardb_last;
    static int shardb_utf8_cut(const char* s, int n) {
        while (n > 0 && ((unsigned char)s[n] & 0xC0) == 0x80) n--;
        return n;
    }
    static void shardb_error_set(const char* state, const char* a, const char* v, long n,
                                 const char* b, int quoted) {
        int cut = n > 400 ? shardb_utf8_cut(v, 400) : (int)n;
        strncpy(shardb_last.sqlstate, state, 5);
        shardb_last.sqlstate[5] = 0;
        shardb_last.detail[0] = 0;
        if (quoted)
            snprintf(shardb_last.message, sizeof shardb_last.message, "%s\\"%.*s%s\\"%s", a, cut,
                     v ? v : "", n > 400 ? "..." : "", b);
        else
            snprintf(shardb_last.message, sizeof shardb_last.message, "%s", a);
    }
    static void shardb_error_detail(const char* d) {
        snprintf(shardb_last.detail, sizeof shardb_last.detail, "%s", d);
    }
    static const char* shardb_error_state(void) { return shardb_last.sqlstate; }
    static const char* shardb_error_message(void) { return shardb_last.message; }
    static const char* shardb_error_detail_get(void) { return shardb_last.detail; }
    """
    void shardb_error_set(const char* state, const char* a, const char* v, long n, const char* b,
                          int quoted) noexcept nogil
    void shardb_error_detail(const char* d) noexcept nogil
    const char* shardb_error_state() noexcept nogil
    const char* shardb_error_message() noexcept nogil
    const char* shardb_error_detail_get() noexcept nogil


cdef int buf_grow(Buf* b, size_t extra) noexcept nogil:
    cdef size_t want, cap
    cdef char* data
    if b.failed:
        return -1
    want = b.len + extra
    if want < b.len:
        b.failed = 1
        return -1
    if want <= b.cap:
        return 0
    cap = b.cap * 2
    if cap < 256:
        cap = 256
    if cap < want:
        cap = want
    if PIECEWISE and want <= PIECEWISE_MAX_BYTES:
        cap = want
    data = <char*>realloc(b.data, cap)
    if data == NULL:
        b.failed = 1
        return -1
    b.data = data
    b.cap = cap
    return 0


cdef bytes buf_bytes(Buf* b):
    """The contents as bytes; the buffer stays the owner's."""
    if b.failed:
        raise MemoryError
    return PyBytes_FromStringAndSize(b.data, <Py_ssize_t>b.len)


cdef char* arena_grow(Arena* a, size_t n) noexcept nogil:
    cdef size_t cap = 4096
    cdef ArenaBlock* block
    if a.head != NULL and a.head.cap < (1 << 20):
        cap = a.head.cap * 2
    if cap < n:
        cap = n
    if PIECEWISE:
        cap = n
    if cap + 32 < n:
        return NULL
    block = <ArenaBlock*>malloc(cap + 32)
    if block == NULL:
        return NULL
    block.next = a.head
    block.cap = cap
    block.used = n
    a.head = block
    return <char*>block + 32


cdef void arena_reset(Arena* a) noexcept nogil:
    cdef ArenaBlock* block
    cdef ArenaBlock* after
    if a.head == NULL:
        return
    block = a.head.next
    while block != NULL:
        after = block.next
        free(block)
        block = after
    a.head.next = NULL
    a.head.used = 0
    if PIECEWISE:
        free(a.head)
        a.head = NULL


cdef void arena_free(Arena* a) noexcept nogil:
    arena_reset(a)
    free(a.head)
    a.head = NULL


cdef int core_fail(const char* sqlstate, const char* message) noexcept nogil:
    shardb_error_set(sqlstate, message, NULL, 0, b"", 0)
    return -1


cdef int core_fail_value(const char* sqlstate, const char* before, const char* value,
                         Py_ssize_t length, const char* after) noexcept nogil:
    shardb_error_set(sqlstate, before, value, length, after, 1)
    return -1


cdef void core_detail(const char* detail) noexcept nogil:
    shardb_error_detail(detail)


cdef const char* core_sqlstate() noexcept nogil:
    return shardb_error_state()


cdef const char* core_message() noexcept nogil:
    return shardb_error_message()


cdef object raise_core():
    raise CoreError(
        shardb_error_state().decode("ascii"),
        shardb_error_message().decode("utf-8", "replace"),
        shardb_error_detail_get().decode("utf-8", "replace"),
    )
