"""Query text to a sqlglot tree, with PostgreSQL's messages and positions for syntax errors."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import ErrorLevel, ParseError, TokenError

from coordinator.sql.lexer import Token, syntax_error, tokenize
from shardb.errors import SqlError
from shardb.limits import STATEMENT_DEPTH_MAX, STATEMENT_MAX_BYTES

QUERY_WORDS: Final = ("select", "values", "with", "table", "insert", "update", "delete")

_CLAUSES: Final = ("from", "where", "group", "having", "order", "limit", "offset", "union", "for")
_MASK: Final = "\ue000"
# Functions whose calls have a syntax of their own.
_CALL_SYNTAX: Final = frozenset(
    ("CAST", "EXTRACT", "OVERLAY", "POSITION", "STRING_AGG", "SUBSTRING", "TRIM")
)


class _Dialect(Postgres):
    """sqlglot's Postgres without its knowledge of functions: calls stay as they are written."""

    class Parser(Postgres.Parser):  # type: ignore[misc, valid-type]
        FUNCTIONS: ClassVar[dict[str, Any]] = {}
        FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {
            name: parser
            for name, parser in Postgres.Parser.FUNCTION_PARSERS.items()
            if name in _CALL_SYNTAX
        }
        PRIMARY_PARSERS: ClassVar[dict[Any, Any]] = {
            **Postgres.Parser.PRIMARY_PARSERS,
            # With their places, which sqlglot keeps for other literals only.
            TokenType.TRUE: lambda self, token: self.expression(exp.Boolean(this=True), token),
            TokenType.FALSE: lambda self, token: self.expression(exp.Boolean(this=False), token),
            TokenType.NULL: lambda self, token: self.expression(exp.Null(), token),
        }


def split(text: str) -> list[tuple[str, int]]:
    """The statements of a query string with their offsets; empty ones are left out."""
    if len(text) > STATEMENT_MAX_BYTES:
        raise SqlError("54000", f"statement is longer than {STATEMENT_MAX_BYTES} bytes")
    statements = []
    first: Token | None = None
    last: Token | None = None
    for token in tokenize(text):
        if token.kind == "end" or (token.kind == "punctuation" and token.text == ";"):
            if first is not None and last is not None:
                statements.append((text[first.start : last.end], first.start))
            first = last = None
        else:
            first = first or token
            last = token
    return statements


def parse_query(text: str, tokens: list[Token]) -> exp.Expression:
    """The tree of one SELECT, VALUES, INSERT, UPDATE or DELETE."""
    check_depth(tokens)
    masked = _mask_parameters(text, tokens)
    try:
        tree = sqlglot.parse_one(masked, dialect=_Dialect, error_level=ErrorLevel.IMMEDIATE)
    except ParseError as error:
        raise _translate(text, tokens, error) from None
    except TokenError:
        raise syntax_error(tokens[0]) from None
    except RecursionError:
        raise SqlError("54001", "stack depth limit exceeded") from None
    if isinstance(tree, (exp.Command, exp.Alias)) or not isinstance(tree, exp.Expression):
        raise syntax_error(tokens[0])
    for column in list(tree.find_all(exp.Column)) if masked is not text else ():
        name = column.name
        if name.startswith(_MASK):
            parameter = exp.Parameter(this=exp.Literal.number(name[1:]))
            parameter.meta.update(column.this.meta)
            column.replace(parameter)
    return tree


def _mask_parameters(text: str, tokens: list[Token]) -> str:
    """`text` with the `$` of parameters replaced: sqlglot takes `$1,$` for a dollar quote."""
    if _MASK in text:
        raise SqlError(
            "42601",
            "syntax error: the text has a private-use character",
            position=text.index(_MASK) + 1,
        )
    starts = [token.start for token in tokens if token.kind == "param"]
    if not starts:
        return text
    pieces = []
    at = 0
    for start in starts:
        pieces += [text[at:start], _MASK]
        at = start + 1
    return "".join([*pieces, text[at:]])


def parse_expression(text: str) -> exp.Expression:
    """The tree of a scalar expression on its own (column defaults, split points)."""
    tokens = tokenize(text)
    check_depth(tokens)
    tree = parse_query(f"SELECT {text}", tokenize(f"SELECT {text}"))
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or tree.args.get("from_"):
        raise syntax_error(tokens[0])
    found = tree.expressions[0]
    assert isinstance(found, exp.Expression)
    return found


def check_depth(tokens: list[Token]) -> None:
    """Refuses nesting that would exhaust the stack (54001)."""
    depth = 0
    for token in tokens:
        if token.text in ("(", "["):
            depth += 1
            if depth > STATEMENT_DEPTH_MAX:
                raise SqlError(
                    "54001",
                    "stack depth limit exceeded",
                    detail=f"Parentheses nest deeper than {STATEMENT_DEPTH_MAX}.",
                    position=token.start + 1,
                )
        elif token.text in (")", "]"):
            depth -= 1


def _translate(text: str, tokens: list[Token], error: ParseError) -> SqlError:
    details = error.errors[0] if error.errors else {}
    line, column = details.get("line"), details.get("col")
    if not isinstance(line, int) or not isinstance(column, int):
        return syntax_error(tokens[0])
    starts = [0]
    for at, char in enumerate(text):
        if char == "\n":
            starts.append(at + 1)
    offset = (starts[line - 1] if line <= len(starts) else 0) + column - 1
    reported = next(
        (at for at, token in enumerate(tokens) if token.start <= offset < token.end),
        len(tokens) - 1,
    )
    description = str(details.get("description", ""))
    # The parser blames the last token it took when something is missing after it.
    missing = description.startswith(("Expected", "Expecting", "Required"))
    named = " but got <Token" in description and "SENTINEL" not in description
    if missing and not named and not _closes(tokens, reported):
        reported = min(reported + 1, len(tokens) - 1)
    # `SELECT * frm t`: it takes frm for an alias, which a star cannot have.
    if (
        reported >= 3
        and tokens[reported - 1].kind == "word"
        and not tokens[reported - 1].is_word(*_CLAUSES)
        and tokens[reported - 2].text == "*"
        and (tokens[reported - 3].is_word("select") or tokens[reported - 3].text == ",")
    ):
        reported -= 1
    return syntax_error(tokens[reported])


def _closes(tokens: list[Token], at: int) -> bool:
    """True if the token at `at` cannot have been taken: it closes what was never opened."""
    depth = 0
    for token in tokens[: at + 1]:
        depth += {"(": 1, ")": -1}.get(token.text, 0)
    return depth < 0


def position_of(node: exp.Expression) -> int:
    """The 1-based position of a tree node in its text, 0 if the parser kept none."""
    for found in node.walk(bfs=True):
        if "start" in found.meta:
            own = found.meta["start"]
            break
    else:
        return 0
    if found is node or isinstance(node, (exp.Column, exp.Table, exp.Anonymous, exp.Func)):
        starts = [part.meta["start"] for part in node.walk() if "start" in part.meta]
        return int(min(starts) if isinstance(node, exp.Column) else own) + 1
    return int(own) + 1
