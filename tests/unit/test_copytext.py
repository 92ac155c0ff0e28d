"""COPY text and CSV to rows, against PostgreSQL's documented rules."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.copytext import CopyReader
from shardb._core.coreerror import CoreError
from shardb._core.frames import split_items
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb._core.rowdeal import RowDealer
from shardb.types import TypeCode

LAYOUT = RowLayout(1, [(TypeCode.INT4, -1), (TypeCode.TEXT, -1), (TypeCode.INT8, -1)])
CODEC = KeyCodec([(TypeCode.INT4, -1, False, True)])
NAMES = ["a", "b", "c"]


def reader(batch_bytes: int = 1 << 20, **options: Any) -> tuple[CopyReader, RowDealer]:
    options.setdefault("columns", (0, 1))
    options.setdefault("not_null", (0,))
    defaults = LAYOUT.encode((None, None, 7))
    dealer = RowDealer(LAYOUT, CODEC, (0,), (b"",), 8192, 1 << 20, batch_bytes, 1 << 20)
    return CopyReader(dealer, "t", NAMES, defaults=defaults, **options), dealer


def rows_of(dealer: RowDealer) -> list[tuple[object, ...]]:
    dealt = dealer.take(True)
    assert len(dealt) <= 1
    return [
        LAYOUT.decode(row) for _, count, _, rows in dealt for row in split_items(bytes(rows), count)
    ]


def read(data: bytes, step: int = 0, **options: Any) -> list[tuple[object, ...]]:
    copy, dealer = reader(**options)
    for at in range(0, len(data), step or len(data) or 1):
        assert copy.feed([data[at : at + (step or len(data))]])
    assert copy.feed([], final=True)
    return rows_of(dealer)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7])
def test_text(step: int) -> None:
    data = b"1\tone\n2\t\\N\n3\ta\\tb\\\\\\x41\\101\n4\tx\\\ny\r\n5\tlast"
    assert read(data, step) == [
        (1, "one", 7),
        (2, None, 7),
        (3, "a\tb\\AA", 7),
        (4, "x\ny", 7),
        (5, "last", 7),
    ]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7])
def test_csv(step: int) -> None:
    data = b'a,b\n1,one\n2,\n3,""\n4,"x ""y"", z\nw"\r\n5,q"u"o'
    options = {"csv": True, "delimiter": b",", "null": b"", "header": 1}
    assert read(data, step, **options) == [
        (1, "one", 7),
        (2, None, 7),
        (3, "", 7),
        (4, 'x "y", z\nw', 7),
        (5, "quo", 7),
    ]


def test_end_marker_ends_the_data() -> None:
    assert read(b"1\tx\n\\.\nrubbish\n") == [(1, "x", 7)]


def test_rowid_counts_up() -> None:
    copy, dealer = reader(columns=(0, 1), rowid=2, next_rowid=100)
    assert copy.feed([b"1\tx\n2", b"\ty\n"])
    assert rows_of(dealer) == [(1, "x", 100), (2, "y", 101)]
    assert copy.next_rowid == 102


def test_a_full_batch_leaves_lines_for_the_next_feed() -> None:
    copy, dealer = reader(batch_bytes=1)
    assert not copy.feed([b"1\tx\n2\ty\n3"])
    assert rows_of(dealer) == [(1, "x", 7)]
    assert not copy.feed([])
    assert rows_of(dealer) == [(2, "y", 7)]
    assert copy.feed([])
    assert rows_of(dealer) == []
    assert not copy.feed([b"\tz"], final=True)
    assert rows_of(dealer) == [(3, "z", 7)]
    assert copy.feed([], final=True)


@pytest.mark.parametrize(
    ("data", "sqlstate", "message", "where"),
    [
        (b"1\tx\n2\n", "22P04", 'missing data for column "b"', 'COPY t, line 2: "2"'),
        (
            b"1\tx\ty\n",
            "22P04",
            "extra data after last expected column",
            'COPY t, line 1: "1\tx\ty"',
        ),
        (
            b"1\tx\nz\ty\n",
            "22P02",
            'invalid input syntax for type integer: "z"',
            'COPY t, line 2, column a: "z"',
        ),
        (
            b"\\N\tx\n",
            "23502",
            'null value in column "a" of relation "t" violates not-null constraint',
            'COPY t, line 1: "\\N\tx"',
        ),
        (b"1\ta\\\nb\n2\t\xff\n", "22021", None, 'COPY t, line 3, column b: "\ufffd"'),
        (b"1\ta\rb\n", "22P04", "literal carriage return found in data", 'COPY t, line 1: "1\ta"'),
    ],
)
def test_errors(data: bytes, sqlstate: str, message: str | None, where: str) -> None:
    with pytest.raises(CoreError) as caught:
        read(data)
    assert caught.value.sqlstate == sqlstate
    assert message is None or caught.value.message == message
    assert caught.value.where == where  # type: ignore[attr-defined]


def test_a_null_shows_its_row() -> None:
    with pytest.raises(CoreError) as caught:
        read(b"1\ta\n2\t\\N\n", not_null=(0, 1))
    assert caught.value.detail == "Failing row contains (2, null, 7)."
    with pytest.raises(CoreError) as caught:
        read(b"\\N\t" + b"x" * 70 + b"\n", rowid=2)
    assert caught.value.detail == f"Failing row contains (null, {'x' * 64}...)."


def test_unterminated_quote() -> None:
    with pytest.raises(CoreError) as caught:
        read(b'1,"x\n', csv=True, delimiter=b",", null=b"")
    assert (caught.value.sqlstate, caught.value.message) == (
        "22P04",
        "unterminated CSV quoted field",
    )


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
tables = st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.none() | texts), max_size=20)


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 40))
def test_text_round_trip(table: list[tuple[int, str | None]], step: int) -> None:
    escapes = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}

    def field(value: str | None) -> str:
        return "\\N" if value is None else "".join(escapes.get(c, c) for c in value)

    data = "".join(f"{key}\t{field(value)}\n" for key, value in table).encode()
    assert read(data, step) == [(key, value, 7) for key, value in table]


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 40))
def test_csv_round_trip(table: list[tuple[int, str | None]], step: int) -> None:
    out = io.StringIO()
    writer = csv.writer(
        out,
        lineterminator="\n",
        quoting=csv.QUOTE_NOTNULL if hasattr(csv, "QUOTE_NOTNULL") else csv.QUOTE_NONNUMERIC,
    )
    for key, value in table:
        if value is None:
            out.write(f"{key},\n")
        else:
            writer.writerow((key, value))
    data = out.getvalue().encode()
    found = read(data, step, csv=True, delimiter=b",", null=b"")
    assert found == [(key, value, 7) for key, value in table]
