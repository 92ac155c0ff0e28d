"""Columns of Arrow record batches for compiled code: nothing for Python callers."""
