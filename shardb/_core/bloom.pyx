"""Bloom filters over keys: https://parquet.apache.org/docs/file-format/bloomfilter/.

The hash is XXH64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) with seed 0.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from shardb._core.view cimport View, offsets_fit

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #define XP1 0x9E3779B185EBCA87ull
    #define XP2 0xC2B2AE3D27D4EB4Full
    #define XP3 0x165667B19E3779F9ull
    #define XP4 0x85EBCA77C2B2AE63ull
    #define XP5 0x27D4EB2F165667C5ull

    static inline uint64_t shardb_rotl(uint64_t v, int n) { return v << n | v >> (64 - n); }
    static inline uint64_t shardb_le64(const char *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    static inline uint32_t shardb_le32(const char *p) { uint32_t v; memcpy(&v, p, 4); return v; }
    static inline uint64_t shardb_xround(uint64_t acc, uint64_t lane) {
        return shardb_rotl(acc + lane * XP2, 31) * XP1;
    }

    static uint64_t shardb_xxh64(const char *p, size_t n) {
        const char *end = p + n;
        uint64_t h;
        if (n >= 32) {
            uint64_t v[4] = {XP1 + XP2, XP2, 0, 0ull - XP1};
            for (; end - p >= 32; p += 32)
                for (int i = 0; i < 4; i++) v[i] = shardb_xround(v[i], shardb_le64(p + 8 * i));
            h = shardb_rotl(v[0], 1) + shardb_rotl(v[1], 7) + shardb_rotl(v[2], 12)
              + shardb_rotl(v[3], 18);
            for (int i = 0; i < 4; i++) h = (h ^ shardb_xround(0, v[i])) * XP1 + XP4;
        } else {
            h = XP5;
        }
        h += n;
        for (; end - p >= 8; p += 8)
            h = shardb_rotl(h ^ shardb_xround(0, shardb_le64(p)), 27) * XP1 + XP4;
        if (end - p >= 4) {
            h = shardb_rotl(h ^ shardb_le32(p) * XP1, 23) * XP2 + XP3;
            p += 4;
        }
        for (; p < end; p++) h = shardb_rotl(h ^ (unsigned char)*p * XP5, 11) * XP1;
        h = (h ^ h >> 33) * XP2;
        h = (h ^ h >> 29) * XP3;
        return h ^ h >> 32;
    }

    static const uint32_t shardb_salt[8] = {
        0x47b6137bu, 0x44974d91u, 0x8824ad5bu, 0xa2b7289du,
        0x705495c7u, 0x2df1424bu, 0x9efc4947u, 0x5c6bfb31u,
    };

    static inline uint32_t *shardb_block(const uint8_t *bloom, uint64_t blocks, uint64_t hash) {
        return (uint32_t *)(bloom + 32 * ((hash >> 32) * blocks >> 32));
    }
    """
    uint64_t xxh64 "shardb_xxh64"(const char* p, size_t n) noexcept nogil
    const uint32_t* salt "shardb_salt"
    uint32_t* block_of "shardb_block"(
        const uint8_t* bloom, uint64_t blocks, uint64_t hash) noexcept nogil

cdef enum:
    BITS = 10                # a key: about 1 in 100 absent keys is not denied
    BLOCK_BYTES = 32
    FIRST_ROOM = 4096

BITS_PER_KEY = BITS


cdef uint64_t bloom_hash(const char* key, Py_ssize_t key_length) noexcept nogil:
    return xxh64(key, key_length)


cdef bint bloom_has(const uint8_t* bloom, uint64_t blocks, uint64_t hash) noexcept nogil:
    cdef const uint32_t* word = block_of(bloom, blocks, hash)
    cdef uint32_t low = <uint32_t> hash
    cdef uint32_t missing = 0
    cdef int i
    for i in range(8):
        missing |= ~word[i] & (<uint32_t> 1 << ((low * salt[i]) >> 27))
    return missing == 0


cdef void bloom_add(uint8_t* bloom, uint64_t blocks, uint64_t hash) noexcept nogil:
    cdef uint32_t* word = block_of(bloom, blocks, hash)
    cdef uint32_t low = <uint32_t> hash
    cdef int i
    for i in range(8):
        word[i] |= <uint32_t> 1 << ((low * salt[i]) >> 27)


@cython.final
cdef class BloomBuilder:
    cdef uint64_t* hash
    cdef size_t count
    cdef size_t room

    def __cinit__(self):
        self.hash = NULL
        self.count = 0
        self.room = 0

    def __dealloc__(self):
        free(self.hash)

    def add(self, uint32_t rows, offsets, values):
        cdef View at = View(offsets)
        cdef View keys = View(values)
        cdef const int32_t* end = <const int32_t*> at.p
        cdef uint64_t* grown
        cdef uint64_t hash
        cdef size_t room = self.room
        cdef uint32_t i
        if not offsets_fit(at, rows, keys.n):
            raise ValueError("offsets do not fit the values")
        if self.count + rows > room:
            room = max(2 * room, self.count + rows, <size_t> FIRST_ROOM)
            grown = <uint64_t*> realloc(self.hash, room * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError
            self.hash = grown
            self.room = room
        with nogil:
            for i in range(rows):
                hash = bloom_hash(keys.p + end[i], end[i + 1] - end[i])
                if self.count == 0 or self.hash[self.count - 1] != hash:
                    self.hash[self.count] = hash
                    self.count += 1

    def build(self):
        cdef uint64_t blocks = (self.count * BITS + 8 * BLOCK_BYTES - 1) // (8 * BLOCK_BYTES)
        cdef bytes bloom
        cdef uint8_t* p
        cdef size_t i
        if blocks >> 32:
            raise OverflowError("too many keys for one filter")
        bloom = PyBytes_FromStringAndSize(NULL, blocks * BLOCK_BYTES)
        p = <uint8_t*> PyBytes_AS_STRING(bloom)
        with nogil:
            memset(p, 0, blocks * BLOCK_BYTES)
            for i in range(self.count):
                bloom_add(p, blocks, self.hash[i])
        return bloom


cdef uint64_t blocks_of(bytes bloom) except 0:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(bloom)
    if size == 0 or size % BLOCK_BYTES or size // BLOCK_BYTES >> 32:
        raise ValueError(f"a filter does not have {size} bytes")
    return size // BLOCK_BYTES


def key_hash(bytes key):
    return bloom_hash(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))


def may_have(bytes bloom, bytes key):
    cdef uint64_t blocks = blocks_of(bloom)
    return bool(bloom_has(<const uint8_t*> PyBytes_AS_STRING(bloom), blocks, key_hash(key)))


def first_missing(bytes bloom, uint32_t rows, offsets, values):
    cdef View at = View(offsets)
    cdef View keys = View(values)
    cdef const int32_t* end = <const int32_t*> at.p
    cdef const uint8_t* p = <const uint8_t*> PyBytes_AS_STRING(bloom)
    cdef uint64_t blocks = blocks_of(bloom)
    cdef uint32_t i
    cdef long long found = -1
    if not offsets_fit(at, rows, keys.n):
        raise ValueError("offsets do not fit the values")
    with nogil:
        for i in range(rows):
            if not bloom_has(p, blocks, bloom_hash(keys.p + end[i], end[i + 1] - end[i])):
                found = i
                break
    return found
