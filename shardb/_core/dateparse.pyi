"""Date input of compiled code: nothing for Python callers."""
