"""Binds FOR UPDATE, NO KEY UPDATE, SHARE and KEY SHARE: which tables of FROM they lock, and how."""

from __future__ import annotations

from sqlglot import exp

from coordinator.sql.bind_expr import name_of
from coordinator.sql.parse import position_of
from coordinator.sql.scope import Scope
from coordinator.sql.tree import (
    Call,
    CteScan,
    Derived,
    FunctionScan,
    Join,
    Relation,
    RowLock,
    Scan,
    SelectQuery,
    WindowCall,
)
from coordinator.sql.walk import expressions, relations, scans
from shardb.errors import SqlError, unsupported
from shardb.txn.lockmodes import BY_NAME

_WAITS = {None: 0, True: 1, False: 2}  # as the parser has them: wait, NOWAIT, SKIP LOCKED


def bind_locks(node: exp.Select, query: SelectQuery, scope: Scope) -> None:
    """Fills in `query.locks`; 0A000 and 42P01 as PostgreSQL has them."""
    clauses = node.args.get("locks") or ()
    if not clauses:
        return
    check_allowed(strength_of(clauses[0]), query)
    locks: dict[str, RowLock] = {}
    for clause in clauses:
        strength = strength_of(clause)
        nowait = _WAITS[clause.args.get("wait")]
        for scan in _locked(clause, strength, query, scope):
            found = RowLock(scan.alias, scan.table, strength, nowait)
            locks[scan.alias] = _both(locks.get(scan.alias), found)
    query.locks = list(locks.values())


def strength_of(clause: exp.Lock) -> str:
    """A clause's lock as `lockmodes.BY_NAME` calls it."""
    if clause.args.get("update"):
        return "no key update" if clause.args.get("key") else "update"
    return "key share" if clause.args.get("key") else "share"


def check_allowed(strength: str, query: SelectQuery) -> None:
    """0A000 if rows of the result do not stand for rows of a table."""
    what = ""
    if query.distinct or query.distinct_on:
        what = "DISTINCT clause"
    elif query.group:
        what = "GROUP BY clause"
    elif query.having is not None:
        what = "HAVING clause"
    elif query.grouped:
        what = "aggregate functions"
    elif any(
        isinstance(each, WindowCall) for out in query.outputs for each in expressions(out.value)
    ):
        what = "window functions"
    elif any(
        isinstance(each, Call) and each.op in ("unnest", "generate_series")
        for out in query.outputs
        for each in expressions(out.value)
    ):
        what = "set-returning functions in the target list"
    if what:
        raise SqlError("0A000", f"FOR {strength.upper()} is not allowed with {what}")


def _both(one: RowLock | None, other: RowLock) -> RowLock:
    """Of two locks of one table the stronger, and the more impatient."""
    if one is None:
        return other
    strength = max(one.strength, other.strength, key=BY_NAME.__getitem__)
    impatience = {0: 0, 2: 1, 1: 2}
    nowait = max(one.nowait, other.nowait, key=impatience.__getitem__)
    return RowLock(one.alias, one.table, strength, nowait)


def _locked(clause: exp.Lock, strength: str, query: SelectQuery, scope: Scope) -> list[Scan]:
    """The tables that a clause locks."""
    name = f"FOR {strength.upper()}"
    if query.source is None:
        if clause.expressions:
            raise _not_in_from(clause.expressions[0], name)
        return []
    nullable = {id(relation) for relation in _nullable(query.source, False)}
    found = []
    targets = {name_of(item.this): item for item in clause.expressions}
    known = {r.name for r in scope.relations}
    for target, item in targets.items():
        if target not in known:
            raise _not_in_from(item, name)
    names = {r.columns[0].value.source: r.name for r in scope.relations if r.columns}  # type: ignore[union-attr]
    for relation in relations(query.source):
        if isinstance(relation, Join):
            continue
        called = names.get(relation.alias, "")
        if targets and called not in targets:
            continue
        position = position_of(targets[called]) if targets else 0
        if isinstance(relation, Scan):
            if id(relation) in nullable:
                text = f"{name} cannot be applied to the nullable side of an outer join"
                raise SqlError("0A000", text, position=position)
            found.append(relation)
        elif isinstance(relation, Derived):
            if any(True for _ in scans(relation.query)):
                raise unsupported(f"{name} of a subquery in FROM")
        elif targets and isinstance(relation, (CteScan, FunctionScan)):
            kind = "WITH query" if isinstance(relation, CteScan) else "function"
            raise SqlError("0A000", f"{name} cannot be applied to a {kind}", position=position)
    return found


def _nullable(relation: Relation, filled: bool) -> list[Relation]:
    """What an outer join may fill with NULLs."""
    if not isinstance(relation, Join):
        return [relation] if filled else []
    left = filled or relation.kind in ("right", "full")
    right = filled or relation.kind in ("left", "full")
    return _nullable(relation.left, left) + _nullable(relation.right, right)


def _not_in_from(item: exp.Expression, name: str) -> SqlError:
    target = name_of(item.this)
    text = f'relation "{target}" in {name} clause not found in FROM clause'
    return SqlError("42P01", text, position=position_of(item))
