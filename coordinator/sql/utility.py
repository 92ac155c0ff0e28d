"""Parses what is not a query: transaction control, settings, COPY and the rest of the small ones.

The arguments of each kind of UtilityPlan:

begin, set_transaction (isolation or "", read_only or None) · commit, rollback (chain) ·
savepoint, release, rollback_to (name) · set (name, value or None for DEFAULT, is_local) ·
show (name) · reset (name, "" for all) · discard (what) · deallocate (name, "" for all) ·
prepare (name, type names, statement text) · execute (name, argument texts) ·
vacuum, analyze (table names) · create_table, drop_table, truncate, alter_table, add_primary_key,
copy_from (one value of `coordinator.ddl.specs`) · explain (plan, analyze) · empty ().
"""

from __future__ import annotations

from typing import Final

from coordinator.ddl.specs import CopyFrom, TableName
from coordinator.plan.plans import OutColumn, UtilityPlan
from coordinator.sql import alter_parser, ddl_parser
from coordinator.sql import typesystem as ts
from coordinator.sql.context import Context
from coordinator.sql.lexer import Cursor, Token, syntax_error
from shardb.errors import SqlError, unsupported

_LEVELS: Final = ("serializable", "repeatable read", "read committed", "read uncommitted")


def parse_utility(context: Context, tokens: list[Token]) -> UtilityPlan:
    """The plan of a statement that is not a query."""
    cursor = Cursor(context.text, tokens)
    word = cursor.token
    if word.kind != "word" or word.value not in _PARSERS:
        if word.value in _KNOWN and word.kind == "word":
            raise unsupported(word.value.upper())
        raise syntax_error(word)
    plan = _PARSERS[word.value](cursor, context)
    cursor.finish()
    return plan


def _begin(cursor: Cursor, context: Context) -> UtilityPlan:
    tag = "BEGIN"
    if cursor.accept("start"):
        cursor.expect("transaction")
        tag = "START TRANSACTION"
    else:
        cursor.expect("begin")
        cursor.accept_any("work", "transaction")
    return UtilityPlan("begin", _modes(cursor), tag)


def _modes(cursor: Cursor) -> tuple[str, bool | None]:
    isolation, read_only = "", None
    while cursor.token.kind != "end":
        if cursor.accept("isolation", "level"):
            isolation = cursor.identifier()
            if isolation in ("repeatable", "read"):
                isolation += " " + cursor.identifier()
            if isolation not in _LEVELS:
                raise syntax_error(cursor.peek(-1))
        elif cursor.accept("read", "only"):
            read_only = True
        elif cursor.accept("read", "write"):
            read_only = False
        elif not (cursor.accept("not", "deferrable") or cursor.accept("deferrable")):
            raise syntax_error(cursor.token)
        cursor.accept_mark(",")
    return isolation, read_only


def _end(cursor: Cursor, context: Context) -> UtilityPlan:
    word = cursor.advance().value
    kind = "rollback" if word in ("rollback", "abort") else "commit"
    cursor.accept_any("work", "transaction")
    if kind == "rollback" and cursor.accept("to"):
        cursor.accept("savepoint")
        return UtilityPlan("rollback_to", (cursor.identifier(),), "ROLLBACK")
    if cursor.token.is_word("prepared"):
        raise unsupported("two-phase commit by the client")
    chain = False
    if cursor.accept("and"):
        chain = not cursor.accept("no")
        cursor.expect("chain")
    return UtilityPlan(kind, (chain,), kind.upper())


def _savepoint(cursor: Cursor, context: Context) -> UtilityPlan:
    if cursor.advance().value == "release":
        cursor.accept("savepoint")
        return UtilityPlan("release", (cursor.identifier(),), "RELEASE")
    return UtilityPlan("savepoint", (cursor.identifier(),), "SAVEPOINT")


