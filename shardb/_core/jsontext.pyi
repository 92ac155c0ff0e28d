"""JSON text of compiled code: nothing for Python callers."""
