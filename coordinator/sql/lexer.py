"""PostgreSQL's lexical structure (manual, 4.1): splitting query strings, reading utilities.

Queries are parsed by sqlglot; this lexer serves what sqlglot does not know as PostgreSQL has it:
statement boundaries, SET, COPY, DDL, and the token an error message names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from shardb.errors import SqlError
from shardb.limits import IDENTIFIER_MAX_BYTES

_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<block>/\*)
  | (?P<escape>[eE]'(?:[^'\\]|\\.|'')*')
  | (?P<bits>[bBxX]'[^']*')
  | (?P<unicode>[uU]&'(?:[^']|'')*')
  | (?P<string>'(?:[^']|'')*')
  | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][\w]*)?\$)
  | (?P<quoted>"(?:[^"]|"")*")
  | (?P<number>(?:\d+(?:_\d+)*(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<param>\$\d+)
  | (?P<word>[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*)
  | (?P<typecast>::)
  | (?P<operator>[-+*/<>=~!@\#%^&|`?]+)
  | (?P<punctuation>[()\[\],;:.])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Token:
    """kind: word, quoted, string, number, param, operator, punctuation, typecast or end.

    `value` is the meaning: folded word, unescaped identifier or string; `text` is what was written.
    """

    kind: str
    value: str
    text: str
    start: int
    end: int

    def is_word(self, *words: str) -> bool:
        """True if this is one of the (lower case) keywords, unquoted."""
        return self.kind == "word" and self.value in words


def tokenize(text: str) -> list[Token]:
    """All tokens of `text` and an `end` token, without comments and spaces; 42601 on trouble."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            _unterminated(text, at)
        kind = match.lastgroup or ""
        end = match.end()
        if kind == "block":
            at = _block_comment_end(text, at)
            continue
        if kind == "operator":
            end = _operator_end(match.group(), at)
        if kind == "dollar":
            end = text.find(match.group(), end)
            if end < 0:
                _unterminated(text, at)
            end += len(match.group())
            body = text[match.end() : end - len(match.group())]
            tokens.append(Token("string", body, text[at:end], at, end))
        elif kind != "space":
            tokens.append(_token(kind, text[at:end], at))
        at = end
    tokens.append(Token("end", "", "", len(text), len(text)))
    return tokens


def _token(kind: str, text: str, at: int) -> Token:
    value = text
    if kind == "word":
        value = fold_identifier(text)
    elif kind == "quoted":
        value = text[1:-1].replace('""', '"')
        if not value:
            raise SqlError("42601", "zero-length delimited identifier", position=at + 1)
    elif kind == "string":
        value = text[1:-1].replace("''", "'")
    elif kind == "escape":
        kind, value = "string", unescape(text[2:-1].replace("''", "'"))
    elif kind in ("bits", "unicode"):
        kind = "string"
    return Token(kind, value, text, at, at + len(text))


def fold_identifier(text: str) -> str:
    """An unquoted identifier as PostgreSQL folds and truncates it."""
    folded = text.lower()
    if len(folded) > IDENTIFIER_MAX_BYTES // 4:
        folded = folded.encode()[:IDENTIFIER_MAX_BYTES].decode(errors="ignore")
    return folded


def unescape(body: str) -> str:
    r"""The value of an E'...' string's body: \n, \x41, \101, \u0041 and the like."""

    def replace(match: re.Match[str]) -> str:
        code = match.group(1)
        if code[0] in "xuU" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0] in "01234567":
            return chr(int(code, 8))
        return _ESCAPES.get(code, code)

    pattern = r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)"
    return re.sub(pattern, replace, body, flags=re.DOTALL)


def _operator_end(text: str, at: int) -> int:
    # A comment ends an operator, and a multi-character one does not end in + or - unless it has
    # one of the characters that cannot be in standard operators (manual, 4.1.3).
    for mark in ("--", "/*"):
        found = text.find(mark)
        if found > 0:
            text = text[:found]
    while len(text) > 1 and text[-1] in "+-" and not set(text) & set("~!@#%^&|`?"):
        text = text[:-1]
    return at + len(text)


