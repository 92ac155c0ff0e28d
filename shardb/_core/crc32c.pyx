"""CRC-32C (Castagnoli, RFC 3720 appendix B.4): by the SSE4.2 instruction, or else by tables.

The reflected polynomial is 0x82F63B78; initial value and final xor are all ones, so that
`crc32c(b"123456789") == 0xE3069283` and `crc32c(b, crc32c(a)) == crc32c(a + b)`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static uint32_t shardb_crc_table[8][256];
    static int shardb_crc_hardware = 0;

    static void shardb_crc_prepare(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = (c >> 1) ^ (0x82F63B78u & (0u - (c & 1)));
            shardb_crc_table[0][i] = c;
        }
        for (int t = 1; t < 8; t++)
            for (int i = 0; i < 256; i++) {
                uint32_t c = shardb_crc_table[t - 1][i];
                shardb_crc_table[t][i] = (c >> 8) ^ shardb_crc_table[0][c & 0xFF];
            }
    #if defined(__x86_64__)
        __builtin_cpu_init();
        shardb_crc_hardware = __builtin_cpu_supports("sse4.2") != 0;
    #endif
    }

    /* Slicing by eight, one table per byte of a word. */
    static uint32_t shardb_crc_tables(uint32_t c, const unsigned char *p, size_t n) {
        while (n >= 8) {
            uint32_t lo = c ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16
                               | (uint32_t)p[3] << 24);
            c = shardb_crc_table[7][lo & 0xFF] ^ shardb_crc_table[6][(lo >> 8) & 0xFF]
              ^ shardb_crc_table[5][(lo >> 16) & 0xFF] ^ shardb_crc_table[4][lo >> 24]
              ^ shardb_crc_table[3][p[4]] ^ shardb_crc_table[2][p[5]]
              ^ shardb_crc_table[1][p[6]] ^ shardb_crc_table[0][p[7]];
            p += 8; n -= 8;
        }
        while (n--) c = (c >> 8) ^ shardb_crc_table[0][(c ^ *p++) & 0xFF];
        return c;
    }

    #if defined(__x86_64__)
    __attribute__((target("sse4.2")))
    static uint32_t shardb_crc_sse(uint32_t c, const unsigned char *p, size_t n) {
        uint64_t w, c64 = c;
        while (n >= 8) {
            memcpy(&w, p, 8);
            c64 = __builtin_ia32_crc32di(c64, w);
            p += 8; n -= 8;
        }
        c = (uint32_t)c64;
        while (n--) c = __builtin_ia32_crc32qi(c, *p++);
        return c;
    }
    #else
    #define shardb_crc_sse shardb_crc_tables
    #endif

    static uint32_t shardb_crc(uint32_t crc, const char *p, size_t n, int hardware) {
        crc = ~crc;
        crc = hardware ? shardb_crc_sse(crc, (const unsigned char *)p, n)
                       : shardb_crc_tables(crc, (const unsigned char *)p, n);
        return ~crc;
    }
    """
    int hardware "shardb_crc_hardware"
    void prepare "shardb_crc_prepare"() noexcept nogil
    uint32_t checksum "shardb_crc"(
        uint32_t crc, const char* p, size_t n, int hardware
    ) noexcept nogil

cdef enum:
    GIL_RELEASE_BYTES = 64 * 1024

prepare()


cdef uint32_t crc32c_raw(uint32_t crc, const char* p, size_t n) noexcept nogil:
    return checksum(crc, p, n, hardware)


def crc32c(data, uint32_t crc=0):
    """The checksum of `data`, going on from `crc`, that of what came before."""
    return _crc32c(data, crc, hardware)


def crc32c_portable(data, uint32_t crc=0):
    """The same without the instruction; for tests and benchmarks."""
    return _crc32c(data, crc, 0)


cdef uint32_t _crc32c(object data, uint32_t crc, int use_hardware) except? 0:
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len < GIL_RELEASE_BYTES:
            return checksum(crc, <const char*> view.buf, view.len, use_hardware)
        with nogil:
            crc = checksum(crc, <const char*> view.buf, view.len, use_hardware)
        return crc
    finally:
        PyBuffer_Release(&view)
