"""The plan cache: from statement text to a plan that is ready to run, without parsing it again.

Two ways in: prepared statements by exact text and parameter types, simple queries by exact text and
then by fingerprint (text with its literals lifted out). A cached statement never meets the parser.
All entries belong to one catalog snapshot; a new one empties the cache. Bounded: the oldest
use goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from coordinator.ddl.specs import CopyFrom
from coordinator.pgwire import messages
from coordinator.plan.bounds import one_column_table
from coordinator.plan.plans import (
    AdvisoryPlan,
    BoundProgram,
    LockPlan,
    OutColumn,
    Plan,
    QueryPlan,
    RowPlan,
    UtilityPlan,
    WritePlan,
)
from coordinator.sql.arrays import parameter_text
from coordinator.sql.compiler import CompiledStatement, Compiler
from shardb import limits, types
from shardb._core.fingerprint import fingerprint
from shardb._core.rowcodec import RowLayout
from shardb.errors import SqlError
from shardb.meta.descriptors import Table
from shardb.program import ProgramSpec, TypeRef
from shardb.types import TypeCode

_KIND_OIDS: Final = {0x69: 23, 0x6C: 20, 0x6E: 1700, 0x73: 705}  # i l n s
_EXACT_TEXT_MAX_BYTES: Final = 64 * limits.KIB  # a longer one is compiled anew each time
_FORMATS_MAX: Final = 16  # row descriptions kept for one statement

MakeProgram = Callable[[ProgramSpec, Table], Any]


class Entry:
    """A compiled statement and what is needed to run it again and again.

    `program` and `layout` are set for row plans; `layout` encodes the parameters of the others too.
    Not changed after construction, but for the memo of row descriptions and command tags.
    """

    __slots__ = (
        "_complete_one",
        "_descriptions",
        "_oids",
        "arrays",
        "catalog_version",
        "columns",
        "extras",
        "fallback",
        "layout",
        "param_count",
        "param_description",
        "params",
        "plan",
        "program",
        "reads_only",
        "returns_rows",
        "row_plan",
        "tag_head",
        "tag_tail",
        "width",
        "writes",
    )

    @property
    def command(self) -> str:
        """Its name in errors."""
        return _command(self.plan)

    def __init__(self, compiled: CompiledStatement, version: int, program: Any) -> None:
        self.plan: Plan = compiled.plan
        self.params: tuple[TypeRef, ...] = compiled.params
        self.columns: tuple[OutColumn, ...] = compiled.columns
        self.returns_rows = compiled.returns_rows
        self.catalog_version = version
        self.program = program
        self.row_plan = compiled.plan if isinstance(compiled.plan, RowPlan) else None
        self.param_count = len(compiled.params)
        self.width = len(compiled.columns)
        self.extras: tuple[str, ...] = _extras_of(compiled.plan)
        self.fallback = compiled.plan.fallback if isinstance(compiled.plan, RowPlan) else None
        self.reads_only = _reads_only(compiled.plan)
        self.writes = _written(compiled.plan)
        if program is not None:
            self.layout = program.param_layout
        else:
            self.layout = RowLayout(0, _param_types(compiled))
        head, brace, tail = compiled.plan.tag.partition("{}")
        self.tag_head = head
        self.tag_tail: str | None = tail if brace else None
        self._complete_one = messages.command_complete(compiled.plan.tag.replace("{}", "1"))
        self._descriptions: dict[bytes, bytes] = {}
        self._oids = [types.TYPES[TypeCode(ref.code)].oid for ref in compiled.params]
        for index, oid in compiled.arrays:
            self._oids[index] = oid
        self.arrays = tuple(index for index, _ in compiled.arrays)
        self.param_description = messages.parameter_description(self._oids)

    def array_texts(self, formats: bytes, values: list[bytes | None]) -> list[bytes | None]:
        """The parameters with arrays in text form, which is a text's binary form too."""
        texts = list(values)
        for index in self.arrays:
            value = values[index]
            binary = formats[index if len(formats) > 1 else 0] if formats else 0
            if value is not None:
                texts[index] = parameter_text(value, bool(binary))
        return texts

    def complete(self, rows: int) -> bytes:
        """CommandComplete for `rows` rows."""
        if rows == 1 or self.tag_tail is None:
            return self._complete_one
        return messages.command_complete(f"{self.tag_head}{rows}{self.tag_tail}")

    def description(self, formats: bytes) -> bytes:
        """RowDescription in these formats, or NoData."""
        found = self._descriptions.get(formats)
        if found is None:
            found = describe(self.columns, formats) if self.returns_rows else messages.NO_DATA
            if len(self._descriptions) < _FORMATS_MAX:
                self._descriptions[formats] = found
        return found


