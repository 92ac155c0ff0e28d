# CRC-32C of raw bytes.

from libc.stdint cimport uint32_t

# The checksum of n bytes, going on from `crc`, that of what came before (0 at the start).
cdef uint32_t crc32c_raw(uint32_t crc, const char* p, size_t n) noexcept nogil
