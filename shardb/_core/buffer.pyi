"""Byte buffers and errors of compiled code: nothing for Python callers."""
