/* Memory of an arena's chunks. Large ones are pages of the kernel's own: freed, they are gone from
 * the process at once, where a heap would keep them between what is left of others. The largest are
 * huge pages where the kernel has them: who looks here and there in many megabytes would else wait
 * as often for where a page is as for what is in it. */
#ifndef SHARDB_CHUNK_H
#define SHARDB_CHUNK_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { SHARDB_MAPPED_MIN = 256 * 1024, SHARDB_HUGE_BYTES = 2 * 1024 * 1024 };

/* `size` bytes at a multiple of a huge page. */
static inline void *shardb_map_huge(size_t size) {
    size_t room = size + SHARDB_HUGE_BYTES;
    char *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t before = -(uintptr_t)p & (SHARDB_HUGE_BYTES - 1);
    if (before) munmap(p, before);
    if (room - before - size) munmap(p + before + size, room - before - size);
#ifdef MADV_HUGEPAGE
    madvise(p + before, size, MADV_HUGEPAGE);
#endif
    return p + before;
}

/* Of all chunks that were not freed. Any thread frees: whoever lets go last. */
static size_t shardb_chunks_taken = 0;

static inline size_t shardb_chunk_bytes(void) {
    return __atomic_load_n(&shardb_chunks_taken, __ATOMIC_RELAXED);
}

static inline void *shardb_chunk_counted(void *p, size_t size) {
    if (p) __atomic_add_fetch(&shardb_chunks_taken, size, __ATOMIC_RELAXED);
    return p;
}

static inline void *shardb_chunk_mapped(size_t size) {
    if (size % SHARDB_HUGE_BYTES == 0) return shardb_map_huge(size);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static inline void *shardb_chunk_new(size_t size) {
    void *p = size < SHARDB_MAPPED_MIN ? malloc(size) : shardb_chunk_mapped(size);
    return shardb_chunk_counted(p, size);
}

static inline void *shardb_chunk_zeroed(size_t size) {
    void *p = size < SHARDB_MAPPED_MIN ? calloc(1, size) : shardb_chunk_mapped(size);
    return shardb_chunk_counted(p, size);
}

/* `size` as it was asked for. */
static inline void shardb_chunk_free(void *p, size_t size) {
    __atomic_sub_fetch(&shardb_chunks_taken, size, __ATOMIC_RELAXED);
    if (size < SHARDB_MAPPED_MIN) free(p);
    else munmap(p, size);
}

#endif
