"""Exact decimals of compiled code: nothing for Python callers."""
