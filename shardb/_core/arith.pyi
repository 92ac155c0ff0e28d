"""Arithmetic on SQL values for compiled code: nothing for Python callers."""
