"""Cursors over a memtable and own writes for compiled code: nothing for Python callers."""