def describe(columns: tuple[OutColumn, ...], formats: bytes) -> bytes:
    """RowDescription of result columns."""
    return messages.row_description(
        (
            (
                column.name,
                column.table_oid,
                column.attnum,
                types.TYPES[TypeCode(column.type.code)].oid,
                types.TYPES[TypeCode(column.type.code)].length,
                column.type.typmod,
            )
            for column in columns
        ),
        formats,
    )


class PlanCache:
    """Plans of one coordinator for its current catalog snapshot.

    `compiler` makes plans, `make_program` compiles a row program for the coordinator's own use (it
    encodes parameters and finds keys).
    """

    def __init__(self, compiler: Compiler, make_program: MakeProgram) -> None:
        self._make_program = make_program
        self._exact: OrderedDict[tuple[bytes, tuple[int, ...]], Entry] = OrderedDict()
        self._lifted: OrderedDict[tuple[bytes, bytes], Entry | None] = OrderedDict()
        self._programs: OrderedDict[ProgramSpec | BoundProgram, Any] = OrderedDict()
        self.compiler = compiler
        self.version = compiler.catalog.version

    def use(self, compiler: Compiler) -> None:
        """Takes a new catalog snapshot; plans of another version are not used again."""
        self.compiler = compiler
        if compiler.catalog.version == self.version:
            return  # only nodes came or went
        self.version = compiler.catalog.version
        self._exact.clear()
        self._lifted.clear()
        self._programs.clear()

    def __len__(self) -> int:
        return len(self._exact) + len(self._lifted)

    def simple(self, text: bytes) -> tuple[Entry, list[bytes]] | None:
        """The plan and parameter texts of a simple query if it is cached or can be lifted.

        None means: split and compile it the long way (which also reports its errors).
        """
        entry = self._exact.get((text, ()))
        if entry is not None:
            self._exact.move_to_end((text, ()))
            return entry, []
        lifted = fingerprint(text)
        if lifted is None:
            return None
        body, kinds, literals = lifted
        key = (body, kinds)
        try:
            entry = self._lifted[key]
            self._lifted.move_to_end(key)
        except KeyError:
            entry = self._compile_lifted(body, kinds)
            self._lifted[key] = entry
            _bound(self._lifted)
        return None if entry is None else (entry, literals)

    def exact(self, text: bytes, oids: tuple[int, ...] = ()) -> Entry:
        """The plan of one statement by its text and parameter types; compiles it if need be."""
        key = (text, oids)
        entry = self._exact.get(key)
        if entry is not None:
            self._exact.move_to_end(key)
            return entry
        entry = self._entry(self.compiler.compile(decode_text(text), oids))
        if len(text) <= _EXACT_TEXT_MAX_BYTES:
            self._exact[key] = entry
            _bound(self._exact)
        return entry

    def cached(self, text: bytes, oids: tuple[int, ...]) -> Entry | None:
        """The plan if it is here already."""
        return self._exact.get((text, oids))

    def program_of(self, spec: ProgramSpec) -> Any:
        """A program compiled for the coordinator's own use, kept as long as the snapshot."""
        found = self._programs.get(spec)
        if found is None:
            found = self._make_program(spec, self.compiler.catalog.table(spec.table_id))
            self._programs[spec] = found
            _bound(self._programs)
        return found

    def bound_program_of(self, bound: BoundProgram) -> Any:
        """The same for a bound of a scan."""
        found = self._programs.get(bound)
        if found is None:
            found = self._make_program(bound.program, one_column_table(bound))
            self._programs[bound] = found
            _bound(self._programs)
        return found

    def _compile_lifted(self, body: bytes, kinds: bytes) -> Entry | None:
        # Only row programs are shared between literals: an engine plan is better made for the
        # values it has (key intervals, constants), and errors get their place in the real text.
        try:
            compiled = self.compiler.compile_lifted(
                body.decode(), [_KIND_OIDS[kind] for kind in kinds]
            )
            if compiled is None or not isinstance(compiled.plan, RowPlan):
                return None
            if len(compiled.params) != len(kinds):
                return None
            return self._entry(compiled)
        except (SqlError, UnicodeDecodeError):
            return None

    def entry_of(self, compiled: CompiledStatement) -> Entry:
        """An entry that is not kept."""
        return self._entry(compiled)

    def _entry(self, compiled: CompiledStatement) -> Entry:
        program = None
        if isinstance(compiled.plan, RowPlan):
            spec = compiled.plan.program
            program = self._make_program(spec, self.compiler.catalog.table(spec.table_id))
        return Entry(compiled, self.version, program)


