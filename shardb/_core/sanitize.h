/* What differs in the build for the address sanitizer (`make asan`).
 *
 * SHARDB_PIECEWISE is 1 there: arenas and buffers then take each piece from the allocator, of exactly
 * its size, so that a read past the end of a row, or after its arena's reset, does not pass for one
 * of the spare bytes around it. */
#ifndef SHARDB_SANITIZE_H
#define SHARDB_SANITIZE_H

#ifdef SHARDB_PIECEWISE_ALLOCATION
enum { SHARDB_PIECEWISE = 1 };
#else
enum { SHARDB_PIECEWISE = 0 };
#endif

#endif
