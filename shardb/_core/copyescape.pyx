"""Escapes of the text format and quotes of CSV in the fields of COPY (manual, COPY: File Formats)."""


cdef char* unescape_text(const char* begin, const char* stop, char* out) noexcept nogil:
    cdef char c
    cdef int digits, value
    while begin < stop:
        c = begin[0]
        begin += 1
        if c != 0x5C or begin == stop:
            out[0] = c
            out += 1
            continue
        c = begin[0]
        begin += 1
        if 0x30 <= c <= 0x37:
            value = c - 0x30
            digits = 1
            while digits < 3 and begin < stop and 0x30 <= begin[0] <= 0x37:
                value = value * 8 + (begin[0] - 0x30)
                begin += 1
                digits += 1
            c = <char> (value & 0xFF)
        elif c == 0x78 and begin < stop and hex_digit(begin[0]) >= 0:
            value = hex_digit(begin[0])
            begin += 1
            if begin < stop and hex_digit(begin[0]) >= 0:
                value = value * 16 + hex_digit(begin[0])
                begin += 1
            c = <char> (value & 0xFF)
        elif c == 0x62:
            c = 0x08
        elif c == 0x66:
            c = 0x0C
        elif c == 0x6E:
            c = 0x0A
        elif c == 0x72:
            c = 0x0D
        elif c == 0x74:
            c = 0x09
        elif c == 0x76:
            c = 0x0B
        out[0] = c
        out += 1
    return out


cdef char* unquote_csv(
    const char* begin, const char* stop, char quote, char escape, char* out
) noexcept nogil:
    cdef bint inside = False
    cdef char c
    while begin < stop:
        c = begin[0]
        begin += 1
        if inside:
            if c == escape and begin < stop and (begin[0] == quote or begin[0] == escape):
                out[0] = begin[0]
                out += 1
                begin += 1
                continue
            if c == quote:
                inside = False
                continue
        elif c == quote:
            inside = True
            continue
        out[0] = c
        out += 1
    return out


cdef inline int hex_digit(char c) noexcept nogil:
    if 0x30 <= c <= 0x39:
        return c - 0x30
    if 0x61 <= c <= 0x66:
        return c - 0x57
    if 0x41 <= c <= 0x46:
        return c - 0x37
    return -1
