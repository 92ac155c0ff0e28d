# What the fields of COPY stand for: both write at most `stop - begin` bytes and return their end.

cdef char* unescape_text(const char* begin, const char* stop, char* out) noexcept nogil
cdef char* unquote_csv(
    const char* begin, const char* stop, char quote, char escape, char* out
) noexcept nogil
