"""Segments read back: every row at every timestamp, and damage is told, never answered from."""

from __future__ import annotations

import random
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shardb._core.coreerror import CoreError
from shardb._core.rowcodec import RowLayout
from shardb._core.segment import Segment
from shardb.env import SystemFiles
from shardb.errors import StorageError
from shardb.storage.jobs import open_segment, segment_path
from shardb.storage.segmentformat import SegmentMeta
from shardb.storage.segmentwriter import segment_schema
from shardb.types import TypeCode
from tests.unit.test_rowcodec import CODES, VALUES
from tests.unit.test_segmentwriter import (
    CODECS,
    Row,
    batch_of,
    columns_of,
    read_index,
    write_segment,
)

TS_MAX = 2**64 - 1
DIRECTORY = "/data/segments"
# Many keys share a prefix of eight bytes or more, and differ in trailing zeros only.
TAILS = st.lists(st.sampled_from([0, 1, 97, 255]), max_size=3).map(bytes)
KEYS = st.builds(
    bytes.__add__, st.sampled_from([b"", b"1234567", b"12345678", b"123456789"]), TAILS
)


class Mapped:
    """A disk with one file, that only maps."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def map(self, path: str) -> pa.Buffer:
        return pa.py_buffer(self.data)


def opened(meta: SegmentMeta, data: bytes) -> Segment:
    files: Any = Mapped(data)
    return open_segment(files, DIRECTORY, meta)


@st.composite
def segments(draw: st.DrawFn, codes: list[TypeCode] | None = None) -> Any:
    """Column types and row groups."""
    if codes is None:
        codes = draw(st.lists(st.sampled_from(CODES), max_size=5))
    values = st.tuples(*(st.none() | VALUES[code] for code in codes))
    stamps = st.integers(1, 20) | st.integers(1, TS_MAX)
    versions = draw(st.sets(st.tuples(KEYS, stamps), min_size=1, max_size=16))
    rows: list[Row] = []
    for key, ts in sorted(versions, key=lambda version: (version[0], -version[1])):
        deleted = draw(st.sampled_from([False, False, True]))
        rows.append((key, ts, deleted, (None,) * len(codes) if deleted else draw(values)))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=4)) - {len(rows)})
    return codes, [rows[a:b] for a, b in pairwise([0, *cuts, len(rows)])]


def check_rows(segment: Segment, codes: list[TypeCode], groups: list[list[Row]]) -> None:
    """`get`, `position` and `array` answer as the list of rows does."""
    rows = [row for group in groups for row in group]
    keys = [row[0] for row in rows]
    layout = RowLayout(5, [(int(code), -1) for code in codes])
    link = segment.link_ts
    near = {near for key in keys for near in (key, key + b"\0", key[:-1], key + b"z", b"")}
    for key in near:
        assert segment.position(key) == bisect_left(keys, key)
        versions = [
            (link or ts, None if deleted else layout.encode(values))
            for of, ts, deleted, values in rows
            if of == key
        ]
        for at in {0, 1, 10, TS_MAX, link, *(ts for ts, _ in versions)}:
            visible = [(row, ts) for ts, row in versions if ts <= at]
            assert segment.get(key, at) == (visible[0] if visible else None)
    assert (segment.rows, segment.groups, segment.columns) == (
        len(rows),
        len(groups),
        3 + len(codes),
    )
    schema = segment_schema(columns_of(codes))
    for number, group in enumerate(groups):
        linked = [(key, link or ts, deleted, values) for key, ts, deleted, values in group]
        for column, expected in enumerate(batch_of(schema, codes, linked).columns):
            array = segment.array(number, column, expected.type)
            array.validate(full=True)
            assert array.equals(expected) and array.null_count == expected.null_count


@settings(max_examples=200)
@given(segments(), st.sampled_from(CODECS), st.sampled_from([0, 7, 2**63]))
def test_rows_come_back(case: Any, codec: str, link_ts: int) -> None:
    codes, groups = case
    meta, data = write_segment(codes, groups, codec)
    segment = opened(replace(meta, link_ts=link_ts), data)
    for _ in range(2):
        check_rows(segment, codes, groups)
        assert bool(segment.held_bytes) == bool(codec)
        segment.trim()
        assert segment.held_bytes == 0


@pytest.mark.parametrize("code", CODES)
def test_every_type_comes_back(code: TypeCode) -> None:
    @settings(max_examples=20)
    @given(segments([code]), st.sampled_from(CODECS))
    def run(case: Any, codec: str) -> None:
        codes, groups = case
        check_rows(opened(*write_segment(codes, groups, codec)), codes, groups)

    run()


@pytest.mark.parametrize("codec", CODECS)
def test_large_groups_come_back(codec: str) -> None:
    rng = random.Random(1)
    rows: list[Row] = [
        (
            b"%08d" % (n // 3 * 2),
            10 - n % 3,
            n % 7 == 0,
            (None, None) if n % 7 == 0 else (n, "x" * n),
        )
        for n in range(600)
    ]
    codes = [TypeCode.INT8, TypeCode.TEXT]
    cuts = [0, *sorted(rng.sample(range(1, 600), 8)), 600]
    groups = [rows[a:b] for a, b in pairwise(cuts)]
    check_rows(opened(*write_segment(codes, groups, codec)), codes, groups)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([b"\0\1", b"\xfe\xff", b"\0a\xff"]))
def test_keys_are_found_among_many_that_begin_alike(rng: random.Random, letters: bytes) -> None:
    shared = bytes(rng.choices(letters, k=rng.randrange(12)))

    def some_key() -> bytes:
        middle = letters[-1:] * 8 if rng.random() < 0.5 else b""
        return shared + middle + bytes(rng.choices(letters, k=rng.randrange(12)))

    keys = sorted(some_key() for _ in range(rng.randrange(1, 300)))
    rows: list[Row] = [(key, len(keys) - n, False, ()) for n, key in enumerate(keys)]
    cuts = sorted({0, len(keys), *(rng.randrange(len(keys)) for _ in range(rng.randrange(3)))})
    segment = opened(*write_segment([], [rows[a:b] for a, b in pairwise(cuts)]))
    others = [some_key() for _ in range(100)] + [shared[:-1], shared, shared + b"\xff" * 20, b""]
    for key in {*keys, *others, *(key + b"\0" for key in keys)}:
        assert segment.position(key) == bisect_left(keys, key)


def test_threads_may_load_the_same_column() -> None:
    rows: list[Row] = [(b"%06d" % n, 1, False, (f"text {n}",)) for n in range(20_000)]
    groups = [rows[:10_000], rows[10_000:]]
    meta, data = write_segment([TypeCode.TEXT], groups, "zstd")
    layout = RowLayout(5, [(int(TypeCode.TEXT), -1)])
    segment = opened(meta, data)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            segment.trim()
            found = list(pool.map(lambda n: segment.get(b"%06d" % n, 1), range(0, 20_000, 997)))
            assert found == [(layout.encode([f"text {n}"]), 1) for n in range(0, 20_000, 997)]


@settings(max_examples=30)
@given(segments([TypeCode.INT4, TypeCode.TEXT]), st.sampled_from(CODECS), st.integers(0, 20))
def test_the_example_in_the_docs_gives_what_a_snapshot_sees(case: Any, codec: str, ts: int) -> None:
    page = Path("docs/formats/segment.md").read_text()
    _, _, rest = page.partition("```python\n")
    example, _, _ = rest.partition("```")
    codes, groups = case
    meta, data = write_segment(codes, groups, codec)
    segment = opened(meta, data)
    layout = RowLayout(5, [(int(code), -1) for code in codes])
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        file.write(data)
        file.flush()
        names: dict[str, Any] = {"path": file.name, "ts": ts}
        exec(example, names)
        rows = [tuple(row.values()) for row in names["rows"].to_pylist()]
    keys = sorted({row[0] for group in groups for row in group})
    visible = [segment.get(key, ts) for key in keys]
    assert rows == [layout.decode(found[0]) for found in visible if found and found[0] is not None]


# --- damage

CASE: tuple[list[TypeCode], list[list[Row]]] = (
    [TypeCode.INT4, TypeCode.TEXT, TypeCode.BOOL, TypeCode.NUMERIC, TypeCode.INTERVAL],
    [
        [
            (b"a", 5, False, (1, "one " * 20, True, None, (1, 2, 3))),
            (b"a", 3, True, (None,) * 5),
            (b"b", 4, False, (None, "", None, 12, None)),
        ],
        [(b"b", 2, False, (3, "three " * 20, False, 7, (0, 0, 0))), (b"c", 9, True, (None,) * 5)],
    ],
)


def outcomes(segment: Segment) -> Iterator[object]:
    """All that a reader can ask, one by one; what is damaged as its error."""
    schema = segment_schema(columns_of(CASE[0]))

    def told(ask: Callable[[], object]) -> object:
        try:
            return ask()
        except CoreError as error:
            assert error.sqlstate == "XX001", error
            assert segment_path(DIRECTORY, 9) in error.message
            return error

    for group in range(segment.groups):
        for column, kind in enumerate(schema.types):
            yield told(lambda g=group, c=column, k=kind: segment.array(g, c, k).to_pylist())
    for key in (b"", b"a", b"b", b"c", b"d"):
        yield told(lambda key=key: segment.position(key))
        for ts in (2, 3, 4, TS_MAX):
            yield told(lambda key=key, ts=ts: segment.get(key, ts))


@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_byte_is_told_or_does_not_matter(codec: str) -> None:
    meta, data = write_segment(*CASE, codec)
    expected = list(outcomes(opened(meta, data)))
    index = read_index(meta, data)
    covered = {
        at
        for group in index.groups
        for chunk in group.chunks
        for start, size in (
            (chunk.validity_at, chunk.validity_bytes),
            (chunk.offsets_at, chunk.offsets_bytes),
            (chunk.values_at, chunk.values_bytes),
        )
        for at in range(start, start + size)
    }
    checked_first = {
        *range(meta.index_at, meta.index_at + meta.index_bytes),
        *range(index.bloom_at, index.bloom_at + index.bloom_bytes),
    }
    rng = random.Random(7)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        if at in checked_first:
            with pytest.raises(StorageError, match=f"{DIRECTORY}/00000009.arrow") as caught:
                opened(meta, bytes(damaged))
            assert caught.value.sqlstate == "XX001"
            continue
        found = list(outcomes(opened(meta, bytes(damaged))))
        errors = sum(isinstance(outcome, CoreError) for outcome in found)
        for outcome, before in zip(found, expected, strict=True):
            assert isinstance(outcome, CoreError) or outcome == before
        # A compressed frame has bits that do not matter.
        assert not errors if at not in covered else errors or codec, f"offset {at}"


@pytest.mark.parametrize("codec", CODECS[1:])
def test_wild_lengths_in_a_compressed_file_take_no_memory(codec: str) -> None:
    meta, data = write_segment(*CASE, codec)
    for group in read_index(meta, data).groups:
        for chunk in group.chunks:
            at = chunk.values_at
            for wild in (
                b"\xff" * 7 + b"\x7f",
                b"\xfe" + b"\xff" * 7,
                bytes(8),
                b"\0" * 6 + b"\1\0",
            ):
                damaged = data[:at] + wild + data[at + 8 :]
                found = list(outcomes(opened(meta, damaged)))
                assert any(isinstance(one, CoreError) for one in found) or not chunk.values_bytes


@pytest.mark.parametrize("codec", CODECS)
def test_a_cut_file_is_told(codec: str, tmp_path: Path) -> None:
    meta, data = write_segment(*CASE, codec)
    files = SystemFiles(None)  # type: ignore[arg-type]
    path = tmp_path / "00000009.arrow"
    for size in {0, 1, 8, len(data) - 1, len(data) + 1, *range(0, len(data), 97)}:
        path.write_bytes((data + b"\0")[:size])
        with pytest.raises(StorageError, match=f"{path} has {size} bytes, not") as caught:
            open_segment(files, str(tmp_path), meta)
        assert caught.value.sqlstate == "XX001"
    path.unlink()
    with pytest.raises(StorageError, match=f"could not open segment {path}") as caught:
        open_segment(files, str(tmp_path), meta)
    assert caught.value.sqlstate == "58030"


def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardb.storage.segmentwriter.VERSION", 2)
    with pytest.raises(StorageError, match="has format 2, this shardb reads up to 1") as caught:
        opened(*write_segment(*CASE))
    assert caught.value.sqlstate == "0A000"
