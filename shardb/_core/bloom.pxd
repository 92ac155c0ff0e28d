# Bloom filters over keys: Parquet's split block filters, byte for byte.
#
# A filter is `blocks` blocks of 32 bytes, eight little-endian words each; a key sets or asks one bit
# in each word of one block, so it costs one cache line.

from libc.stdint cimport uint8_t, uint64_t

# The hash that filters are made of, the same in every process: XXH64 with seed 0.
cdef uint64_t bloom_hash(const char* key, Py_ssize_t key_length) noexcept nogil
# False: no key with this hash was added. REQUIRES: 0 < blocks < 2^32.
cdef bint bloom_has(const uint8_t* bloom, uint64_t blocks, uint64_t hash) noexcept nogil
cdef void bloom_add(uint8_t* bloom, uint64_t blocks, uint64_t hash) noexcept nogil
