"""CHECK constraints tried on encoded rows, by shards and coordinators alike.

A condition is a row program of its own, whose filter lets a row pass. Pure; one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from shardb._core.rowprog import Program
from shardb.errors import SqlError
from shardb.meta.descriptors import Table
from shardb.program import Call, Col, NamedCheck, ProgramSpec, TypeRef
from shardb.types import TypeCode as T

FAILING_VALUE_MAX: Final = 64  # characters of a value in the detail of an error
_BOOL: Final = TypeRef(T.BOOL)


class RowChecks:
    """The CHECK constraints of a table in one of its schema versions, in the order of `checks`."""

    def __init__(self, table: Table, checks: Sequence[NamedCheck]) -> None:
        self._table = table
        self._programs = [(check.name, _program(table, check)) for check in checks]
        self._params = self._programs[0][1].param_layout.encode(()) if checks else b""

    def check(self, row: bytes) -> None:
        """23514 in PostgreSQL's words if a condition is false; one that is NULL lets it pass."""
        for name, program in self._programs:
            if not program.matches(row, self._params):
                raise SqlError(
                    "23514",
                    f'new row for relation "{self._table.name}" violates check constraint "{name}"',
                    detail=failing_row(_values(program.returning(row, self._params, b""))),
                    constraint=name,
                )

    def check_all(self, rows: Iterable[bytes]) -> None:
        """The same for several rows."""
        for row in rows:
            self.check(row)


def _program(table: Table, check: NamedCheck) -> Program:
    condition = check.condition
    unknown = Call(_BOOL, "is_null", (condition,))
    spec = ProgramSpec(
        table_id=table.id,
        schema_version=table.schema_version,
        kind="select",
        params=(),
        filter=Call(_BOOL, "or", (condition, unknown)),
        output=tuple(
            Col(TypeRef(column.type_code, column.typmod), at)
            for at, column in enumerate(table.columns)
            if not column.hidden
        ),
    )
    return Program(spec, table)


def failing_row(values: Iterable[str | None]) -> str:
    """The detail of an error about a row with these values, as PostgreSQL shows it."""
    shown = []
    for value in values:
        text = "null" if value is None else value
        cut = text if len(text) <= FAILING_VALUE_MAX else text[:FAILING_VALUE_MAX] + "..."
        shown.append(cut)
    return f"Failing row contains ({', '.join(shown)})."


def _values(message: bytes) -> Iterator[str | None]:
    """The values of a DataRow message in text."""
    at = 7
    for _ in range(int.from_bytes(message[5:7], "big")):
        length = int.from_bytes(message[at : at + 4], "big", signed=True)
        at += 4
        yield None if length < 0 else message[at : at + length].decode()
        at += max(length, 0)
