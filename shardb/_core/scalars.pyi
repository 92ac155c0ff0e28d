"""The text of scalar values for compiled code: nothing for Python callers."""
