"""Runs as inputs of a merge for compiled code: nothing for Python callers."""
