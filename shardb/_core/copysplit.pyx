# cython: language_level=3
"""COPY data cut into records and fields (manual, COPY: File Formats).

Most records are plain: `split_quick` finds the ends of their fields in masks of 64 bytes. What it does
not like (escapes in quotes, data that ends in the middle, mistakes) `split_text` and `split_csv` read
byte by byte; the two agree on everything that both can read.
"""

from libc.string cimport memcmp

from shardb._core.buffer cimport arena_alloc, core_fail
from shardb._core.copyescape cimport unescape_text, unquote_csv

cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long mask) noexcept nogil

cdef enum:
    NOT_QUICK = 3


cdef void split_begin(Splitter* self) noexcept nogil:
    self.wanted.want[0] = self.delimiter
    self.wanted.want[1] = self.quote if self.csv else 0x5C
    self.wanted.want[2] = 0x0A
    self.wanted.want[3] = 0x0D
    self.block = self.data + self.start
    self.found = self.block_odd = self.odd = 0


cdef int split_next(Splitter* self, bint final) noexcept nogil:
    cdef int state
    if self.start == self.end:
        return NEED_MORE
    state = split_quick(self)
    if state != NOT_QUICK:
        return state
    state = split_csv(self, final) if self.csv else split_text(self, final)
    split_begin(self)
    return state


# --- plain records

cdef inline const char* next_wanted(Splitter* self, const char* limit) noexcept nogil:
    """The next byte that means something, or NULL at the end of the data."""
    cdef const char* at
    cdef Py_ssize_t left
    while self.found == 0:
        left = limit - self.block
        if left <= 0:
            return NULL
        self.found = scan64(&self.wanted, self.block, &self.block_odd)
        if left < 64:
            self.found &= (1ULL << left) - 1
        self.odd |= self.block_odd
        self.block += 64
    at = self.block - 64 + count_trailing_zeros(self.found)
    self.found &= self.found - 1
    return at


cdef int split_quick(Splitter* self) noexcept nogil:
    """As `split_next` for a record that is all there and plain; NOT_QUICK consumes nothing."""
    cdef const char* begin = self.data + self.start
    cdef const char* limit = self.data + self.end
    cdef const char* field = begin
    cdef const char* at
    cdef const char* stop
    cdef Py_ssize_t n = 0
    cdef bint special = False       # the field is quoted or has escapes
    cdef int64_t extra = 0
    cdef char c
    self.odd = self.block_odd
    while True:
        at = next_wanted(self, limit)
        if at == NULL:
            return NOT_QUICK
        c = at[0]
        if c != self.delimiter and c != 0x0A and c != 0x0D:
            if self.csv:
                at = quoted_end(self, field, at, limit, &extra)
            elif at + 1 == limit or is_wanted(self, at[1]):
                at = NULL
            if at == NULL:
                return NOT_QUICK
            special = True
            continue
        stop = at
        if c == 0x0D:
            at = next_wanted(self, limit)
            if at != stop + 1 or at[0] != 0x0A:
                return NOT_QUICK
            c = 0x0A
        if n < self.width:
            if self.csv:
                quick_csv_field(self, n, field, stop, special)
            elif text_field(self, n, field, stop, special) < 0:
                return FAILED
            self.fields[n].plain = not self.odd and (self.csv or not special)
        n += 1
        if c == 0x0A:
            break
        field = at + 1
        special = False
    if n == 1 and (stop == begin or begin[0] == 0x5C):
        return NOT_QUICK  # an empty line, or perhaps the end marker
    self.line += 1 + extra
    self.record_fields = n
    return consume(self, begin, stop, at + 1)


cdef inline bint is_wanted(Splitter* self, char c) noexcept nogil:
    return (c == self.wanted.want[0] or c == self.wanted.want[1] or c == 0x0A or c == 0x0D)


cdef const char* quoted_end(
    Splitter* self, const char* field, const char* at, const char* limit, int64_t* extra
) noexcept nogil:
    """The closing quote of a field that is nothing but one quoted string, else NULL."""
    if at != field or self.escape != self.quote:
        return NULL
    while True:
        at = next_wanted(self, limit)
        if at == NULL:
            return NULL
        if at[0] == self.quote:
            break
        if at[0] == 0x0A:
            extra[0] += 1
    if at + 1 == limit or at[1] == self.quote or not is_wanted(self, at[1]):
        return NULL
    return at


cdef inline void quick_csv_field(
    Splitter* self, Py_ssize_t n, const char* begin, const char* stop, bint quoted
) noexcept nogil:
    cdef Field* field = &self.fields[n]
    cdef char flags = self.field_flags[n]
    if quoted:
        begin += 1
        stop -= 1
    field.p = begin
    field.len = stop - begin
    field.null = (
        field.len == self.null_len
        and ((not quoted and not flags & 4) or flags & 2)
        and memcmp(begin, self.null_p, field.len) == 0
    )


# --- all records, byte by byte

cdef int consume(
    Splitter* self, const char* begin, const char* stop, const char* following
) noexcept nogil:
    self.record = begin
    self.record_len = stop - begin
    self.start = following - self.data
    return GOT_ROW


