/* Memory of an arena's chunks and of large tables. Large ones are pages of the kernel's own: freed,
 * they are gone from the process at once, where a heap would keep them between what is left of
 * others. From SHARDB_HUGE on they are aligned and asked for as huge pages, as searches that jump
 * about in tens of megabytes otherwise wait for address translation as long as for the data. */
#ifndef SHARDB_CHUNK_H
#define SHARDB_CHUNK_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    SHARDB_MAPPED_MIN = 256 * 1024,
    SHARDB_HUGE = 2 * 1024 * 1024, /* of x86-64, and of aarch64 with pages of 4 KiB */
    SHARDB_PAGE_MAX = 64 * 1024,   /* no kernel's page is larger: what is trimmed is whole pages */
};

static inline void *shardb_pages_new(size_t size) {
    int protection = PROT_READ | PROT_WRITE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (size < SHARDB_HUGE) {
        void *p = mmap(NULL, size, protection, flags, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    if (size > SIZE_MAX / 2) return NULL;
    /* The kernel aligns to its small pages: map more, and give back what is before and behind. */
    size_t kept = (size + SHARDB_PAGE_MAX - 1) & ~(size_t)(SHARDB_PAGE_MAX - 1);
    char *mapped = mmap(NULL, kept + SHARDB_HUGE, protection, flags, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    size_t before = -(uintptr_t)mapped & (SHARDB_HUGE - 1);
    char *p = mapped + before;
    if (before) munmap(mapped, before);
    munmap(p + kept, SHARDB_HUGE - before);
#ifdef MADV_HUGEPAGE
    madvise(p, kept, MADV_HUGEPAGE); /* a wish: small pages do as well */
#endif
    return p;
}

/* Uninitialized memory; NULL if there is none. */
static inline void *shardb_chunk_new(size_t size) {
    return size < SHARDB_MAPPED_MIN ? malloc(size) : shardb_pages_new(size);
}

/* The same, zeroed. */
static inline void *shardb_chunk_zeroed(size_t size) {
    return size < SHARDB_MAPPED_MIN ? calloc(1, size) : shardb_pages_new(size);
}

/* Of either; `size` as it was asked for. NULL is none. */
static inline void shardb_chunk_free(void *p, size_t size) {
    if (p == NULL) return;
    if (size < SHARDB_MAPPED_MIN) free(p);
    else if (size < SHARDB_HUGE) munmap(p, size);
    else munmap(p, (size + SHARDB_PAGE_MAX - 1) & ~(size_t)(SHARDB_PAGE_MAX - 1));
}

#endif
