"""Binds SELECT of advisory lock functions: the only statements in which these may be called.

They act once, so that they stand alone in the SELECT list of a query without FROM, beside other
expressions perhaps. The query that the engine runs gives their arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlglot import exp

from coordinator.sql.pghash import hashtext, hashtextextended
from shardb.errors import SqlError, unsupported


@dataclass(frozen=True, slots=True)
class AdvisoryFunction:
    """What a function does: `acquire` (which may `wait`), `release` or `release_all`."""

    action: str
    shared: bool = False
    of_transaction: bool = False
    wait: bool = True


def _functions() -> dict[str, AdvisoryFunction]:
    found = {"pg_advisory_unlock_all": AdvisoryFunction("release_all")}
    for suffix, shared in (("", False), ("_shared", True)):
        found[f"pg_advisory_unlock{suffix}"] = AdvisoryFunction("release", shared)
        for scope, of_transaction in (("", False), ("_xact", True)):
            for prefix, wait in (("pg_advisory", True), ("pg_try_advisory", False)):
                name = f"{prefix}{scope}_lock{suffix}"
                found[name] = AdvisoryFunction("acquire", shared, of_transaction, wait)
    return found


FUNCTIONS: Final = _functions()
_HASHES: Final = ("hashtext", "hashtextextended")
_CLAUSES: Final = (
    "from_",
    "where",
    "group",
    "having",
    "distinct",
    "order",
    "limit",
    "offset",
    "with_",
    "windows",
)


@dataclass(frozen=True, slots=True)
class AdvisoryArgument:
    """An argument: column `at` of the query, hashed (`hash`) if it is a text's hash."""

    at: int
    hash: str = ""
    seed: int = 0

    def value(self, given: object) -> int:
        """The argument's number."""
        if self.hash == "hashtext":
            return hashtext(str(given))
        if self.hash:
            return hashtextextended(str(given), self.seed)
        assert isinstance(given, int), given
        return given


@dataclass(frozen=True, slots=True)
class AdvisoryCall:
    """A call at a place in the SELECT list."""

    name: str
    function: AdvisoryFunction
    args: tuple[AdvisoryArgument, ...]


@dataclass(frozen=True, slots=True)
class AdvisorySelect:
    """`items` are calls, or columns of `query` as they are; `labels` their names."""

    query: exp.Select
    items: tuple[AdvisoryCall | int, ...]
    labels: tuple[str, ...]


def advisory_select(tree: exp.Expression) -> AdvisorySelect | None:
    """The parts of a SELECT of such calls; None if it has none, 0A000 if they are elsewhere."""
    if not isinstance(tree, exp.Select) or not any(map(_function_of, tree.expressions)):
        return None
    for clause in _CLAUSES:
        if tree.args.get(clause):
            name = next(filter(None, map(_function_of, tree.expressions)))
            raise refused(name)
    columns: list[exp.Expression] = []
    items: list[AdvisoryCall | int] = []
    labels = []
    for item in tree.expressions:
        name = _function_of(item)
        if not name:
            items.append(len(columns))
            columns.append(item)
            labels.append("")
            continue
        call = _unwrapped(item)
        labels.append(item.alias if isinstance(item, exp.Alias) else name)
        items.append(_call(name, list(call.expressions), columns))
    return AdvisorySelect(
        exp.select(*columns or [exp.Literal.number(1)]), tuple(items), tuple(labels)
    )


def refused(name: str) -> SqlError:
    """0A000 for a call where it cannot be."""
    return unsupported(f"{name}() but in the select list of a query without FROM")


def _call(name: str, args: list[exp.Expression], columns: list[exp.Expression]) -> AdvisoryCall:
    function = FUNCTIONS[name]
    allowed = (0,) if function.action == "release_all" else (1, 2)
    if len(args) not in allowed:
        raise SqlError(
            "42883",
            f"function {name} with {len(args)} arguments does not exist",
            hint="No function matches the given name and argument types. "
            "You might need to add explicit type casts.",
        )
    kind = "bigint" if len(args) == 1 else "integer"
    return AdvisoryCall(name, function, tuple(_argument(arg, kind, columns) for arg in args))


def _argument(node: exp.Expression, kind: str, columns: list[exp.Expression]) -> AdvisoryArgument:
    inner = node
    while isinstance(inner, exp.Paren) or (
        isinstance(inner, exp.Cast) and inner.to.is_type("bigint", "int") and _hash_of(inner.this)
    ):
        inner = inner.this
    hash_name = _hash_of(inner)
    at = len(columns)
    if not hash_name:
        columns.append(exp.cast(node, kind))
        return AdvisoryArgument(at)
    call = _unwrapped(inner)
    wanted = 1 if hash_name == "hashtext" else 2
    if len(call.expressions) != wanted:
        raise SqlError("42883", f"function {hash_name} with such arguments does not exist")
    seed = 0
    if wanted == 2:
        try:
            seed = int(call.expressions[1].sql())
        except ValueError:
            raise unsupported("hashtextextended() with a seed that is not constant") from None
    columns.append(exp.cast(call.expressions[0], "text"))
    return AdvisoryArgument(at, hash_name, seed)


def _unwrapped(node: exp.Expression) -> exp.Expression:
    """A call without alias and schema."""
    if isinstance(node, exp.Alias):
        node = node.this
    if isinstance(node, exp.Dot) and node.this.name == "pg_catalog":
        node = node.args["expression"]
    return node


def _name_of(node: exp.Expression) -> str:
    call = _unwrapped(node)
    return str(call.this).lower() if isinstance(call, exp.Anonymous) else ""


def _function_of(node: exp.Expression) -> str:
    name = _name_of(node)
    return name if name in FUNCTIONS else ""


def _hash_of(node: exp.Expression) -> str:
    name = _name_of(node)
    return name if name in _HASHES else ""
