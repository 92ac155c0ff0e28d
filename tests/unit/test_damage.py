"""Bytes from outside: whatever they are, they are read or refused, and nothing else.

Under `make asan` this is a fuzz of everything that parses; here it holds what the values read must
be like.
"""

from __future__ import annotations

from contextlib import suppress
from decimal import InvalidOperation
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.cast import cast_text
from shardb._core.copytext import CopyReader
from shardb._core.coreerror import CoreError
from shardb._core.datarow import DataRowWriter
from shardb._core.datum import binary_to_text, compare_text, text_to_binary, text_to_text
from shardb._core.fingerprint import fingerprint
from shardb._core.frames import FrameReader, split_items
from shardb._core.keycodec import KeyCodec
from shardb._core.memscan import scan_batches
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.rowdeal import RowDealer
from shardb._core.runs import Runs
from shardb.rpc import messages as m
from shardb.types import TypeCode, arrow_type
from tests.unit.test_rowcodec import CODES, ROWS

EXTREMES = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2**31 - 1, -(2**31), 2**53, -(2**62)])
WORDS = st.one_of(st.integers(-(2**63), 2**63 - 1), EXTREMES).map(
    lambda n: n.to_bytes(8, "big", signed=True)
)
BINARY = st.one_of(
    st.binary(max_size=24),
    WORDS,
    st.tuples(WORDS, WORDS).map(b"".join),
    WORDS.map(lambda word: word[4:]),
    WORDS.map(lambda word: word[6:]),
)
TEXT_PIECES = [
    "0", "1", "9", "12", "2024", "-", "+", ":", ".", " ", "/", "e", "T", "Z", "BC", "AD",
    "infinity", "now", "epoch", "mon", "day", "year", "hour", "P1Y", "99999999999999999999", "Jan",
    "PM", "NaN",
    "\\x", "\\", "{", "}", "[", "]", '"', ",", "null", "true", "\\u0000", "é", "\U0001f600", "t",
]  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(TEXT_PIECES), max_size=12).map("".join),
    st.text(max_size=20),
).map(str.encode)
TYPMODS = st.sampled_from([-1, 0, 3, 5, 6, 9, (38 << 16 | 38) + 4, (1 << 16 | 0) + 4, 12 << 16 | 6])
KNOWN = {"22", "42", "0A", "XX", "08", "54", "53"}  # classes of SQLSTATE


def attempt(function: Any, *arguments: Any) -> Any:
    """The function's result, or None if it refuses with an SQLSTATE."""
    try:
        return function(*arguments)
    except CoreError as error:
        assert error.sqlstate[:2] in KNOWN, error.sqlstate
        return None


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(CODES), TYPMODS, BINARY)
def test_binary_values(code: TypeCode, typmod: int, data: bytes) -> None:
    text = attempt(binary_to_text, code, typmod, data)
    if text is not None:
        again = text_to_binary(code, typmod, text)
        assert binary_to_text(code, typmod, again) == text


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(CODES), TYPMODS, TEXTS, TEXTS)
def test_text_values(code: TypeCode, typmod: int, left: bytes, right: bytes) -> None:
    found = attempt(text_to_text, code, typmod, left)
    if found is not None:
        assert text_to_text(code, typmod, found) == found
        assert compare_text(code, found, found) == 0
        attempt(compare_text, code, left, right)
    attempt(text_to_binary, code, typmod, left)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(CODES), st.sampled_from(CODES), TYPMODS, TEXTS, st.booleans())
def test_casts(
    source: TypeCode, target: TypeCode, typmod: int, text: bytes, explicit: bool
) -> None:
    found = attempt(cast_text, source, -1, text, target, typmod, explicit)
    if found is not None:
        text_to_text(target, -1, found)


