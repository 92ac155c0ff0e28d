"""Lifting literals: what is lifted, what is refused, and that substitution gives the text back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.fingerprint import fingerprint


@pytest.mark.parametrize(
    ("text", "body", "kinds", "literals"),
    [
        ("SELECT a FROM t WHERE k = 5;", "SELECT a FROM t WHERE k = $1", "i", ["5"]),
        ("select 'it''s',x -- c\n from t", "select $1,x from t", "s", ["it's"]),
        ("select /* a /* b */ */ 2147483648", "select $1", "l", ["2147483648"]),
        ("select 9223372036854775808, 1e3, .5", "select $1, $2, $3", "nnn", None),
        ("update t set a = a + -3 where k=1", "update t set a = a + -$1 where k=$2", "ii", None),
        ("insert into t values (1, 'x')", "insert into t values ($1, $2)", "is", ["1", "x"]),
        ("select 'a'::date, x::int", "select $1::date, x::int", "s", ["a"]),
        ("select a from t order by a limit 3", "select a from t order by a limit $1", "i", ["3"]),
        ('select "a1" from t1', 'select "a1" from t1', "", []),
    ],
)
def test_lifted(text: str, body: str, kinds: str, literals: list[str] | None) -> None:
    found = fingerprint(text.encode())
    assert found is not None
    assert found[0].decode() == body
    assert found[1].decode() == kinds
    if literals is not None:
        assert [literal.decode() for literal in found[2]] == literals


@pytest.mark.parametrize(
    "text",
    [
        "select date '2020-01-01'",
        "select interval '1 day'",
        "select timestamp '2020-01-01'",
        "select a from t order by 1",
        "select a, count(*) from t group by 1",
        "select x::varchar(3) from t",
        "select cast(x as numeric(10,2))",
        "select E'a\\n'",
        "select X'ff'",
        "select $1",
        "select $$a$$",
        "select a[1]",
        "select 'a' 'b'",
        "select 'a'\n'b'",
        "select 1; select 2",
        "create table t (a int)",
        "begin",
        "",
        ";",
        "select 'unterminated",
        'select "unterminated',
        "select /* unterminated",
        "select 12abc",
        "select 0x1f",
        "select 1_000",
    ],
)
def test_refused(text: str) -> None:
    assert fingerprint(text.encode()) is None


pieces = st.sampled_from(
    [
        "select",
        "a",
        "where",
        "=",
        "(",
        ")",
        ",",
        "and",
        "in",
        "limit",
        "-",
        "||",
        " ",
        "\n",
        "t.a",
        "order by",
        "::int",
        "--c\n",
        "/*c*/",
    ]
)
literal = st.integers(0, 10**20).map(str) | st.text(
    st.characters(codec="ascii", min_codepoint=32), max_size=8
).map(lambda text: "'" + text.replace("'", "''") + "'")


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces | literal, max_size=12))
def test_substitution_gives_the_tokens_back(parts: list[str]) -> None:
    text = "select " + " ".join(parts)
    found = fingerprint(text.encode())
    if found is None:
        return
    body, kinds, literals = found
    assert len(kinds) == len(literals)

    def put_back(match: re.Match[str]) -> str:
        index = int(match.group(1)) - 1
        value = literals[index].decode()
        return "'" + value.replace("'", "''") + "'" if kinds[index] == ord("s") else value

    restored = re.sub(r"\$(\d+)", put_back, body.decode())
    # the same again, now without comments: a fixed point
    assert fingerprint(restored.encode()) == found


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_never_breaks(noise: bytes) -> None:
    fingerprint(noise)
    fingerprint(b"select " + noise)
