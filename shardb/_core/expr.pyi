"""Evaluation of expressions for compiled code: nothing for Python callers."""
