"""Which rows of a segment are superseded by newer runs (see the .pxd)."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memset

import threading

from shardb._core.bloom cimport bloom_has, bloom_hash
from shardb._core.memtable cimport (
    key_compare, node_after, node_key, node_next, node_oldest_ts,
)
from shardb._core.segkeys cimport NOT_LOADED, GroupKeys, group_gallop, group_key, group_key_compare
from shardb._core.segment cimport DELETED_COLUMN, RowGroup

cdef uint64_t NEWEST = 0xFFFFFFFFFFFFFFFF

cdef enum:
    MARKS_FIRST = 16             # room for so many at first
    SOURCES_MAX = 128            # absorbed sources that are remembered


cdef inline void set_bit(uint8_t* bits, uint32_t at) noexcept nogil:
    bits[at >> 3] |= 1 << (at & 7)


cdef int mark_order(const void* a, const void* b) noexcept nogil:
    """By row, the lowest timestamp first."""
    cdef const Mark* left = <const Mark*> a
    cdef const Mark* right = <const Mark*> b
    if left.row != right.row:
        return -1 if left.row < right.row else 1
    return (left.ts > right.ts) - (left.ts < right.ts)


@cython.final
cdef class Shadow:
    """Of one segment."""

    def __cinit__(self, Segment segment not None):
        self.marks = NULL
        self.lock = threading.Lock()
        self.nodes = {}
        self.groups = {}
        self.group_count = segment.group_count
        self.marks = <GroupMarks*> calloc(self.group_count or 1, sizeof(GroupMarks))
        if self.marks == NULL:
            raise MemoryError
        self.bytes = self.group_count * sizeof(GroupMarks)

    def __dealloc__(self):
        cdef int at
        if self.marks != NULL:
            for at in range(self.group_count):
                free(self.marks[at].mark)
                free(self.marks[at].hidden)
        free(self.marks)

    # --- learning

    cdef int absorb(self, Segment segment, int group, list newer) except -1:
        cdef SegmentKeys keys = None
        with self.lock:
            if len(self.nodes) + len(self.groups) > SOURCES_MAX:
                self.forget_all_but(newer)
            for source in newer:
                if isinstance(source, MemTable):
                    if self.is_absorbed(<MemTable> source):
                        continue
                elif (
                    source.meta.max_key < segment.meta.min_key
                    or source.meta.min_key > segment.meta.max_key
                    or self.absorbed_of(<Segment> source)[group]
                ):
                    continue
                if keys is None:
                    keys = SegmentKeys(segment, False)
                if isinstance(source, MemTable):
                    self.absorb_memtable(keys, <MemTable> source)
                else:
                    self.absorb_segment(keys, group, <Segment> source)
        return 0

    def forget_all_but(self, list newer):
        """Forgets that other sources were absorbed, which are gone in all likelihood."""
        numbers = {source.number for source in newer if isinstance(source, MemTable)}
        self.nodes = {number: at for number, at in self.nodes.items() if number in numbers}
        numbers = {source.meta.number for source in newer if isinstance(source, Segment)}
        self.groups = {number: done for number, done in self.groups.items() if number in numbers}

    cdef bint is_absorbed(self, MemTable memtable) except -1:
        at = self.nodes.get(memtable.number)
        return at is not None and node_after(<Node*> <uintptr_t> at) == NULL

    cdef bytearray absorbed_of(self, Segment newer):
        done = self.groups.get(newer.meta.number)
        if done is None:
            done = self.groups[newer.meta.number] = bytearray(self.group_count)
        return done

    cdef int absorb_memtable(self, SegmentKeys keys, MemTable memtable) except -1:
        """The keys inserted since the last time. The first time, those of the segment's interval in
        order, which is quicker."""
        cdef object at = self.nodes.get(memtable.number)
        cdef bint by_key = at is None
        cdef Node* last
        cdef Node* node
        cdef bytes low
        if by_key:
            # Taken first: all up to it are met, and some later ones maybe, which does no harm.
            last = memtable.last_inserted()
            low = keys.segment.meta.min_key
            node = memtable.seek(PyBytes_AS_STRING(low), PyBytes_GET_SIZE(low))
        else:
            last = <Node*> <uintptr_t> at
            node = node_after(last)
        while node != NULL:
            with nogil:
                node = self.walk(keys, node, by_key, &last)
            if node != NULL:
                if keys.wanted < 0:
                    raise MemoryError
                keys.load(keys.wanted)
        self.nodes[memtable.number] = <uintptr_t> last
        return 0

    cdef Node* walk(self, SegmentKeys keys, Node* node, bint by_key, Node** last) noexcept nogil:
        """Marks the nodes' rows; the node to go on with when `keys.wanted` is loaded, or NULL."""
        cdef const RowGroup* end = &keys.group[keys.group_count - 1]
        while node != NULL:
            if by_key and key_compare(
                end.last_key, end.last_length, node_key(node), node.key_length
            ) < 0:
                return NULL
            if self.mark_key(keys, node) < 0:
                return node
            if by_key:
                node = node_next(node)
            else:
                last[0] = node
                node = node_after(node)
        return NULL

    cdef int mark_key(self, SegmentKeys keys, Node* node) noexcept nogil:
        """Marks all rows of a key; NOT_LOADED, with `keys.wanted` -1 if there is no memory."""
        cdef const char* key = node_key(node)
        cdef const char* found
        cdef uint32_t length = 0
        cdef uint64_t ts
        cdef int group = 0
        cdef uint32_t row = 0
        cdef int status
        if keys.segment.bloom_blocks and not bloom_has(
            keys.segment.bloom, keys.segment.bloom_blocks, bloom_hash(key, node.key_length)
        ):
            return 0
        status = keys.seek(key, node.key_length, &group, &row)
        if status <= 0:
            return status
        ts = node_oldest_ts(node)
        while True:
            found = keys.key(group, row, &length)
            if key_compare(found, length, key, node.key_length) != 0:
                return 0
            if keys.keys[group].offsets == NULL:
                keys.wanted = group
                return NOT_LOADED
            if self.add(group, row, ts) < 0:
                keys.wanted = -1
                return NOT_LOADED
            row += 1
            if row == keys.group[group].rows:
                row = 0
                group += 1
                if group == keys.group_count:
                    return 0

    cdef int absorb_segment(self, SegmentKeys keys, int group, Segment newer) except -1:
        """The keys of a newer segment that the group has too."""
        cdef SegmentKeys others = SegmentKeys(newer, True)
        cdef int64_t row = 0
        cdef const RowGroup* of = &keys.group[group]
        cdef bytes low = newer.meta.min_key
        cdef bytes high = newer.meta.max_key
        if key_compare(
            PyBytes_AS_STRING(low), PyBytes_GET_SIZE(low), of.last_key, of.last_length
        ) <= 0 and key_compare(
            PyBytes_AS_STRING(high), PyBytes_GET_SIZE(high), of.first_key, of.first_length
        ) >= 0:
            keys.load(group)
            while True:
                with nogil:
                    row = self.merge(keys, group, others, <uint32_t> row)
                if row < 0:
                    raise MemoryError
                if row == of.rows:
                    break
                others.load(others.wanted)
        self.absorbed_of(newer)[group] = 1
        return 0

    cdef int64_t merge(self, SegmentKeys keys, int group, SegmentKeys newer,
                       uint32_t row) noexcept nogil:
        """Marks the rows from `row` on that `newer` has too; the row to go on with when
        `newer.wanted` is loaded, all rows if it is done, -1 if there is no memory."""
        cdef const GroupKeys* mine = &keys.keys[group]
        cdef uint32_t rows = keys.group[group].rows
        cdef const char* key
        cdef const char* other
        cdef uint32_t length = 0
        cdef uint32_t other_length = 0
        cdef uint64_t ts = 0
        cdef int at_group = 0
        cdef uint32_t at_row = 0
        cdef int status
        while row < rows:
            key = group_key(mine, row, &length)
            status = newer.seek(key, length, &at_group, &at_row)
            if status < 0:
                return row
            if status == 0:
                return rows
            other = newer.key(at_group, at_row, &other_length)
            if key_compare(other, other_length, key, length) != 0:
                row = group_gallop(mine, rows, row, other, other_length)
                continue
            if newer.oldest_ts(at_group, at_row, &ts) < 0:
                return row
            while row < rows and group_key_compare(mine, row, other, other_length) == 0:
                if self.add(group, row, ts) < 0:
                    return -1
                row += 1
        return rows

    cdef int add(self, int group, uint32_t row, uint64_t ts) noexcept nogil:
        cdef GroupMarks* of = &self.marks[group]
        if of.count == of.room and self.make_room(of) < 0:
            return -1
        of.mark[of.count].row = row
        of.mark[of.count].ts = ts
        if of.count == 0 or ts < of.min_ts:
            of.min_ts = ts
        if ts > of.max_ts:
            of.max_ts = ts
        of.count += 1
        return 0

    cdef int make_room(self, GroupMarks* of) noexcept nogil:
        """Drops marks that say no more than another of their row, or finds more memory."""
        cdef uint32_t kept = 0
        cdef uint32_t at
        cdef uint32_t room
        cdef Mark* grown
        if of.count:
            qsort(of.mark, of.count, sizeof(Mark), mark_order)
            for at in range(of.count):
                if at == 0 or of.mark[at].row != of.mark[kept - 1].row:
                    of.mark[kept] = of.mark[at]
                    kept += 1
            of.count = kept
            of.in_hidden = 0  # they are in another order now
        if of.room and of.count <= of.room - of.room // 4:
            return 0
        room = of.room * 2 if of.room else MARKS_FIRST
        grown = <Mark*> realloc(of.mark, <size_t> room * sizeof(Mark))
        if grown == NULL:
            return -1
        self.bytes += <uint64_t> (room - of.room) * sizeof(Mark)
        of.mark = grown
        of.room = room
        return 0

    # --- telling

    cdef int hide(self, Segment segment, int group, uint64_t ts, uint8_t* hidden) except -1:
        cdef const RowGroup* of = &segment.group[group]
        cdef GroupMarks* marks = &self.marks[group]
        with self.lock:
            if not (of.versions or of.tombstones or of.max_ts > ts) and (
                marks.count == 0 or marks.min_ts > ts
            ):
                return 0
            if (
                of.max_ts <= ts
                and marks.max_ts <= ts
                and not (goes_on(segment, group) and segment.group[group - 1].max_ts > ts)
            ):
                self.hide_latest(segment, group, hidden)
            else:
                hide_in_segment(segment, group, ts, hidden)
                add_marks(marks, 0, ts, hidden)
        return 1

    cdef int hide_marked(self, int group, uint64_t ts, uint8_t* hidden) except -1:
        cdef GroupMarks* marks = &self.marks[group]
        with self.lock:
            if marks.count == 0 or marks.min_ts > ts:
                return 0
            add_marks(marks, 0, ts, hidden)
        return 1

    cdef int hide_latest(self, Segment segment, int group, uint8_t* hidden) except -1:
        """From the bits that are kept for the newest snapshots, once they have all marks."""
        cdef GroupMarks* marks = &self.marks[group]
        cdef uint32_t size = (segment.group[group].rows + 7) // 8
        cdef uint32_t at
        cdef uint8_t* bits
        if marks.hidden == NULL:
            bits = <uint8_t*> calloc(size, 1)
            if bits == NULL:
                raise MemoryError
            try:
                hide_in_segment(segment, group, NEWEST, bits)
            except BaseException:
                free(bits)
                raise
            marks.hidden = bits
            marks.in_hidden = 0
            self.bytes += size
        with nogil:
            add_marks(marks, marks.in_hidden, NEWEST, marks.hidden)
            marks.in_hidden = marks.count
            for at in range(size):
                hidden[at] |= marks.hidden[at]
        return 0

    # --- files that take the place of others

    def hand_over(self, Segment segment, list sources, list results):
        """What was absorbed of `sources` need not be of `results`, which have the same keys."""
        cdef SegmentKeys keys = None
        with self.lock:
            done = None
            for source in sources:
                if isinstance(source, MemTable):
                    if source.number not in self.nodes:
                        return
                    if keys is None:
                        keys = SegmentKeys(segment, False)
                    self.absorb_memtable(keys, <MemTable> source)
                    continue
                absorbed = self.groups.get(source.meta.number)
                if absorbed is None:
                    return
                done = absorbed if done is None else bytes(map(min, done, absorbed))
            for result in results:
                self.groups[result.meta.number] = (
                    bytearray(done) if done is not None else bytearray(b"\1" * self.group_count)
                )

    def memory_bytes(self):
        """Without the lock, which a scan may hold for long: it may be that of a moment ago."""
        return self.bytes

    def count(self):
        """The number of marks."""
        cdef int at
        cdef uint64_t count = 0
        with self.lock:
            for at in range(self.group_count):
                count += self.marks[at].count
            return count


