"""Bloom filters: XXH64 and Parquet's split blocks, by a second implementation."""

from __future__ import annotations

import random
import struct
from functools import reduce

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.bloom import BITS_PER_KEY, BloomBuilder, first_missing, key_hash, may_have

MASK = 2**64 - 1
P1, P2, P3, P4, P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
SALT = (
    *(0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D),
    *(0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31),
)


def rotl(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & MASK


def xxh_round(acc: int, lane: int) -> int:
    return rotl((acc + lane * P2) & MASK, 31) * P1 & MASK


def xxh64(data: bytes) -> int:
    stripes = len(data) // 32
    if stripes:
        acc = [(P1 + P2) & MASK, P2, 0, -P1 & MASK]
        for lanes in struct.iter_unpack("<4Q", data[: 32 * stripes]):
            acc = [xxh_round(a, lane) for a, lane in zip(acc, lanes, strict=True)]
        h = sum(map(rotl, acc, (1, 7, 12, 18))) & MASK
        for a in acc:
            h = ((h ^ xxh_round(0, a)) * P1 + P4) & MASK
    else:
        h = P5
    h = (h + len(data)) & MASK
    rest = data[32 * stripes :]
    while len(rest) >= 8:
        (lane,) = struct.unpack_from("<Q", rest)
        h = (rotl(h ^ xxh_round(0, lane), 27) * P1 + P4) & MASK
        rest = rest[8:]
    if len(rest) >= 4:
        (word,) = struct.unpack_from("<I", rest)
        h = (rotl(h ^ (word * P1 & MASK), 23) * P2 + P3) & MASK
        rest = rest[4:]
    for byte in rest:
        h = rotl(h ^ (byte * P5 & MASK), 11) * P1 & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


def bits_of(key: bytes, blocks: int) -> list[int]:
    """The numbers of a key's bits in the filter."""
    h = xxh64(key)
    block = (h >> 32) * blocks >> 32
    return [
        256 * block + 32 * i + ((h & 0xFFFFFFFF) * salt % 2**32 >> 27)
        for i, salt in enumerate(SALT)
    ]


def build(keys: list[bytes]) -> bytes:
    builder = BloomBuilder()
    for start in range(0, len(keys), 1000):
        _, offsets, values = pa.array(keys[start : start + 1000], pa.binary()).buffers()
        builder.add(len(keys[start : start + 1000]), offsets, values)
    return builder.build()


@pytest.mark.parametrize(
    ("data", "expected"), [(b"", 0xEF46DB3751D8E999), (b"abc", 0x44BC2CF5AD770999)]
)
def test_published_values_of_the_hash(data: bytes, expected: int) -> None:
    assert key_hash(data) == xxh64(data) == expected


@given(st.binary(max_size=100))
def test_hash_of_any_key(key: bytes) -> None:
    assert key_hash(key) == xxh64(key)


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=200, unique=True))
def test_filter_has_the_bits_of_its_keys_and_no_others(keys: list[bytes]) -> None:
    bloom = build(keys)
    blocks = -(-len(keys) * BITS_PER_KEY // 256)
    assert len(bloom) == 32 * blocks
    expected = reduce(int.__or__, (1 << bit for key in keys for bit in bits_of(key, blocks)), 0)
    assert int.from_bytes(bloom, "little") == expected
    assert all(may_have(bloom, key) for key in keys)


def test_versions_of_a_key_count_once() -> None:
    assert build([b"a"] * 500 + [b"b"] * 500) == build([b"a", b"b"])


def test_no_keys_make_no_filter() -> None:
    assert BloomBuilder().build() == b""


def test_few_absent_keys_pass() -> None:
    keys = [random.Random(1).randbytes(8) + struct.pack(">I", n) for n in range(20_000)]
    bloom = build(keys)
    passed = sum(may_have(bloom, b"absent" + struct.pack(">I", n)) for n in range(20_000))
    assert passed < 20_000 * 0.02


def test_first_missing_names_the_row() -> None:
    keys = [b"key %d" % n for n in range(100)]
    _, offsets, values = pa.array([*keys, b"other"], pa.binary()).buffers()
    bloom = build(keys)
    assert first_missing(bloom, 100, offsets, values) == -1
    assert first_missing(bytes(len(bloom)), 100, offsets, values) == 0
    if not may_have(bloom, b"other"):
        assert first_missing(bloom, 101, offsets, values) == 100


def test_buffers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="offsets"):
        BloomBuilder().add(2, struct.pack("<3i", 0, 5, 3), b"abcde")
    with pytest.raises(ValueError, match="offsets"):
        BloomBuilder().add(2, struct.pack("<3i", 0, 1, 6), b"abcde")
    with pytest.raises(ValueError, match="31 bytes"):
        may_have(bytes(31), b"a")
