"""What DDL statements ask for, as frozen values: the arguments of DDL utility plans."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A column of CREATE TABLE; `default` is SQL text."""

    name: str
    type_code: int
    typmod: int
    not_null: bool = False
    default: str | None = None


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A CHECK constraint; `text` is SQL, `columns` are the names in it."""

    name: str
    text: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CreateTable:
    """CREATE TABLE. `split_at`: for each split point, text values of the leading key columns."""

    name: str
    schema: str
    columns: tuple[ColumnSpec, ...]
    primary_key: tuple[str, ...]
    primary_key_name: str = ""
    if_not_exists: bool = False
    split_at: tuple[tuple[str | None, ...], ...] = ()
    colocate_with: str = ""
    options: dict[str, str] = field(default_factory=dict)
    checks: tuple[CheckSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class TableName:
    """A table as a statement names it; the schema is empty if not given."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, slots=True)
class DropTable:
    """DROP TABLE."""

    names: tuple[TableName, ...]
    if_exists: bool


@dataclass(frozen=True, slots=True)
class Truncate:
    """TRUNCATE."""

    names: tuple[TableName, ...]


@dataclass(frozen=True, slots=True)
class AddPrimaryKey:
    """ALTER TABLE ... ADD [CONSTRAINT name] PRIMARY KEY (columns)."""

    name: TableName
    columns: tuple[str, ...]
    constraint: str


@dataclass(frozen=True, slots=True)
class AddColumn:
    """ADD COLUMN of ALTER TABLE."""

    column: ColumnSpec
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class DropColumn:
    """DROP COLUMN of ALTER TABLE."""

    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class AlterTable:
    """ALTER TABLE: columns go, columns come, options (SET) are replaced, as in PostgreSQL in this
    order whatever the order of the actions.
    """

    name: TableName
    if_exists: bool
    drops: tuple[DropColumn, ...] = ()
    adds: tuple[AddColumn, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CopyFrom:
    """COPY table [(columns)] FROM STDIN; `options` are lower-case names with their values."""

    table_id: int
    columns: tuple[int, ...]
    options: dict[str, object] = field(default_factory=dict)