cdef bint goes_on(Segment segment, int group) noexcept:
    """Whether the group begins with older versions of the last key of the group before."""
    cdef const RowGroup* of = &segment.group[group]
    cdef const RowGroup* before = of - 1
    return of.versions and group > 0 and key_compare(
        before.last_key, before.last_length, of.first_key, of.first_length
    ) == 0


cdef void add_marks(
    const GroupMarks* marks, uint32_t start, uint64_t ts, uint8_t* hidden
) noexcept nogil:
    cdef uint32_t at
    for at in range(start, marks.count):
        if marks.mark[at].ts <= ts:
            set_bit(hidden, marks.mark[at].row)


cdef int hide_in_segment(
    Segment segment, int group, uint64_t ts, uint8_t* hidden
) except -1:
    """Rows that are too new, that a newer row of the segment hides, or that are tombstones."""
    cdef const RowGroup* of = &segment.group[group]
    cdef SegmentKeys keys
    cdef const uint8_t* bits
    cdef uint32_t at
    if of.versions or of.max_ts > ts:
        keys = SegmentKeys(segment, ts != NEWEST)
        keys.load(group)
        if goes_on(segment, group):
            keys.load(group - 1)
            if row_ts(keys, group - 1, segment.group[group - 1].rows - 1, ts) <= ts:
                set_bit(hidden, 0)
        with nogil:
            hide_versions(keys, group, ts, hidden)
    if of.tombstones:
        segment.load(group, DELETED_COLUMN)
        bits = <const uint8_t*> segment.group[group].chunk[DELETED_COLUMN].values
        for at in range((of.rows + 7) // 8):
            hidden[at] |= bits[at]
    return 0


cdef inline uint64_t row_ts(
    SegmentKeys keys, int group, uint32_t row, uint64_t ts
) noexcept nogil:
    """The row's timestamp; the newest snapshot sees any."""
    if keys.with_ts:
        return keys.keys[group].ts[row]
    return ts if ts == NEWEST else keys.segment.link_ts


cdef void hide_versions(
    SegmentKeys keys, int group, uint64_t ts, uint8_t* hidden
) noexcept nogil:
    cdef const GroupKeys* of = &keys.keys[group]
    cdef uint32_t rows = keys.group[group].rows
    cdef bint versions = keys.group[group].versions
    cdef const char* before = NULL
    cdef const char* key
    cdef uint32_t before_length = 0
    cdef uint32_t length = 0
    cdef uint32_t row
    cdef bint seen = False
    for row in range(rows):
        if versions:
            key = group_key(of, row, &length)
            if seen and key_compare(before, before_length, key, length) == 0:
                set_bit(hidden, row)
            before = key
            before_length = length
        seen = row_ts(keys, group, row, ts) <= ts
        if not seen:
            set_bit(hidden, row)


@cython.final
cdef class Shadows:
    """What is known of the segments of one tablet; all is dropped above `bytes_max`."""

    def __cinit__(self, uint64_t bytes_max):
        self.shadows = {}
        self.bytes_max = bytes_max

    cdef Shadow of(self, Segment segment):
        shadow = self.shadows.get(segment.meta.number)
        if shadow is None:
            if self.memory_bytes > self.bytes_max:
                self.shadows = {}  # who uses some of them goes on with what he has
            shadow = self.shadows.setdefault(segment.meta.number, Shadow(segment))
        return shadow

    def keep(self, runs):
        """Drops what is known of segments that are not in `runs`: they are gone."""
        numbers = {
            source.meta.number
            for own, pieces in runs.runs
            for source, _ in pieces
            if not own and isinstance(source, Segment)
        }
        self.shadows = {
            number: shadow for number, shadow in self.shadows.items() if number in numbers
        }

    def replace(self, runs, sources, results):
        """Before the segments `results` take the place of `sources` in `runs`: older segments that
        know the sources need not learn the results. REQUIRES: nothing is put into `sources` any
        more, and `results` have their keys and no others.

        Any thread; reads keys, so that it may raise CoreError XX001.
        """
        cdef list older = []
        cdef bint seen = False
        for _, pieces in runs.runs:
            if any(source is one for source, _ in pieces for one in sources):
                seen = True
                older = []
            elif seen:
                older += [source for source, _ in pieces if isinstance(source, Segment)]
        for segment in older:
            shadow = self.shadows.get(segment.meta.number)
            if shadow is not None:
                shadow.hand_over(segment, list(sources), list(results))

    def clear(self):
        """Forgets everything; scans learn it again."""
        self.shadows = {}

    @property
    def memory_bytes(self):
        return sum([shadow.memory_bytes() for shadow in list(self.shadows.values())])

    @property
    def marks(self):
        """How many are kept."""
        return sum([shadow.count() for shadow in list(self.shadows.values())])
