"""Records, fields and values of COPY data against plain Python that reads a character at a time."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardb._core.copytext import CopyReader
from shardb._core.coreerror import CoreError
from shardb._core.frames import split_items
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb._core.rowdeal import RowDealer
from shardb.types import TypeCode

WIDTH = 3
TEXTS = RowLayout(1, [(TypeCode.TEXT, -1)] * WIDTH)
NO_KEY = KeyCodec([])
Record = list[str | None]


class Bad(Exception):
    """The data is not well-formed."""


def reader(
    layout: RowLayout, batch_bytes: int = 1 << 20, **options: object
) -> tuple[CopyReader, RowDealer]:
    dealer = RowDealer(layout, NO_KEY, (), (b"",), 8192, 1 << 20, batch_bytes, 1 << 20)
    columns = range(len(layout.types))
    defaults = layout.encode([None] * len(layout.types))
    copy = CopyReader(
        dealer,
        "t",
        [f"c{at}" for at in columns],
        list(columns),
        (),
        defaults,
        **options,  # type: ignore[arg-type]
    )
    return copy, dealer


def read(copy: tuple[CopyReader, RowDealer], data: bytes, step: int) -> list[Record]:
    """The records that a reader gives, fed `step` bytes at a time; Bad if it refuses."""
    reading, dealer = copy
    found: list[Record] = []

    def take(everything: bool = False) -> None:
        for _, count, _, rows in dealer.take(everything):
            found.extend(list(TEXTS.decode(row)) for row in split_items(bytes(rows), count))

    try:
        for at in range(0, len(data), step):
            if not reading.feed([data[at : at + step]]):
                take()
        while not reading.feed([], True):
            take()
    except CoreError as error:
        raise Bad(error.message) from None
    take(True)
    return found


def csv_records(text: str) -> list[Record]:
    """CSV with commas and double quotes, an unquoted empty field being NULL."""
    records: list[Record] = []
    at = 0
    while at < len(text):
        begin = at
        fields: Record = []
        value, quoted, inside = "", False, False
        while True:
            c = text[at : at + 1]
            if inside:
                if not c:
                    raise Bad("unterminated CSV quoted field")
                if c == '"' and text[at + 1 : at + 2] == '"':
                    value += '"'
                    at += 1
                elif c == '"':
                    inside = False
                else:
                    value += c
            elif c == '"':
                inside = quoted = True
            elif c == "," or c in ("\n", "") or text[at : at + 2] in ("\r\n", "\r"):
                fields.append(value if value or quoted else None)
                value, quoted = "", False
                if c != ",":
                    break
            elif c == "\r":
                raise Bad("unquoted carriage return found in data")
            else:
                value += c
            at += 1
        if text[begin:at] == "\\.":
            return records
        at += 2 if text[at : at + 2] == "\r\n" else 1
        if len(fields) != WIDTH:
            raise Bad("missing or extra data")
        records.append(fields)
    return records


def outcome(work: object) -> object:
    """What a call gives; mistakes in the data are all the same."""
    try:
        return work()  # type: ignore[operator]
    except Bad:
        return Bad


pieces = st.sampled_from([",", '"', '""', "\n", "\r\n", "\r", "\\", ".", "a", "é", "long" * 20])
well_formed = st.lists(
    st.tuples(*[st.sampled_from(["", "x", "a b", '"q"', '"q,\n"', '"a""b"', "y" * 70])] * WIDTH)
)


@settings(max_examples=400, deadline=None)
@given(st.lists(pieces, max_size=24).map("".join), st.integers(1, 150))
@example(",,\r", 1)  # the last line's end may be half of one
def test_csv_of_any_kind(text: str, step: int) -> None:
    data = text.encode()
    copy = reader(TEXTS, csv=True, delimiter=b",", null=b"")
    found = outcome(lambda: read(copy, data, step))
    assert found == outcome(lambda: csv_records(text))


@settings(max_examples=200, deadline=None)
@given(well_formed, st.sampled_from(["\n", "\r\n"]), st.integers(1, 300), st.integers(1, 200))
def test_good_csv(rows: list[tuple[str, ...]], newline: str, step: int, batch_bytes: int) -> None:
    text = "".join(",".join(row) + newline for row in rows)
    copy = reader(TEXTS, batch_bytes, csv=True, delimiter=b",", null=b"")
    assert read(copy, text.encode(), step) == csv_records(text)
    assert copy[0].line == text.count("\n") if rows else copy[0].line == 0


INT2_MAX, INT4_MAX, INT8_MAX = (2 ** (bits - 1) - 1 for bits in (16, 32, 64))
forms = st.one_of(
    st.integers(-INT8_MAX - 2, INT8_MAX + 2).map(str),
    st.integers(-INT4_MAX - 2, INT4_MAX + 2).map(str),
    st.integers(-INT2_MAX - 2, INT2_MAX + 2).map(str),
    st.decimals(-(10**19), 10**19, places=3).map(lambda value: f"{value:f}"),
    st.decimals(-1000, 1000, places=2).map(lambda value: f"{value:f}"),
    st.floats(allow_nan=False).map(repr),
    st.dates().map(str),
    st.datetimes().map(lambda value: value.isoformat(" ", "seconds")),
    st.from_regex(r"[0-9]{4}-[0-3][0-9]-[0-3][0-9]", fullmatch=True),
    st.from_regex(r"2024-02-2[89] [0-2][0-9]:[0-6][0-9]:[0-6][0-9]", fullmatch=True),
    st.text("-+.:0123456789 eE", max_size=20),
    st.text("abé \t\x7f\x80", max_size=9),
    st.sampled_from(["t", "f", "true", "y", "-0", "-0.0", "00012", ".5", "5.", "1.2.3", "-"]),
)
TYPES = [
    (TypeCode.BOOL, -1),
    (TypeCode.INT2, -1),
    (TypeCode.INT4, -1),
    (TypeCode.INT8, -1),
    (TypeCode.FLOAT4, -1),
    (TypeCode.FLOAT8, -1),
    (TypeCode.NUMERIC, -1),
    (TypeCode.NUMERIC, (5 << 16 | 2) + 4),
    (TypeCode.NUMERIC, (38 << 16 | 30) + 4),
    (TypeCode.NUMERIC, (20 << 16 | 0) + 4),
    (TypeCode.DATE, -1),
    (TypeCode.TIMESTAMP, -1),
    (TypeCode.TIMESTAMP, 0),
    (TypeCode.TIMESTAMPTZ, -1),
    (TypeCode.TEXT, -1),
    (TypeCode.VARCHAR, -1),
    (TypeCode.VARCHAR, 4 + 5),
    (TypeCode.BPCHAR, 4 + 5),
    (TypeCode.BPCHAR, -1),
]


@pytest.mark.parametrize("type_and_typmod", TYPES)
@settings(max_examples=300, deadline=None)
@given(text=forms)
def test_values_are_read_as_everywhere_else(
    type_and_typmod: tuple[TypeCode, int], text: str
) -> None:
    layout = RowLayout(1, [type_and_typmod])
    copy, dealer = reader(layout, csv=True, delimiter=b",", null=b"NULL")

    def copied() -> object:
        assert copy.feed([b'"%b"\n' % text.encode()])
        (_, count, _, rows) = dealer.take(True)[0]
        return split_items(bytes(rows), count)

    results = []
    for work in (copied, lambda: [layout.encode_text([text.encode()])]):
        try:
            results.append(work())
        except CoreError as error:
            results.append((error.sqlstate, error.message))
    assert results[0] == results[1]
