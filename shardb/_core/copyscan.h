/* Where the bytes that mean something are, 64 bytes at a time: COPY's way to the ends of fields. */

#ifndef SHARDB_COPYSCAN_H
#define SHARDB_COPYSCAN_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* The four bytes looked for; two of them may be the same. */
typedef struct {
    char want[4];
} shardb_wanted;

/* A mask of the bytes of p[0:64] that are wanted, bit 0 for p[0]. *odd gets the mask of those that
 * are not ASCII, or zero. Reads all 64 bytes. */
static inline uint64_t shardb_scan64(const shardb_wanted* wanted, const char* p, uint64_t* odd) {
    uint64_t found = 0, strange = 0;
#if defined(__SSE2__)
    const __m128i a = _mm_set1_epi8(wanted->want[0]), b = _mm_set1_epi8(wanted->want[1]);
    const __m128i c = _mm_set1_epi8(wanted->want[2]), d = _mm_set1_epi8(wanted->want[3]);
    const __m128i zero = _mm_setzero_si128();
    for (int i = 0; i < 4; i++) {
        const __m128i v = _mm_loadu_si128((const __m128i*)(p + 16 * i));
        const __m128i hit = _mm_or_si128(
            _mm_or_si128(_mm_cmpeq_epi8(v, a), _mm_cmpeq_epi8(v, b)),
            _mm_or_si128(_mm_cmpeq_epi8(v, c), _mm_cmpeq_epi8(v, d)));
        found |= (uint64_t)(uint32_t)_mm_movemask_epi8(hit) << (16 * i);
        strange |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_or_si128(v, _mm_cmpeq_epi8(v, zero)))
            << (16 * i);
    }
#else
    for (int i = 0; i < 64; i++) {
        const char c = p[i];
        const uint64_t bit = 1ULL << i;
        if (c == wanted->want[0] || c == wanted->want[1] || c == wanted->want[2]
            || c == wanted->want[3])
            found |= bit;
        if (c == 0 || (c & 0x80))
            strange |= bit;
    }
#endif
    *odd = strange;
    return found;
}

#endif
