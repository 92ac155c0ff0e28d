/* Key bytes as numbers: the prefix that orders most keys, and the hash of a memtable's index. */
#ifndef SHARDB_KEYHASH_H
#define SHARDB_KEYHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The first 8 bytes as a big-endian number, zero padded. */
static inline uint64_t shardb_read_be(const char *p, size_t n) {
    uint64_t v = 0;
    if (n >= 8) memcpy(&v, p, 8);
    else memcpy(&v, p, n);
    return __builtin_bswap64(v);
}

static inline uint64_t shardb_mix(uint64_t a, uint64_t b) {
    __uint128_t r = (__uint128_t)a * b;
    return (uint64_t)r ^ (uint64_t)(r >> 64);
}

/* Multiply-and-fold over 8-byte words, seeded. */
static inline uint64_t shardb_hash(const char *p, size_t n, uint64_t seed) {
    uint64_t h = seed ^ (n * 0x9E3779B97F4A7C15ULL), w;
    while (n >= 8) {
        memcpy(&w, p, 8);
        h = shardb_mix(h ^ w, 0xD6E8FEB86659FD93ULL);
        p += 8;
        n -= 8;
    }
    if (n) {
        w = 0;
        memcpy(&w, p, n);
        h = shardb_mix(h ^ w, 0xA0761D6478BD642FULL);
    }
    return shardb_mix(h, 0xE7037ED1A0B428DBULL);
}

#endif