def decode_text(text: bytes) -> str:
    """Statement text from the wire; 22021 if it is not UTF-8, 54000 if it is too long."""
    if len(text) > limits.STATEMENT_MAX_BYTES:
        raise SqlError(
            "54000", f"statement of {len(text)} bytes is longer than {limits.STATEMENT_MAX_BYTES}"
        )
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        wrong = " ".join(f"0x{byte:02x}" for byte in text[error.start : error.end])
        raise SqlError("22021", f'invalid byte sequence for encoding "UTF8": {wrong}') from None


def _bound(entries: OrderedDict[Any, Any]) -> None:
    while len(entries) > limits.PLAN_CACHE_MAX_ENTRIES:
        entries.popitem(last=False)


def _extras_of(plan: Plan) -> tuple[str, ...]:
    if isinstance(plan, WritePlan):
        return plan.query.extras
    if isinstance(plan, UtilityPlan):
        return ()
    return plan.extras


def _param_types(compiled: CompiledStatement) -> list[tuple[int, int]]:
    plan = compiled.plan
    if isinstance(plan, (WritePlan, LockPlan, AdvisoryPlan)):
        plan = plan.query
    refs = compiled.params if isinstance(plan, (UtilityPlan, RowPlan)) else plan.params
    return [(ref.code, ref.typmod) for ref in refs]


def _reads_only(plan: Plan) -> bool:
    if isinstance(plan, RowPlan):
        return plan.program.kind == "select" and not plan.program.locking
    if isinstance(plan, QueryPlan):
        return not plan.locked
    return not isinstance(plan, (WritePlan, LockPlan))


def _command(plan: Plan) -> str:
    """What a statement is called in errors."""
    if isinstance(plan, RowPlan) and plan.program.locking:
        return f"SELECT FOR {plan.program.locking.upper()}"
    if isinstance(plan, QueryPlan) and plan.locked:
        plan = plan.locked[0][1]
    if isinstance(plan, LockPlan):
        return f"SELECT FOR {plan.strength.upper()}"
    return plan.tag.split(maxsplit=1)[0] if plan.tag else ""


def _written(plan: Plan) -> int:
    """The id of the table that a plan writes or locks, 0 if it does not."""
    if isinstance(plan, WritePlan):
        return plan.table_id
    if isinstance(plan, QueryPlan) and plan.locked:
        plan = plan.locked[0][1]
    if isinstance(plan, LockPlan):
        return plan.locks[0].table_id if plan.locks else 0
    if isinstance(plan, UtilityPlan) and plan.kind == "copy_from":
        spec = plan.args[0]
        assert isinstance(spec, CopyFrom), spec
        return spec.table_id
    return plan.program.table_id if isinstance(plan, RowPlan) and not _reads_only(plan) else 0
