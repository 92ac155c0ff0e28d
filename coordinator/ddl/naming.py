"""Names that PostgreSQL makes for constraints and indexes without one (`ChooseRelationName`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shardb.limits import IDENTIFIER_MAX_BYTES


def constraint_name(table: str, columns: Sequence[str], label: str, taken: Collection[str]) -> str:
    """`table_columns_label`, with a number after it if that is taken; long parts are cut."""
    number = 0
    while True:
        suffix = label + (str(number) if number else "")
        name = _joined(table, "_".join(columns), suffix)
        if name not in taken:
            return name
        number += 1


def _joined(one: str, other: str, suffix: str) -> str:
    """The parts joined by underscores, the longer of the first two cut until all of them fit."""
    room = IDENTIFIER_MAX_BYTES - len(suffix.encode()) - 1 - bool(other)
    first, second = one.encode(), other.encode()
    while len(first) + len(second) > room:
        if len(first) > len(second):
            first = first[:-1]
        else:
            second = second[:-1]
    parts = [first.decode(errors="ignore"), second.decode(errors="ignore"), suffix]
    return "_".join(part for part in parts if part)
