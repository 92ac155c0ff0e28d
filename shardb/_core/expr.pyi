"""Expressions of row programs: compilation and evaluation in C; Python sees the operator list."""

from collections.abc import Sequence

OPERATORS: frozenset[str]

def supported(op: str, result: int, arguments: Sequence[int]) -> bool:
    """True if the row programs have `op` on these type codes (UNKNOWN stands for a NULL literal)."""
