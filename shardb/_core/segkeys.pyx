"""The keys of a segment for code that runs without the GIL (see the .pxd)."""

cimport cython
from libc.stdlib cimport calloc, free

from shardb._core.bloom cimport bloom_has
from shardb._core.memtable cimport key_prefix
from shardb._core.segment cimport KEY_COLUMN, TS_COLUMN, Chunk


cdef uint32_t group_gallop(const GroupKeys* of, uint32_t rows, uint32_t start, const char* key,
                           uint32_t length) noexcept nogil:
    cdef uint32_t low = start
    cdef uint32_t high
    cdef uint32_t step = 1
    cdef uint32_t middle
    # Invariant: rows before `low` are before the key.
    while low < rows and group_key_compare(of, low, key, length) < 0:
        start = low + 1
        if rows - low <= step:
            low = rows
            break
        low += step
        step *= 2
    high = low
    low = start
    while low < high:
        middle = low + ((high - low) >> 1)
        if group_key_compare(of, middle, key, length) < 0:
            low = middle + 1
        else:
            high = middle
    return low


@cython.final
cdef class SegmentKeys:
    """`with_ts`: timestamps are wanted too."""

    def __cinit__(self, Segment segment not None, bint with_ts):
        self.keys = NULL
        self.segment = segment
        self.group = segment.group
        self.group_count = segment.group_count
        self.with_ts = with_ts and not segment.link_ts
        self.held = []
        self.keys = <GroupKeys*> calloc(self.group_count or 1, sizeof(GroupKeys))
        if self.keys == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.keys)

    cdef int load(self, int group) except -1:
        cdef GroupKeys* to = &self.keys[group]
        cdef const Chunk* chunk
        if self.with_ts:
            # A column is held before the next is loaded: loading may let another thread run.
            self.segment.load(group, TS_COLUMN)
            self.held.append(self.segment.hold(group))
            to.ts = <const uint64_t*> self.segment.group[group].chunk[TS_COLUMN].values
        self.segment.load(group, KEY_COLUMN)
        self.held.append(self.segment.hold(group))
        chunk = &self.segment.group[group].chunk[KEY_COLUMN]
        to.keys = chunk.values
        to.offsets = chunk.offsets
        return 0

    cdef bint begins_before(
        self, int group, uint64_t prefix, const char* key, uint32_t length
    ) noexcept nogil:
        cdef const RowGroup* of = &self.group[group]
        if of.first_prefix != prefix:
            return of.first_prefix < prefix
        return key_compare(of.first_key, of.first_length, key, length) < 0

    cdef int seek(self, const char* key, uint32_t length, int* group, uint32_t* row) noexcept nogil:
        cdef uint64_t prefix = key_prefix(key, length)
        cdef int low = self.last_group
        cdef int high = self.group_count
        cdef int middle
        cdef uint32_t start = 0
        cdef const RowGroup* of
        if high == 0:
            return 0
        # `low` becomes the last group that begins before the key.
        if not self.begins_before(low, prefix, key, length):
            high = low
            low = -1
        elif low + 1 < high and not self.begins_before(low + 1, prefix, key, length):
            high = low + 1
        while high - low > 1:
            middle = (low + high) >> 1
            if self.begins_before(middle, prefix, key, length):
                low = middle
            else:
                high = middle
        if low < 0:
            group[0] = 0
            row[0] = 0
            return 1
        of = &self.group[low]
        if key_compare(of.last_key, of.last_length, key, length) < 0:
            row[0] = of.rows
        else:
            if self.keys[low].offsets == NULL:
                self.wanted = low
                return NOT_LOADED
            if low == self.last_group and group_key_compare(
                &self.keys[low], self.last_row, key, length
            ) < 0:
                start = self.last_row
            row[0] = group_gallop(&self.keys[low], of.rows, start, key, length)
            self.last_row = row[0] if row[0] < of.rows else 0
            self.last_group = low
        if row[0] == of.rows:
            row[0] = 0
            low += 1
        group[0] = low
        return low < self.group_count

    cdef const char* key(self, int group, uint32_t row, uint32_t* length) noexcept nogil:
        if row == 0:
            length[0] = self.group[group].first_length
            return self.group[group].first_key
        return group_key(&self.keys[group], row, length)

    cdef uint64_t row_ts(self, int group, uint32_t row) noexcept nogil:
        return self.keys[group].ts[row] if self.with_ts else self.segment.link_ts

    cdef int oldest_ts(self, int group, uint32_t row, uint64_t* ts) noexcept nogil:
        cdef uint32_t length = 0
        cdef uint32_t other = 0
        cdef const char* key = self.key(group, row, &length)
        cdef const char* found
        while True:
            if self.keys[group].offsets == NULL:
                self.wanted = group
                return NOT_LOADED
            ts[0] = self.row_ts(group, row)
            row += 1
            if row == self.group[group].rows:
                row = 0
                group += 1
                if group == self.group_count:
                    return 1
            found = self.key(group, row, &other)
            if key_compare(found, other, key, length) != 0:
                return 1

    cdef int has(self, const char* key, uint32_t length, uint64_t hash, uint64_t ts) noexcept nogil:
        cdef int group = 0
        cdef uint32_t row = 0
        cdef uint32_t found_length = 0
        cdef const char* found
        cdef uint64_t oldest = 0
        cdef int status
        if self.segment.bloom_blocks and not bloom_has(
            self.segment.bloom, self.segment.bloom_blocks, hash
        ):
            return 0
        status = self.seek(key, length, &group, &row)
        if status <= 0:
            return status
        found = self.key(group, row, &found_length)
        if key_compare(found, found_length, key, length) != 0:
            return 0
        status = self.oldest_ts(group, row, &oldest)
        return status if status < 0 else oldest <= ts
