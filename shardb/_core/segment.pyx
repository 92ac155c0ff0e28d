"""Segments: immutable sorted files in memory maps, read column by column (see the .pxd).

The index, which the manifest vouches for, names every buffer's place and checksum, so that nothing
of Arrow's own metadata is believed or decoded here. A key is found by a binary search over the row
groups' first keys, one over a sample of the group's keys and one over the keys between two of these.
"""

cimport cython
from libc.stdint cimport (
    UINT64_MAX, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t,
)
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

import pyarrow as pa

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from shardb._core.bloom cimport bloom_has, bloom_hash
from shardb._core.buffer cimport Buf, buf_bytes, buf_free, buf_init, buf_reserve
from shardb._core.coreerror import CoreError
from shardb._core.crc32c cimport crc32c_raw
from shardb._core.datum cimport (
    T_BOOL, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INTERVAL, T_NUMERIC, T_UUID, Datum,
    datum_init,
)
from shardb._core.memtable cimport key_compare, key_prefix
from shardb._core.rowcodec cimport ColumnLayout, Layout, RowLayout, row_put, row_size
from shardb._core.rowmap cimport ColumnMap, RowMap

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* p) noexcept nogil

cdef enum:
    BITS = -1         # widths of columns that are not so many bytes a row
    VARIABLE = 0


cdef inline int32_t chunk_width(const Layout* layout, int column) noexcept nogil:
    """Bytes a value in the file, or BITS or VARIABLE."""
    cdef const ColumnLayout* of
    if column < SYSTEM_COLUMNS:
        if column == KEY_COLUMN:
            return VARIABLE
        return 8 if column == TS_COLUMN else BITS
    of = &layout.column[column - SYSTEM_COLUMNS]
    if of.variable:
        return VARIABLE
    return BITS if of.type == T_BOOL else <int32_t> of.width


cdef inline int chunk_null(const Chunk* chunk, uint32_t row) noexcept nogil:
    return chunk.validity != NULL and not (chunk.validity[row >> 3] >> (row & 7)) & 1


cdef inline void chunk_prefetch(
    const Chunk* chunk, const ColumnLayout* column, uint32_t row
) noexcept nogil:
    """Fetches what `chunk_get` reads into cache."""
    if chunk.validity != NULL:
        prefetch(chunk.validity + (row >> 3))
    if column.variable:
        prefetch(chunk.offsets + row)
    elif column.type == T_BOOL:
        prefetch(chunk.values + (row >> 3))
    else:
        prefetch(chunk.values + <size_t> row * column.width)


cdef void chunk_get(
    const Chunk* chunk, const ColumnLayout* column, uint32_t row, Datum* out
) noexcept nogil:
    """The value of a loaded column's row; strings point into the chunk."""
    cdef const char* p
    cdef int32_t i32
    cdef int16_t i16
    cdef float f
    datum_init(out, column.type)
    out.scale = column.scale
    if chunk_null(chunk, row):
        out.null = 1
        return
    if column.variable:
        out.p = chunk.values + chunk.offsets[row]
        out.len = chunk.offsets[row + 1] - chunk.offsets[row]
        return
    if column.type == T_BOOL:
        out.i = ((<const uint8_t*> chunk.values)[row >> 3] >> (row & 7)) & 1
        return
    p = chunk.values + <size_t> row * column.width
    if column.width == 8:
        if column.type == T_FLOAT8:
            memcpy(&out.f, p, 8)
        else:
            memcpy(&out.i, p, 8)
    elif column.width == 4:
        if column.type == T_FLOAT4:
            memcpy(&f, p, 4)
            out.f = f
        else:
            memcpy(&i32, p, 4)
            out.i = i32
    elif column.width == 2:
        memcpy(&i16, p, 2)
        out.i = i16
    elif column.type == T_NUMERIC:
        memcpy(&out.n, p, 16)
    elif column.type == T_UUID:
        out.p = p
        out.len = 16
    else:
        memcpy(&out.months, p, 4)
        memcpy(&out.days, p + 4, 4)
        memcpy(&out.i, p + 8, 8)
        out.i //= 1000


