"""Arrow record batches as ready DataRow messages of the wire protocol."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from shardb._core.arrowread cimport ArrowBatch, arrow_get
from shardb._core.buffer cimport (
    Arena, Buf, arena_free, arena_init, arena_reset, buf_be16, buf_be32, buf_bytes, buf_free,
    buf_init, buf_reserve, buf_u8, core_fail, put_be32, raise_core,
)
from shardb._core.coreerror import CoreError
from shardb._core.datum cimport Datum, datum_to_binary, datum_to_text


cdef int datarow_begin(Buf* out, int columns) noexcept nogil:
    """Appends the head of a message; the offset of its length word is out.len - 6."""
    buf_u8(out, c'D')
    buf_be32(out, 0)
    buf_be16(out, <uint16_t>columns)
    return 0


cdef int datarow_value(Buf* out, const Datum* d, int typmod, int format) noexcept nogil:
    cdef size_t at
    cdef int why
    if d.null:
        buf_be32(out, 0xFFFFFFFFU)
        return 0
    buf_be32(out, 0)
    at = out.len
    why = datum_to_binary(d, typmod, out) if format else datum_to_text(d, typmod, out)
    if why == 0 and not out.failed:
        put_be32(out.data + at - 4, <uint32_t>(out.len - at))
    return why


cdef int datarow_end(Buf* out, size_t start) noexcept nogil:
    """Fills in the length of the message that began at `start`."""
    if out.failed:
        return core_fail(b"53200", b"out of memory")
    if out.len - start > 0x40000000:
        return core_fail(b"54000", b"row is too large for one message")
    put_be32(out.data + start + 1, <uint32_t>(out.len - start - 1))
    return 0


cdef class DataRowWriter:
    """Writes rows of `types`, a sequence of (type_code, typmod), in the wire `formats`.

    `formats` is empty (all text), has one entry for all columns or one each: 0 text, 1 binary.
    """

    cdef readonly tuple types
    cdef uint8_t* format
    cdef int columns

    def __cinit__(self, types, formats=()):
        cdef int i
        self.format = NULL
        self.types = tuple((int(code), int(typmod)) for code, typmod in types)
        self.columns = len(self.types)
        if len(formats) > 1 and len(formats) != self.columns:
            raise CoreError("08P01", f"bind message has {len(formats)} result formats but query "
                            f"has {self.columns} columns")
        self.format = <uint8_t*>malloc(max(self.columns, 1))
        if self.format == NULL:
            raise MemoryError
        for i in range(self.columns):
            code = 0
            if len(formats):
                code = formats[i] if len(formats) > 1 else formats[0]
            if code != 0 and code != 1:
                raise CoreError("22023", f"unsupported format code: {code}")
            self.format[i] = code

    def __dealloc__(self):
        free(self.format)

    def encode(self, batch) -> bytes:
        """The 'D' messages of all rows of a pyarrow.RecordBatch."""
        cdef ArrowBatch cells = ArrowBatch(batch, self.types)
        cdef Buf out
        cdef Arena arena
        cdef Datum d
        cdef int64_t row
        cdef size_t start
        cdef int i
        cdef int why = 0
        buf_init(&out)
        arena_init(&arena)
        try:
            with nogil:
                for row in range(cells.rows):
                    start = out.len
                    datarow_begin(&out, self.columns)
                    for i in range(self.columns):
                        why = arrow_get(&cells.column[i], row, &d, &arena)
                        if why == 0:
                            why = datarow_value(&out, &d, cells.column[i].typmod, self.format[i])
                        if why != 0:
                            break
                    if why == 0:
                        why = datarow_end(&out, start)
                    if why != 0:
                        break
                    arena_reset(&arena)
            if why != 0:
                raise_core()
            return buf_bytes(&out)
        finally:
            buf_free(&out)
            arena_free(&arena)
