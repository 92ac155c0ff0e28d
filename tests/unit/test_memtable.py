"""The memtable against a dictionary of version lists, and its readers beside the writer."""

from __future__ import annotations

import struct
import threading
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.memload import put_framed, put_many
from shardb._core.memtable import TS_MAX, MemTable

KEYS = st.one_of(
    st.binary(min_size=0, max_size=3),
    st.integers(0, 40).map(lambda n: struct.pack(">Q", n)),
    st.tuples(st.sampled_from([b"same-prefix-", b"12345678"]), st.binary(max_size=2)).map(b"".join),
)
ROWS = st.one_of(st.none(), st.binary(max_size=20))
Versions = dict[bytes, list[tuple[int, bytes | None]]]


def visible(oracle: Versions, key: bytes, ts: int) -> tuple[bytes | None, int] | None:
    found = None
    for version_ts, row in oracle.get(key, []):
        if version_ts <= ts and (found is None or version_ts >= found[1]):
            found = (row, version_ts)
    return found


def rows_of(oracle: Versions, start: bytes, end: bytes, ts: int) -> list[tuple[bytes, bytes, int]]:
    found = []
    for key in sorted(oracle):
        seen = visible(oracle, key, ts)
        if key >= start and (not end or key < end) and seen and seen[0] is not None:
            found.append((key, seen[0], seen[1]))
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(KEYS, ROWS, st.integers(1, 12)), max_size=120),
    st.integers(0, 13),
    KEYS,
    KEYS,
)
def test_behaves_like_a_dictionary_of_versions(
    puts: list[tuple[bytes, bytes | None, int]], ts: int, start: bytes, end: bytes
) -> None:
    table = MemTable()
    oracle: Versions = {}
    for key, row, commit_ts in puts:
        table.put(key, row, commit_ts)
        oracle.setdefault(key, []).append((commit_ts, row))
    for key in [*oracle, b"absent", start]:
        assert table.get(key, ts) == visible(oracle, key, ts)
        assert table.newest(key) == visible(oracle, key, TS_MAX)
    expected = rows_of(oracle, start, end, ts)
    assert list(table.cursor(start, end, ts)) == expected
    assert list(table.cursor(start, end, ts, reverse=True)) == expected[::-1]
    assert list(table.cursor()) == rows_of(oracle, b"", b"", TS_MAX)
    assert table.entries == len(oracle)
    assert table.versions == len(puts)
    assert table.live == len(rows_of(oracle, b"", b"", TS_MAX))
    assert table.newest_ts == max((commit_ts for _, _, commit_ts in puts), default=0)


def test_versions_put_out_of_order_are_kept_newest_first() -> None:
    table = MemTable()
    for ts in (5, 1, 9, 3):
        table.put(b"k", b"at %d" % ts, ts)
    assert [ts for _, ts in table.versions_of(b"k")] == [9, 5, 3, 1]


@pytest.mark.parametrize("typecode", ["I", "Q"])
@pytest.mark.parametrize("step", [1, 7919])
def test_bulk_puts_equal_single_ones(typecode: str, step: int) -> None:
    count = 20_000
    keys = [struct.pack(">Q", i * step % count) for i in range(count)]
    rows = [b"row %d" % i for i in range(count)]
    offsets = array(typecode, range(0, 8 * count + 1, 8))
    row_offsets = array(typecode, [0])
    for row in rows:
        row_offsets.append(row_offsets[-1] + len(row))
    table = MemTable()
    put_many(table, b"".join(keys), offsets, b"".join(rows), row_offsets, 3)
    assert [(k, r) for k, r, _ in table.cursor()] == sorted(zip(keys, rows, strict=True))
    assert all(table.newest(key) == (row, 3) for key, row in zip(keys, rows, strict=True))
    put_many(table, b"".join(keys), offsets, None, None, 4)
    assert list(table.cursor()) == [] and table.live == 0
    assert len(list(table.cursor(ts=3))) == count


def framed(items: list[bytes]) -> bytes:
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def test_framed_puts_and_their_refusals() -> None:
    table = MemTable()
    keys, rows = [b"b", b"a"], [b"", b"row"]
    put_framed(table, framed(keys), framed(rows), 2, 1)
    assert list(table.cursor()) == [(b"a", b"row", 1), (b"b", b"", 1)]
    put_framed(table, framed([b"a"]), None, 1, 2)
    assert table.newest(b"a") == (None, 2)
    for bad_keys, bad_rows, count in [
        (framed(keys), framed(rows), 3),
        (framed(keys), framed(rows), 1),
        (framed(keys)[:-1], framed(rows), 2),
        (framed(keys), framed(rows) + b"x", 2),
        (b"\xff\xff\xff\xffa", framed([b""]), 1),
    ]:
        with pytest.raises(CoreError) as caught:
            put_framed(table, bad_keys, bad_rows, count, 5)
        assert caught.value.sqlstate == "XX001"
    assert table.newest_ts == 2


@pytest.mark.parametrize("typecode", ["I", "Q"])
def test_offsets_need_not_be_aligned(typecode: str) -> None:
    offsets = memoryview(b"x" + array(typecode, [0, 1, 3]).tobytes())[1:].cast(typecode)
    table = MemTable()
    put_many(table, b"abc", offsets, b"rst", offsets, 1)
    assert list(table.cursor()) == [(b"a", b"r", 1), (b"bc", b"st", 1)]


@pytest.mark.parametrize("offsets", [[0, 5], [3, 2], [0, 1, 1]])
def test_bad_offsets_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError):
        put_many(MemTable(), b"abc", array("I", offsets), b"r", array("I", [0, 1]), 1)


def test_rows_larger_than_a_chunk() -> None:
    table = MemTable()
    large = bytes(5_000_000)
    table.put(b"k", large, 1)
    table.put(b"l", b"small", 1)
    assert table.newest(b"k") == (large, 1)
    assert table.memory_bytes >= len(large)


def test_readers_see_sorted_whole_prefixes_while_the_writer_inserts() -> None:
    table = MemTable()
    batch, batches = 500, 60
    published = 0
    failures: list[str] = []

    def read() -> None:
        while published < batches:
            ts = published
            keys = [key for key, _, _ in table.cursor(ts=ts)]
            if keys != sorted(set(keys)) or len(keys) != ts * batch:
                failures.append(f"{len(keys)} keys at {ts}")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, batches + 1):
        keys = b"".join(struct.pack(">Q", (i * 7919) % 65_537 * 100 + number) for i in range(batch))
        put_many(
            table,
            keys,
            array("I", range(0, 8 * batch + 1, 8)),
            b"",
            array("I", [0] * (batch + 1)),
            number,
        )
        published = number
    for thread in threads:
        thread.join()
    assert failures == []


def test_bulk_puts_of_many_runs_keep_the_last_of_equal_keys() -> None:
    count, distinct = 150_000, 50_021
    keys = [struct.pack(">Q", i * 7919 % distinct) for i in range(count)]
    rows = [struct.pack("<I", i) for i in range(count)]
    table = MemTable()
    put_framed(table, framed(keys), framed(rows), count, 1)
    assert {key: row for key, row, _ in table.cursor()} == dict(zip(keys, rows, strict=True))
    assert (table.entries, table.live, table.versions) == (distinct, distinct, count)
