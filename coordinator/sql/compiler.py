"""From SQL text to plans: the one entrance to parsing, binding, planning and explaining.

A compiler belongs to one catalog snapshot and keeps no state between statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.catalog import Catalog
from coordinator.plan.plans import OutColumn, Plan
from shardb.program import TypeRef


@dataclass(frozen=True, slots=True)
class StatementText:
    """One statement of a query string and where it begins (0-based character offset)."""

    text: str
    offset: int


@dataclass(frozen=True, slots=True)
class CompiledStatement:
    """A plan, the types of the statement's own parameters and its result columns (may be none).

    `returns_rows` tells RowDescription from NoData.
    """

    plan: Plan
    params: tuple[TypeRef, ...]
    columns: tuple[OutColumn, ...]
    returns_rows: bool


class Compiler:
    """Compiles statements against one catalog snapshot."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def split(self, text: str) -> list[StatementText]:
        """The statements of a simple query string; empty ones are left out."""
        raise NotImplementedError

    def compile(self, text: str, param_types: Sequence[int] = ()) -> CompiledStatement:
        """Compiles one statement; `param_types` are OIDs, 0 or missing ones are inferred."""
        raise NotImplementedError

    def compile_lifted(self, text: str, kinds: Sequence[int]) -> CompiledStatement | None:
        """Compiles text whose literals became `$1 ...` of the types `kinds` (OIDs; 705 unknown).

        None if lifting changed the meaning; the caller then compiles the original text.
        """
        raise NotImplementedError