@cython.final
cdef class Segment:
    """A segment that is there. `data` is the whole file; `index` its decoded SegmentIndex."""

    def __cinit__(self, meta, index, data not None, str path not None):
        cdef object group
        cdef Chunk* chunk
        cdef int at
        self.meta = meta
        self.index = index
        self.path = path
        self.data = data
        self.base = <const char*> <uintptr_t> data.address
        self.size = data.size
        self.link_ts = meta.link_ts
        self.layout = RowLayout(
            index.schema_version, [(column.type_code, column.typmod) for column in index.columns]
        )
        self.columns = SYSTEM_COLUMNS + len(index.columns)
        self.compressed = bool(index.codec)
        self.group_count = len(index.groups)
        self.group = <RowGroup*> calloc(self.group_count or 1, sizeof(RowGroup))
        self.values = <Datum*> malloc(max(self.columns, 1) * sizeof(Datum))
        self.value_room = self.columns
        if self.group == NULL or self.values == NULL:
            raise MemoryError
        if index.bloom_at > self.size or index.bloom_bytes > self.size - index.bloom_at:
            raise CoreError("XX001", f"segment {path} has no Bloom filter where it should be")
        self.bloom = <const uint8_t*> self.base + <size_t> index.bloom_at
        self.bloom_blocks = index.bloom_bytes // 32
        self.held = [None] * (self.group_count * self.columns) if self.compressed else []
        for at, group in enumerate(index.groups):
            self.describe(&self.group[at], group)

    def linked(self, meta):
        """The same file as a segment of other metadata: a transaction's that has been committed."""
        return Segment(meta, self.index, self.data, self.path)

    def __dealloc__(self):
        cdef int at
        if self.group != NULL:
            for at in range(self.group_count):
                free(self.group[at].chunk)
                free(self.group[at].sample)
        free(self.group)
        free(self.values)

    cdef int describe(self, RowGroup* to, object group) except -1:
        """Takes a group's index; its keys are owned by `index`."""
        cdef Chunk* chunk
        cdef int at
        if len(group.chunks) != self.columns:
            raise CoreError("XX001", f"segment {self.path} has an index of other columns")
        to.chunk = <Chunk*> calloc(self.columns, sizeof(Chunk))
        if to.chunk == NULL:
            raise MemoryError
        to.rows = group.rows
        to.tombstones = group.tombstones > 0
        to.versions = group.versions
        to.first_row = self.rows
        self.rows += to.rows
        to.min_ts = self.link_ts or group.min_ts
        to.max_ts = self.link_ts or group.max_ts
        to.first_key = PyBytes_AS_STRING(<bytes?> group.first_key)
        to.first_length = <uint32_t> PyBytes_GET_SIZE(group.first_key)
        to.first_prefix = key_prefix(to.first_key, to.first_length)
        to.last_key = PyBytes_AS_STRING(<bytes?> group.last_key)
        to.last_length = <uint32_t> PyBytes_GET_SIZE(group.last_key)
        for at in range(self.columns):
            chunk = &to.chunk[at]
            entry = group.chunks[at]
            chunk.validity_at = entry.validity_at
            chunk.validity_length = entry.validity_bytes
            chunk.offsets_at = entry.offsets_at
            chunk.offsets_length = entry.offsets_bytes
            chunk.values_at = entry.values_at
            chunk.values_length = entry.values_bytes
            chunk.crc = entry.crc
            chunk.nulls = entry.nulls
        return 0

    # --- columns

    cdef int load(self, int group, int column) except -1:
        if self.group[group].chunk[column].ready:
            return 0
        return self.load_first(group, column)

    cdef object damaged(self, int group, int column, str what):
        chunk = self.group[group].chunk[column]
        name = ("_key", "_ts", "_deleted")[column] if column < SYSTEM_COLUMNS else \
            self.index.columns[column - SYSTEM_COLUMNS].name
        return CoreError(
            "XX001",
            f"segment {self.path} is damaged: column {name!r} of row group {group} "
            f"at offset {chunk.values_at}: {what}",
        )

    cdef object piece(
        self, int group, int column, uint64_t at, uint64_t length, uint64_t wanted, str what
    ):
        """A buffer of `wanted` bytes: those in the file, or what is compressed there."""
        cdef int64_t plain
        if at > self.size or length > self.size - at:
            raise self.damaged(group, column, f"its {what} lie outside of the file")
        found = self.data.slice(at, length)
        # An empty buffer is nothing in the file, compressed or not.
        if self.compressed and length:
            if length < 8:
                raise self.damaged(group, column, f"its compressed {what} are cut")
            memcpy(&plain, self.base + at, 8)
            found = found.slice(8)
            if plain != -1:
                # Not believed before it is compared: it says how much memory is taken.
                if plain < 0 or <uint64_t> plain != wanted:
                    raise self.damaged(
                        group, column, f"its {what} have {plain} bytes, not {wanted}"
                    )
                try:
                    found = pa.Codec(self.index.codec).decompress(found, plain)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise self.damaged(group, column, f"its {what}: {error}") from None
        if <uint64_t> found.size != wanted:
            raise self.damaged(group, column, f"its {what} have {found.size} bytes, not {wanted}")
        return found

    cdef int load_first(self, int group, int column) except -1:
        """Finds and checks a column of a group. Two threads may do it at once."""
        cdef RowGroup* of = &self.group[group]
        cdef Chunk* chunk = &of.chunk[column]
        cdef int32_t width = chunk_width(&self.layout.c, column)
        cdef uint64_t rows = of.rows
        cdef uint64_t bitmap = (rows + 7) // 8
        cdef const char* bits = NULL
        cdef const char* ends = NULL
        cdef const char* data
        cdef uint64_t wanted = bitmap if width == BITS else rows * <uint64_t> width
        cdef uint32_t crc = 0
        cdef int32_t end = 0
        validity = offsets = None
        if chunk.validity_length:
            validity = self.piece(
                group, column, chunk.validity_at, chunk.validity_length, bitmap, "validity bits"
            )
            bits = <const char*> <uintptr_t> validity.address
        if width == VARIABLE:
            offsets = self.piece(
                group, column, chunk.offsets_at, chunk.offsets_length, 4 * (rows + 1), "offsets"
            )
            ends = <const char*> <uintptr_t> offsets.address
            memcpy(&end, ends + 4 * rows, 4)
            if end < 0:
                raise self.damaged(group, column, "its offsets are negative")
            wanted = <uint64_t> end
        values = self.piece(
            group, column, chunk.values_at, chunk.values_length, wanted, "values"
        )
        data = <const char*> <uintptr_t> values.address
        with nogil:
            if bits != NULL:
                crc = crc32c_raw(crc, bits, bitmap)
            if ends != NULL:
                crc = crc32c_raw(crc, ends, 4 * (rows + 1))
            crc = crc32c_raw(crc, data, wanted)
        if crc != chunk.crc:
            raise self.damaged(group, column, "bad checksum")
        if chunk.ready:  # another thread was faster, and its buffers are in use
            return 0
        if self.compressed:
            self.held[group * self.columns + column] = validity, offsets, values
        chunk.validity = <const uint8_t*> bits
        chunk.offsets = <const int32_t*> ends
        chunk.values = data
        if column == KEY_COLUMN and of.sample == NULL and sample_keys(of) != 0:
            raise MemoryError
        chunk.ready = True
        return 0

    cdef int load_system(self, int group) except -1:
        """Keys, and timestamps and tombstones where there are any."""
        self.load(group, KEY_COLUMN)
        if not self.link_ts:
            self.load(group, TS_COLUMN)
        if self.group[group].tombstones:
            self.load(group, DELETED_COLUMN)
        return 0

    cdef object hold(self, int group):
        """What keeps the pointers into a group's loaded columns valid."""
        if not self.compressed:
            return self
        return self, self.held[group * self.columns:(group + 1) * self.columns]

    def array(self, int group, int column, type not None):
        """A column of a group as an Arrow array of `type`, without a copy where it can be."""
        cdef Chunk* chunk
        cdef uint32_t rows
        if not (0 <= group < self.group_count and 0 <= column < self.columns):
            raise IndexError
        rows = self.group[group].rows
        if column == TS_COLUMN and self.link_ts:
            return pa.repeat(pa.scalar(self.link_ts, pa.uint64()), rows)
        self.load(group, column)
        chunk = &self.group[group].chunk[column]
        if self.compressed:
            validity, offsets, values = self.held[group * self.columns + column]
        else:
            validity = offsets = None
            if chunk.validity != NULL:
                validity = self.data.slice(chunk.validity_at, chunk.validity_length)
            if chunk.offsets != NULL:
                offsets = self.data.slice(chunk.offsets_at, chunk.offsets_length)
            values = self.data.slice(chunk.values_at, chunk.values_length)
        buffers = [validity]
        if chunk_width(&self.layout.c, column) == VARIABLE:
            buffers.append(offsets)
        buffers.append(values)
        return pa.Array.from_buffers(type, rows, buffers, chunk.nulls)

    def check(self, int group, int column):
        """Raises CoreError XX001 if a column of a group does not have its checksum."""
        if not (0 <= group < self.group_count and 0 <= column < self.columns):
            raise IndexError
        self.load(group, column)

    def trim(self):
        """Drops what is decompressed. REQUIRES: nobody is within a call that uses pointers."""
        cdef int group
        cdef int column
        if not self.compressed:
            return
        for group in range(self.group_count):
            for column in range(self.columns):
                self.group[group].chunk[column].ready = False
        self.held = [None] * (self.group_count * self.columns)

    @property
    def bloom_filter(self):
        """A copy of the Bloom filter over the keys; empty if there is none."""
        return PyBytes_FromStringAndSize(<const char*> self.bloom, 32 * self.bloom_blocks)

    @property
    def held_bytes(self):
        """Memory that decompressed columns take."""
        return sum(
            buffer.size
            for parts in self.held if parts is not None
            for buffer in parts if buffer is not None
        )

    # --- rows

    cdef int64_t seek(self, const char* key, Py_ssize_t key_length) except -1:
        cdef uint64_t prefix = key_prefix(key, key_length)
        cdef int low = 0
        cdef int high = self.group_count
        cdef int middle
        cdef RowGroup* of
        # The last group that begins before the key: later ones only hold it or what is after it.
        while low < high:
            middle = (low + high) >> 1
            of = &self.group[middle]
            if of.first_prefix < prefix or (
                of.first_prefix == prefix
                and key_compare(of.first_key, of.first_length, key, key_length) < 0
            ):
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return 0
        of = &self.group[low - 1]
        self.load(low - 1, KEY_COLUMN)
        return <int64_t> (of.first_row + group_seek(of, key, key_length))

    cdef int find(self, const char* key, Py_ssize_t key_length, uint64_t hash, uint64_t ts,
                  int* group, uint32_t* row) except -1:
        cdef int64_t at
        cdef int g
        cdef uint32_t r
        cdef uint32_t length
        cdef const char* found
        if self.bloom_blocks and not bloom_has(self.bloom, self.bloom_blocks, hash):
            return 0
        at = self.seek(key, key_length)
        if <uint64_t> at >= self.rows:
            return 0
        g = self.group_of(at)
        r = <uint32_t> (<uint64_t> at - self.group[g].first_row)
        while True:
            self.load_system(g)
            found = segment_key(&self.group[g], r, &length)
            if key_compare(found, length, key, key_length) != 0:
                return 0
            if segment_ts(self, &self.group[g], r) <= ts:
                group[0] = g
                row[0] = r
                return 1
            r += 1
            if r == self.group[g].rows:
                g += 1
                r = 0
                if g == self.group_count:
                    return 0

    cdef int group_of(self, int64_t row) noexcept nogil:
        """The group of a row by its number."""
        cdef int low = 0
        cdef int high = self.group_count
        cdef int middle
        while high - low > 1:
            middle = (low + high) >> 1
            if self.group[middle].first_row <= <uint64_t> row:
                low = middle
            else:
                high = middle
        return low

    cdef int build(self, int group, uint32_t row, const ColumnMap* map, const Layout* target,
                   Buf* out) except -1:
        cdef RowGroup* of = &self.group[group]
        cdef Datum* grown
        cdef int column
        cdef int source
        cdef Py_ssize_t size
        if target.columns > self.value_room:
            grown = <Datum*> realloc(self.values, target.columns * sizeof(Datum))
            if grown == NULL:
                raise MemoryError
            self.values = grown
            self.value_room = target.columns
        # All at once, so that memory answers while others are asked, and before `values` is begun
        # with, since another thread may run while a column is loaded.
        for column in range(target.columns):
            source = column if map == NULL else map.source[column]
            if source >= 0:
                self.load(group, SYSTEM_COLUMNS + source)
                chunk_prefetch(
                    &of.chunk[SYSTEM_COLUMNS + source], &self.layout.c.column[source], row
                )
        for column in range(target.columns):
            source = column if map == NULL else map.source[column]
            if source < 0:
                self.values[column] = map.missing[column]
                continue
            chunk_get(&of.chunk[SYSTEM_COLUMNS + source], &self.layout.c.column[source], row,
                      &self.values[column])
            if self.layout.c.column[source].variable:
                prefetch(self.values[column].p)
        size = row_size(target, self.values)
        if buf_reserve(out, size) != 0:
            raise MemoryError
        row_put(target, self.values, out.data + out.len)
        out.len += size
        return 0

    # --- for tests and tools

    def get(self, bytes key not None, uint64_t ts):
        """(row in the segment's own layout, or None if deleted; commit_ts) at `ts`, or None."""
        cdef int group = 0
        cdef uint32_t row = 0
        cdef Buf out
        if not self.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
                         bloom_hash(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), ts,
                         &group, &row):
            return None
        commit_ts = segment_ts(self, &self.group[group], row)
        if self.group[group].tombstones and segment_deleted(&self.group[group], row):
            return None, commit_ts
        buf_init(&out)
        try:
            self.build(group, row, NULL, &self.layout.c, &out)
            return buf_bytes(&out), commit_ts
        finally:
            buf_free(&out)

    def position(self, bytes key not None):
        """The number of the first row with a key >= `key`."""
        return self.seek(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    @property
    def groups(self):
        """How many row groups there are."""
        return self.group_count


cdef int sample_keys(RowGroup* of) noexcept nogil:
    """Takes the sample of a group's keys; -1 if there is no memory. REQUIRES: keys are right."""
    cdef const int32_t* offsets = of.chunk[KEY_COLUMN].offsets
    cdef const char* keys = of.chunk[KEY_COLUMN].values
    cdef uint32_t count = (of.rows + SAMPLE_ROWS - 1) // SAMPLE_ROWS
    cdef uint32_t shared = 0
    cdef uint32_t limit
    cdef uint32_t row
    cdef uint32_t at
    cdef int32_t length
    cdef const char* last
    cdef uint64_t* sample = <uint64_t*> malloc((count or 1) * sizeof(uint64_t))
    if sample == NULL:
        return -1
    if of.rows:
        # Keys are sorted: what the first and the last begin with, all others do.
        last = keys + offsets[of.rows - 1]
        limit = <uint32_t> min(offsets[1] - offsets[0], offsets[of.rows] - offsets[of.rows - 1])
        while shared < limit and keys[offsets[0] + shared] == last[shared]:
            shared += 1
    for at in range(count):
        row = at * SAMPLE_ROWS
        length = offsets[row + 1] - offsets[row] - <int32_t> shared
        sample[at] = key_prefix(keys + offsets[row] + shared, length) if length > 0 else 0
    of.shared = shared
    of.sample_count = count
    of.sample = sample
    return 0


cdef inline uint32_t lower_bound(
    const uint64_t* sorted, uint32_t count, uint64_t wanted
) noexcept nogil:
    """How many of the numbers are less than `wanted`. Without branches that depend on them."""
    cdef const uint64_t* at = sorted
    cdef uint32_t half
    if count == 0:
        return 0
    while count > 1:
        half = count >> 1
        at += half if at[half - 1] < wanted else 0
        count -= half
    return <uint32_t> (at - sorted) + (at[0] < wanted)


cdef uint32_t group_seek(const RowGroup* of, const char* key, Py_ssize_t key_length) noexcept nogil:
    """The first row of a group with a key >= `key`, `rows` if none. REQUIRES: keys are loaded."""
    cdef const int32_t* offsets = of.chunk[KEY_COLUMN].offsets
    cdef const char* keys = of.chunk[KEY_COLUMN].values
    cdef uint32_t shared = of.shared
    cdef uint32_t low
    cdef uint32_t high
    cdef uint32_t middle
    cdef uint64_t prefix
    cdef int order
    if shared:
        order = memcmp(key, keys + offsets[0], min(<Py_ssize_t> shared, key_length))
        if order != 0:
            return 0 if order < 0 else of.rows
        if key_length < shared:
            return 0
        key += shared
        key_length -= shared
        keys += shared
    prefix = key_prefix(key, key_length)
    # The row of the last sample below the prefix is before the key, of the first above it after.
    low = lower_bound(of.sample, of.sample_count, prefix)
    high = low
    if high < of.sample_count and of.sample[high] == prefix:
        high = of.sample_count
        if prefix != UINT64_MAX:
            high = lower_bound(of.sample, of.sample_count, prefix + 1)
    low = 0 if low == 0 else (low - 1) * SAMPLE_ROWS + 1
    high = min(high * SAMPLE_ROWS, of.rows)
    while low < high:
        middle = (low + high) >> 1
        if key_compare(
            keys + offsets[middle], offsets[middle + 1] - offsets[middle] - <int32_t> shared,
            key, key_length,
        ) < 0:
            low = middle + 1
        else:
            high = middle
    return low
