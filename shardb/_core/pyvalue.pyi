"""Python values of SQL values for compiled code: nothing for Python callers."""
