"""Expressions of row programs: their compilation; Python sees the operator list."""

from collections.abc import Sequence

OPERATORS: frozenset[str]

def supported(op: str, result: int, arguments: Sequence[int]) -> bool:
    """True if row programs have `op` on these type codes (UNKNOWN stands for a NULL literal)."""