@settings(max_examples=400, deadline=None)
@given(ROWS, st.data())
def test_rows_that_pass_the_check_are_read_everywhere(
    row: tuple[list[TypeCode], tuple[Any, ...]], data: st.DataObject
) -> None:
    codes, values = row
    layout = RowLayout(1, [(code, -1) for code in codes])
    damaged = bytearray(layout.encode(values))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    bad = bytes(damaged)
    if attempt(lambda: layout.check(bad) or True) is None:
        return
    with suppress(ValueError, OverflowError, InvalidOperation):
        attempt(layout.decode, bad)
    codec = KeyCodec([(code, -1, n % 2 == 0, True) for n, code in enumerate(codes)])
    key = attempt(codec.key_of_row, layout, tuple(range(len(codes))), bad)
    table = MemTable()
    table.put(key or b"k", bad, 1)
    kinds = [arrow_type(code) for code in codes]
    for batch in scan_batches(
        Runs(layout, [(False, [(table, None)])]), range(len(codes)), kinds, 1
    ):
        if codes:
            attempt(DataRowWriter([(code, -1) for code in codes]).encode, batch)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(CODES), min_size=1, max_size=3), st.booleans(), BINARY)
def test_keys(codes: list[TypeCode], desc: bool, data: bytes) -> None:
    codec = KeyCodec([(code, -1, desc, True) for code in codes])
    prefix = bytes(byte ^ 0xFF for byte in b"\1") if desc else b"\1"
    for key in (data, prefix + data):
        try:
            attempt(codec.decode, key)
        except (UnicodeDecodeError, InvalidOperation):
            continue


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 8), max_size=4),
    st.binary(max_size=80),
    st.integers(0, 100),
)
def test_frames(kinds: list[int], junk: bytes, limit: int) -> None:
    reader = FrameReader(m.Execute, m.TxnRef, m.Rows, limit)
    stream = b"".join(
        (len(junk) + 5).to_bytes(4, "little") + bytes([kind]) + b"\1\0\0\0" + junk for kind in kinds
    )
    for data in (stream, junk):
        try:
            reader.feed(data)
        except ValueError:
            break
    for count in (0, 1, len(junk)):
        try:
            assert len(split_items(junk, count)) == count
        except ValueError:
            continue


COPY_PIECES = [b"1", b"x", b"\t", b"\n", b"\r", b"\r\n", b"\\", b"\\N", b"\\.", b'"', b",", b"\xff"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(COPY_PIECES), max_size=30).map(b"".join),
    st.booleans(),
    st.integers(1, 9),
)
def test_copies_do_not_depend_on_how_the_data_is_cut(data: bytes, csv: bool, step: int) -> None:
    layout = RowLayout(1, [(TypeCode.INT4, -1), (TypeCode.TEXT, -1)])
    defaults = layout.encode((None, None))

    codec = KeyCodec([(TypeCode.INT4, -1, False, True)])

    def read(size: int) -> tuple[bytes, str]:
        dealer = RowDealer(layout, codec, (0,), (b"",), 8192, 1 << 20, 1 << 20, 1 << 20)
        copy = CopyReader(
            dealer, "t", ["a", "b"], (0, 1), (), defaults, csv=csv,
            delimiter=b"," if csv else b"\t", null=b"" if csv else b"\\N",
        )  # fmt: skip
        try:
            for at in range(0, len(data), size):
                assert copy.feed([data[at : at + size]])
            assert copy.feed([], final=True)
        except CoreError as error:
            return b"", error.sqlstate
        return b"".join(bytes(rows) for _, _, _, rows in dealer.take(True)), ""

    assert read(step) == read(len(data) or 1)


@settings(max_examples=400, deadline=None)
@given(st.one_of(TEXTS, st.binary(max_size=60)))
def test_statements(text: bytes) -> None:
    for prefix in (b"", b"select ", b"select '", b'select "', b"select $$", b"select /*", b"--"):
        found = fingerprint(prefix + text)
        assert found is None or len(found[1]) == len(found[2])


def test_the_earliest_timestamp_of_64_bits_has_a_text() -> None:
    codec = KeyCodec([(TypeCode.TIMESTAMP, -1, False, False)])
    [value] = codec.decode(bytes(7) + b"\5")
    assert str(value).endswith("19:59:05.224197 BC")


def test_arrow_of_damaged_utf8() -> None:
    layout = RowLayout(1, [(TypeCode.TEXT, -1)])
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    attempt(layout.encode_arrow, pa.record_batch([column], ["a"]))
