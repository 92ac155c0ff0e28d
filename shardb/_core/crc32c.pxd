from libc.stdint cimport uint32_t

# The CRC-32C of `size` bytes, going on from `crc`, that of what came before (0 at the start).
cdef uint32_t crc32c_of(uint32_t crc, const char* data, size_t size) noexcept nogil