cdef int split_text(Splitter* self, bint final) noexcept nogil:
    cdef const char* begin = self.data + self.start
    cdef const char* limit = self.data + self.end
    cdef const char* at = begin
    cdef const char* stop
    cdef const char* following
    cdef const char* field
    cdef Py_ssize_t n = 0
    cdef bint escaped = False
    cdef int64_t extra = 0
    cdef char c
    cdef char delimiter = self.delimiter
    if at == limit:
        return NEED_MORE
    self.line += 1
    # Fields are cut as we go; what we find counts only once the newline is seen.
    field = at
    while True:
        if at == limit:
            if not final:
                self.line -= 1
                return NEED_MORE
            stop = following = at
            break
        c = at[0]
        if c == delimiter:
            if n < self.width:
                if text_field(self, n, field, at, escaped) < 0:
                    return FAILED
            n += 1
            at += 1
            field = at
            escaped = False
        elif c == 0x0A:
            stop = at
            following = at + 1
            if stop > begin and (stop - 1)[0] == 0x0D:
                stop -= 1
            break
        elif c == 0x5C:
            if at + 1 == limit:
                if not final:
                    self.line -= 1
                    return NEED_MORE
                at += 1
                continue
            escaped = True
            if at[1] == 0x0A:
                extra += 1
            at += 2
        elif c == 0x0D:
            if at + 1 == limit:
                if not final:
                    self.line -= 1
                    return NEED_MORE
                stop = at  # the data's last line ends as its others may
                following = limit
                break
            if at[1] != 0x0A:
                self.record = begin
                self.record_len = at - begin
                return core_fail(b"22P04", b"literal carriage return found in data")
            at += 1
        else:
            at += 1
    if stop - begin == 2 and begin[0] == 0x5C and begin[1] == 0x2E:
        self.start = following - self.data
        return END_OF_DATA
    if n < self.width:
        if text_field(self, n, field, stop, escaped) < 0:
            return FAILED
    n += 1
    if self.width == 0 and stop == begin:
        n = 0
    self.line += extra
    self.record_fields = n
    return consume(self, begin, stop, following)


cdef int text_field(
    Splitter* self, Py_ssize_t n, const char* begin, const char* stop, bint escaped
) noexcept nogil:
    cdef Field* field = &self.fields[n]
    cdef Py_ssize_t length = stop - begin
    cdef char* out
    cdef char* to
    field.null = False
    field.plain = False
    if length == self.null_len and memcmp(begin, self.null_p, length) == 0:
        field.null = True
        return 0
    field.p = begin
    field.len = length
    if not escaped:
        return 0
    out = arena_alloc(self.arena, length + 1)
    if out == NULL:
        return core_fail(b"53200", b"out of memory")
    to = unescape_text(begin, stop, out)
    field.p = out
    field.len = to - out
    return 0


cdef int split_csv(Splitter* self, bint final) noexcept nogil:
    cdef const char* begin = self.data + self.start
    cdef const char* limit = self.data + self.end
    cdef const char* at = begin
    cdef const char* stop
    cdef const char* following
    cdef const char* field
    cdef Py_ssize_t n = 0
    cdef bint quoted = False, inside = False
    cdef int64_t extra = 0
    cdef char c
    cdef char delimiter = self.delimiter, quote = self.quote, escape = self.escape
    if at == limit:
        return NEED_MORE
    self.line += 1
    field = at
    while True:
        if at == limit:
            if not final:
                self.line -= 1
                return NEED_MORE
            if inside:
                self.record = begin
                self.record_len = at - begin
                self.line += extra
                return core_fail(b"22P04", b"unterminated CSV quoted field")
            stop = following = at
            break
        c = at[0]
        if inside:
            if c == escape and (escape != quote or (at + 1 < limit and at[1] == quote)):
                if at + 1 == limit:
                    if not final:
                        self.line -= 1
                        return NEED_MORE
                    at += 1
                elif at[1] == quote or at[1] == escape:
                    at += 2
                else:
                    at += 1
            elif c == quote:
                # A quote at the end of what we have may be the first of a doubled one.
                if at + 1 == limit and not final:
                    self.line -= 1
                    return NEED_MORE
                inside = False
                at += 1
            else:
                if c == 0x0A:
                    extra += 1
                at += 1
        elif c == delimiter:
            if n < self.width:
                if csv_field(self, n, field, at, quoted) < 0:
                    return FAILED
            n += 1
            at += 1
            field = at
            quoted = False
        elif c == quote:
            quoted = True
            inside = True
            at += 1
        elif c == 0x0A:
            stop = at
            following = at + 1
            if stop > begin and (stop - 1)[0] == 0x0D:
                stop -= 1
            break
        elif c == 0x0D:
            if at + 1 == limit:
                if not final:
                    self.line -= 1
                    return NEED_MORE
                stop = at  # the data's last line ends as its others may
                following = limit
                break
            if at[1] != 0x0A:
                self.record = begin
                self.record_len = at - begin
                return core_fail(b"22P04", b"unquoted carriage return found in data")
            at += 1
        else:
            at += 1
    if stop - begin == 2 and begin[0] == 0x5C and begin[1] == 0x2E:
        self.start = following - self.data
        return END_OF_DATA
    if n < self.width:
        if csv_field(self, n, field, stop, quoted) < 0:
            return FAILED
    n += 1
    self.line += extra
    self.record_fields = n
    return consume(self, begin, stop, following)


cdef int csv_field(
    Splitter* self, Py_ssize_t n, const char* begin, const char* stop, bint quoted
) noexcept nogil:
    cdef Field* field = &self.fields[n]
    cdef Py_ssize_t length = stop - begin
    cdef char flags = self.field_flags[n]
    cdef char* out
    cdef char* to
    field.null = False
    field.plain = False
    field.p = begin
    field.len = length
    if quoted:
        out = arena_alloc(self.arena, length + 1)
        if out == NULL:
            return core_fail(b"53200", b"out of memory")
        to = unquote_csv(begin, stop, self.quote, self.escape, out)
        field.p = out
        field.len = to - out
    if (not quoted and not flags & 4) or flags & 2:
        if field.len == self.null_len and memcmp(field.p, self.null_p, field.len) == 0:
            field.null = True
    return 0
