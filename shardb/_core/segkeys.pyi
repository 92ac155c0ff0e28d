"""The keys of a segment for compiled code: nothing for Python callers."""