def _set(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("set")
    if cursor.accept("transaction"):
        return UtilityPlan("set_transaction", _modes(cursor), "SET")
    if cursor.accept("session", "characteristics", "as", "transaction"):
        isolation, read_only = _modes(cursor)
        value = isolation or ("on" if read_only else "off")
        name = "default_transaction_isolation" if isolation else "default_transaction_read_only"
        return UtilityPlan("set", (name, value, False), "SET")
    local = cursor.accept("local")
    if not local:
        cursor.accept("session")
    if cursor.accept("time", "zone"):
        name = "timezone"
    elif cursor.accept("names"):
        name = "client_encoding"
    else:
        name = cursor.identifier()
        while cursor.accept_mark("."):
            name += "." + cursor.identifier()
        if not cursor.accept_mark("=") and not cursor.accept("to"):
            raise syntax_error(cursor.token)
    return UtilityPlan("set", (name, _setting(cursor), local), "SET")


def _setting(cursor: Cursor) -> str | None:
    values: list[str] = []
    while True:
        token = cursor.token
        sign = "-" if cursor.accept_mark("-") else ""
        if not sign:
            cursor.accept_mark("+")
        token = cursor.token
        if token.kind not in ("word", "quoted", "string", "number"):
            raise syntax_error(token)
        if token.is_word("default") or token.is_word("local"):
            cursor.advance()
            return None
        values.append(sign + cursor.advance().value)
        if not cursor.accept_mark(","):
            return ", ".join(values)


def _show(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("show")
    if cursor.accept("transaction", "isolation", "level"):
        name = "transaction_isolation"
    elif cursor.accept("time", "zone"):
        name = "timezone"
    else:
        name = cursor.identifier()
        while cursor.accept_mark("."):
            name += "." + cursor.identifier()
    column = "TimeZone" if name == "timezone" else name
    columns: tuple[OutColumn, ...] = (OutColumn(column, ts.TEXT),)
    if name == "all":
        columns = tuple(OutColumn(n, ts.TEXT) for n in ("name", "setting", "description"))
    return UtilityPlan("show", (name,), "SHOW", columns)


def _reset(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("reset")
    if cursor.accept("time", "zone"):
        return UtilityPlan("reset", ("timezone",), "RESET")
    name = cursor.identifier()
    while cursor.accept_mark("."):
        name += "." + cursor.identifier()
    return UtilityPlan("reset", ("" if name == "all" else name,), "RESET")


def _discard(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("discard")
    what = cursor.accept_any("all", "plans", "sequences", "temp", "temporary")
    if not what:
        raise syntax_error(cursor.token)
    return UtilityPlan("discard", (what,), f"DISCARD {what.upper()}")


def _deallocate(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("deallocate")
    cursor.accept("prepare")
    if cursor.accept("all"):
        return UtilityPlan("deallocate", ("",), "DEALLOCATE ALL")
    return UtilityPlan("deallocate", (cursor.identifier(),), "DEALLOCATE")


def _prepare(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("prepare")
    if cursor.token.is_word("transaction"):
        raise unsupported("two-phase commit by the client")
    name = cursor.identifier()
    types: list[str] = []
    if cursor.accept_mark("("):
        while True:
            start, end = cursor.balanced((",", ")"))
            types.append(cursor.text[start:end].lower())
            if not cursor.accept_mark(","):
                break
        cursor.expect_mark(")")
    cursor.expect("as")
    start, end = cursor.balanced(())
    return UtilityPlan("prepare", (name, tuple(types), cursor.text[start:end]), "PREPARE")


def _execute(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("execute")
    name = cursor.identifier()
    values: list[str] = []
    if cursor.accept_mark("("):
        while True:
            start, end = cursor.balanced((",", ")"))
            values.append(cursor.text[start:end])
            if not cursor.accept_mark(","):
                break
        cursor.expect_mark(")")
    return UtilityPlan("execute", (name, tuple(values)), "EXECUTE")


def _maintenance(cursor: Cursor, context: Context) -> UtilityPlan:
    kind = cursor.advance().value
    if cursor.token.text == "(":
        cursor.advance()
        cursor.balanced((")",))
        cursor.expect_mark(")")
    while cursor.accept_any("full", "freeze", "verbose", "analyze"):
        pass
    names: list[TableName] = []
    while cursor.token.kind != "end":
        names.append(TableName(*cursor.qualified_name()))
        if cursor.accept_mark("("):
            cursor.balanced((")",))
            cursor.expect_mark(")")
        if not cursor.accept_mark(","):
            break
    for name in names:
        if context.catalog.lookup(name.name, name.schema) is None:
            raise SqlError("42P01", f'relation "{name}" does not exist')
    return UtilityPlan(kind, tuple(names), kind.upper())


_FLAGS: Final = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}


def _copy(cursor: Cursor, context: Context) -> UtilityPlan:
    cursor.expect("copy")
    if cursor.token.text == "(":
        raise unsupported("COPY TO")
    position = cursor.token.start + 1
    name = TableName(*cursor.qualified_name())
    table = context.catalog.lookup(name.name, name.schema)
    if table is None:
        raise SqlError("42P01", f'relation "{name}" does not exist', position=position)
    visible = {c.name: at for at, c in enumerate(table.columns) if not c.hidden}
    positions = list(visible.values())
    if cursor.accept_mark("("):
        positions = []
        while True:
            column = cursor.identifier()
            if column not in visible:
                raise SqlError("42703", f'column "{column}" of relation "{name}" does not exist')
            if visible[column] in positions:
                raise SqlError("42701", f'column "{column}" specified more than once')
            positions.append(visible[column])
            if not cursor.accept_mark(","):
                break
        cursor.expect_mark(")")
    if cursor.accept("to"):
        raise unsupported("COPY TO")
    cursor.expect("from")
    if not cursor.accept("stdin"):
        raise SqlError(
            "42501",
            "COPY from a file or program is not supported",
            hint="Use COPY FROM STDIN; psql's \\copy does that.",
        )
    cursor.accept("with")
    options = _copy_options(cursor) if cursor.accept_mark("(") else _copy_old_options(cursor)
    _check_copy(options)
    if cursor.token.is_word("where"):
        raise unsupported("COPY ... WHERE")
    return UtilityPlan("copy_from", (CopyFrom(table.id, tuple(positions), options),), "COPY {}")


def _copy_options(cursor: Cursor) -> dict[str, object]:
    options: dict[str, object] = {}
    while True:
        token = cursor.token
        name = cursor.identifier()
        if name in options:
            raise SqlError("42601", "conflicting or redundant options", position=token.start + 1)
        value: object = True
        if cursor.accept_mark("("):
            names = []
            while True:
                names.append(cursor.identifier())
                if not cursor.accept_mark(","):
                    break
            cursor.expect_mark(")")
            value = tuple(names)
        elif cursor.token.text == "*":
            cursor.advance()
            value = "*"
        elif cursor.token.kind in ("word", "quoted", "string", "number"):
            value = cursor.advance().value
        if name in ("header", "freeze"):
            value = _FLAGS.get(str(value).lower(), value)
        options[name] = value
        if not cursor.accept_mark(","):
            break
    cursor.expect_mark(")")
    return options


def _copy_old_options(cursor: Cursor) -> dict[str, object]:
    options: dict[str, object] = {}
    while cursor.token.kind != "end":
        name = cursor.identifier()
        if name in ("csv", "binary"):
            options["format"] = name
        elif name in ("freeze", "header"):
            options[name] = True
        elif name in ("delimiter", "null", "quote", "escape", "encoding"):
            cursor.accept("as")
            if cursor.token.kind != "string":
                raise syntax_error(cursor.token)
            options[name] = cursor.advance().value
        else:
            raise syntax_error(cursor.tokens[cursor.at - 1])
    return options


def _check_copy(options: dict[str, object]) -> None:
    known = {
        "format",
        "freeze",
        "delimiter",
        "null",
        "header",
        "quote",
        "escape",
        "force_null",
        "force_not_null",
        "encoding",
        "default",
        "on_error",
    }
    for name in options:
        if name not in known:
            raise SqlError("42601", f'option "{name}" not recognized')
    form = str(options.get("format", "text")).lower()
    if form not in ("text", "csv"):
        if form == "binary":
            raise unsupported("COPY in binary format")
        raise SqlError("22023", f'COPY format "{form}" not recognized')
    options["format"] = form
    delimiter = options.get("delimiter")
    if delimiter is not None and len(str(delimiter).encode()) != 1:
        raise SqlError("0A000", "COPY delimiter must be a single one-byte character")
    for name in ("quote", "escape"):
        if name in options and form != "csv":
            raise SqlError("0A000", f"COPY {name} available only in CSV mode")


_PARSERS: Final = {
    "begin": _begin,
    "start": _begin,
    "commit": _end,
    "end": _end,
    "rollback": _end,
    "abort": _end,
    "savepoint": _savepoint,
    "release": _savepoint,
    "set": _set,
    "show": _show,
    "reset": _reset,
    "discard": _discard,
    "deallocate": _deallocate,
    "prepare": _prepare,
    "execute": _execute,
    "vacuum": _maintenance,
    "analyze": _maintenance,
    "copy": _copy,
    "create": ddl_parser.parse_create,
    "drop": ddl_parser.parse_drop,
    "truncate": ddl_parser.parse_truncate,
    "alter": alter_parser.parse_alter,
}
_KNOWN: Final = frozenset(
    [
        "declare",
        "fetch",
        "move",
        "close",
        "listen",
        "notify",
        "unlisten",
        "lock",
        "grant",
        "revoke",
        "comment",
        "cluster",
        "reindex",
        "refresh",
        "checkpoint",
        "load",
        "call",
        "do",
        "merge",
        "reassign",
        "security",
        "import",
    ]
)
