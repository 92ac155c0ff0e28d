"""From SQL text to plans: the one entrance to parsing, binding, planning and explaining.

A compiler belongs to one catalog snapshot and keeps no state between statements.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from sqlglot import exp

from coordinator.catalog import Catalog
from coordinator.plan import distribute, rowplan
from coordinator.plan.checks import checks_of
from coordinator.plan.plans import AdvisoryPlan, OutColumn, Plan, QueryPlan, RowPlan, UtilityPlan
from coordinator.sql import parse
from coordinator.sql import typesystem as ts
from coordinator.sql.bind_advisory import AdvisorySelect, advisory_select
from coordinator.sql.bind_dml import DmlBinder
from coordinator.sql.bind_query import QueryBinder
from coordinator.sql.bind_settings import settings_plan
from coordinator.sql.context import Context
from coordinator.sql.lexer import Cursor, Token, syntax_error, tokenize
from coordinator.sql.tree import InsertStatement, SelectQuery, UpdateStatement
from coordinator.sql.utility import parse_utility
from shardb.errors import SqlError
from shardb.limits import PARAMETERS_MAX
from shardb.meta.descriptors import Table
from shardb.program import TypeRef
from shardb.types import TypeCode as T

_RECURSION_MIN: Final = 12_000  # frames that a statement nested to its bound takes


@dataclass(frozen=True, slots=True)
class StatementText:
    """One statement of a query string and where it begins (0-based character offset)."""

    text: str
    offset: int


@dataclass(frozen=True, slots=True)
class CompiledStatement:
    """A plan, the types of the statement's own parameters and its result columns (may be none).

    `returns_rows` tells RowDescription from NoData. `arrays`: the parameters that are arrays (their
    type here is text), and the OIDs of their types.
    """

    plan: Plan
    params: tuple[TypeRef, ...]
    columns: tuple[OutColumn, ...]
    returns_rows: bool
    arrays: tuple[tuple[int, int], ...] = ()


class Compiler:
    """Compiles statements against one catalog snapshot."""

    def __init__(self, catalog: Catalog, user: str = "shardb") -> None:
        self.catalog = catalog
        self.user = user
        if sys.getrecursionlimit() < _RECURSION_MIN:
            sys.setrecursionlimit(_RECURSION_MIN)

    def split(self, text: str) -> list[StatementText]:
        """The statements of a simple query string; empty ones are left out."""
        return [StatementText(part, offset) for part, offset in parse.split(text)]

    def compile(self, text: str, param_types: Sequence[int] = ()) -> CompiledStatement:
        """Compiles one statement; `param_types` are OIDs, 0 or missing ones are inferred."""
        if len(param_types) > PARAMETERS_MAX:
            raise SqlError("54023", f"a statement can have at most {PARAMETERS_MAX} parameters")
        tokens = tokenize(text)
        while len(tokens) > 1 and tokens[-2].text == ";" and tokens[-2].kind == "punctuation":
            del tokens[-2]
        for token in tokens:
            if token.kind == "punctuation" and token.text == ";":
                raise SqlError(
                    "42601",
                    "cannot insert multiple commands into a prepared statement",
                    position=token.start + 1,
                )
        context = Context(
            self.catalog, text, [ts.from_oid(oid) for oid in param_types], param_types
        )
        context.user = self.user
        context.tokens = tokens
        try:
            plan = self._plan(context, tokens)
        except RecursionError:
            raise SqlError("54001", "stack depth limit exceeded") from None
        params = tuple(
            ts.TEXT if ref.code == T.UNKNOWN else ref for ref in context.parameters.types
        )
        arrays = tuple(
            (index, ts.array_oid(ref)) for index, ref in sorted(context.parameters.arrays.items())
        )
        return CompiledStatement(plan, params, plan.columns, bool(plan.columns), arrays)

    def compile_lifted(self, text: str, kinds: Sequence[int]) -> CompiledStatement | None:
        """Compiles text whose literals became `$1 ...` of the types `kinds` (OIDs; 705 unknown).

        None if lifting changed the meaning; the caller then compiles the original text. An error
        of lifted text is no error yet: positions and literals of the original decide.
        """
        try:
            compiled = self.compile(text, [0 if oid == 705 else oid for oid in kinds])
        except SqlError:
            return None
        if (
            compiled.arrays
            or isinstance(compiled.plan, UtilityPlan)
            or len(compiled.params) != len(kinds)
        ):
            return None
        return compiled

    def query_plan(self, text: str) -> QueryPlan:
        """The engine's plan of a SELECT, also where a row program would do."""
        tokens = tokenize(text)
        context = Context(self.catalog, text, [])
        context.tokens = tokens
        query = QueryBinder(context, {}).query(parse.parse_query(text, tokens))
        return distribute.plan_query(query, context)

    def _plan(self, context: Context, tokens: list[Token]) -> Plan:
        first = tokens[0]
        if first.kind == "end":
            return UtilityPlan("empty", (), "")
        if first.is_word("explain"):
            return self._explain(context, tokens)
        if first.text == "(" or first.is_word(*parse.QUERY_WORDS):
            return self._query(context, parse.parse_query(context.text, tokens))
        return parse_utility(context, tokens)

    def _query(self, context: Context, tree: exp.Expression) -> Plan:
        if isinstance(tree, exp.Insert):
            statement = DmlBinder(context).bind(tree)
            assert isinstance(statement, InsertStatement)
            plan = rowplan.plan_insert(statement, context)
            if plan is not None:
                return _checked(plan, statement.table, context)
            return distribute.plan_insert_query(statement, context)
        if isinstance(tree, (exp.Update, exp.Delete)):
            change = DmlBinder(context).bind(tree)
            assert not isinstance(change, InsertStatement)
            plan = rowplan.plan_change(change, context)
            if plan is not None:
                updating = isinstance(change, UpdateStatement)
                return _checked(plan, change.scan.table, context) if updating else plan
            return distribute.plan_change_query(change, context)
        settings = settings_plan(tree)
        if settings is not None:
            return settings
        advisory = advisory_select(tree)
        if advisory is not None:
            return self._advisory(advisory, context)
        query = QueryBinder(context, {}).query(tree)
        if isinstance(query, SelectQuery):
            row_plan = rowplan.plan_select(query, context)
            if row_plan is not None:
                return self._with_fallback(row_plan, query, context)
        return distribute.plan_select(query, context)

    @staticmethod
    def _advisory(found: AdvisorySelect, context: Context) -> AdvisoryPlan:
        plan = distribute.plan_query(QueryBinder(context, {}).query(found.query), context)
        columns = []
        for item, label in zip(found.items, found.labels, strict=True):
            if isinstance(item, int):
                columns.append(plan.columns[item])
            else:
                void = item.function.action == "release_all" or (
                    item.function.action == "acquire" and item.function.wait
                )
                columns.append(OutColumn(label, ts.TEXT if void else ts.BOOL))
        return AdvisoryPlan(plan, found.items, tuple(columns))

    @staticmethod
    def _with_fallback(plan: RowPlan, query: SelectQuery, context: Context) -> RowPlan:
        if not rowplan.needs_fallback(plan):
            return plan
        return replace(plan, fallback=distribute.plan_select(query, context))

    def _explain(self, context: Context, tokens: list[Token]) -> UtilityPlan:
        cursor = Cursor(context.text, tokens)
        cursor.expect("explain")
        analyze = False
        if cursor.accept_mark("("):
            while True:
                option = cursor.identifier()
                value = "true"
                if cursor.token.kind in ("word", "number") and cursor.token.text != ",":
                    value = cursor.advance().value
                if option == "analyze":
                    analyze = value in ("true", "on", "1")
                elif option == "format" and value != "text":
                    raise SqlError("0A000", f"EXPLAIN format {value} is not supported")
                if not cursor.accept_mark(","):
                    break
            cursor.expect_mark(")")
        else:
            while word := cursor.accept_any("analyze", "verbose"):
                analyze = analyze or word == "analyze"
        start = cursor.token.start
        if not (cursor.token.text == "(" or cursor.token.is_word(*parse.QUERY_WORDS)):
            raise syntax_error(cursor.token)
        # Blanks keep the positions of errors those of the whole statement.
        context.text = " " * start + context.text[start:]
        plan = self._plan(context, tokens[cursor.at :])
        columns = (OutColumn("QUERY PLAN", ts.TEXT),)
        return UtilityPlan("explain", (plan, analyze), "EXPLAIN", columns)


def _checked(plan: RowPlan, table: Table, context: Context) -> RowPlan:
    """A plan that writes rows, with the CHECK constraints of its table."""
    if not table.checks:
        return plan
    spec = msgspec.structs.replace(plan.program, checks=checks_of(table, context.catalog))
    return replace(plan, program=spec, program_id=rowplan.program_id(spec))
