"""Text operators for compiled code: nothing for Python callers."""
