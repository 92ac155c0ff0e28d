/* Memory of an arena's chunks. Large ones are pages of the kernel's own: freed, they are gone from
 * the process at once, where a heap would keep them between what is left of others. */
#ifndef SHARDB_CHUNK_H
#define SHARDB_CHUNK_H

#include <stdlib.h>
#include <sys/mman.h>

enum { SHARDB_MAPPED_MIN = 256 * 1024 };

static inline void *shardb_chunk_new(size_t size) {
    if (size < SHARDB_MAPPED_MIN) return malloc(size);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* `size` as it was asked for. */
static inline void shardb_chunk_free(void *p, size_t size) {
    if (size < SHARDB_MAPPED_MIN) free(p);
    else munmap(p, size);
}

#endif