def _block_comment_end(text: str, at: int) -> int:
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(text, at):
        depth += 1 if match.group() == "/*" else -1
        if depth == 0:
            return match.end()
    raise SqlError("42601", f'unterminated /* comment at or near "{text[at:]}"', position=at + 1)


def _unterminated(text: str, at: int) -> NoReturn:
    what = {"'": "quoted string", '"': "quoted identifier", "$": "dollar-quoted string"}
    first = text[at]
    if text[at + 1 : at + 2] == "'" and first in "eExXbB":
        first = "'"
    if first in what and not (first == "$" and text.count("$", at) == 1):
        raise SqlError(
            "42601", f'unterminated {what[first]} at or near "{text[at:]}"', position=at + 1
        )
    raise SqlError("42601", f'syntax error at or near "{text[at]}"', position=at + 1)


def syntax_error(token: Token) -> SqlError:
    """PostgreSQL's message for a token that fits nowhere."""
    if token.kind == "end":
        return SqlError("42601", "syntax error at end of input", position=token.start + 1)
    return SqlError("42601", f'syntax error at or near "{token.text}"', position=token.start + 1)


class Cursor:
    """Reads tokens for the recursive-descent parsers of utility and DDL statements."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.at = 0

    @property
    def token(self) -> Token:
        """The token at hand."""
        return self.tokens[self.at]

    def peek(self, ahead: int = 1) -> Token:
        """A later token; the end token past the end."""
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def advance(self) -> Token:
        """Takes the token at hand."""
        token = self.token
        if token.kind != "end":
            self.at += 1
        return token

    def accept(self, *words: str) -> bool:
        """Takes these keywords, all of them in a row, if they come now."""
        if all(self.peek(i).is_word(word) for i, word in enumerate(words)):
            self.at += len(words)
            return True
        return False

    def accept_any(self, *words: str) -> str:
        """Takes one of the keywords and says which, or returns an empty string."""
        return self.advance().value if self.token.is_word(*words) else ""

    def expect(self, *words: str) -> None:
        """Takes these keywords in a row or raises a syntax error."""
        for word in words:
            if not self.token.is_word(word):
                raise syntax_error(self.token)
            self.at += 1

    def accept_mark(self, mark: str) -> bool:
        """Takes a punctuation mark or operator if it comes now."""
        if self.token.kind in ("punctuation", "operator") and self.token.text == mark:
            self.at += 1
            return True
        return False

    def expect_mark(self, mark: str) -> None:
        """Takes a punctuation mark or operator or raises a syntax error."""
        if not self.accept_mark(mark):
            raise syntax_error(self.token)

    def identifier(self) -> str:
        """Takes a name."""
        if self.token.kind not in ("word", "quoted"):
            raise syntax_error(self.token)
        return self.advance().value

    def integer(self) -> int:
        """Takes an unsigned integer literal."""
        if self.token.kind != "number" or not self.token.text.isdigit():
            raise syntax_error(self.token)
        return int(self.advance().text)

    def qualified_name(self) -> tuple[str, str]:
        """Takes `[schema.]name`; the schema is empty if not given."""
        name = self.identifier()
        if self.accept_mark("."):
            schema, name = name, self.identifier()
            if self.accept_mark("."):
                name, schema = self.identifier(), name
            return schema, name
        return "", name

    def finish(self) -> None:
        """Raises a syntax error unless everything has been read."""
        if self.token.kind != "end":
            raise syntax_error(self.token)

    def balanced(self, stops: tuple[str, ...], stop_words: tuple[str, ...] = ()) -> tuple[int, int]:
        """Skips tokens up to a stop mark or keyword outside parentheses; their text's bounds."""
        start = self.token.start
        end = start
        depth = 0
        while self.token.kind != "end":
            token = self.token
            if depth == 0 and (
                (token.kind == "punctuation" and token.text in stops) or token.is_word(*stop_words)
            ):
                break
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token.text, 0)
            end = token.end
            self.at += 1
        if end == start:
            raise syntax_error(self.token)
        return start, end
