"""Calendar arithmetic of compiled code: nothing for Python callers."""
