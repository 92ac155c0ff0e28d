"""Aggregates for compiled code: nothing for Python callers."""
