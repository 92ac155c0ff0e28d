"""CRC-32C against the RFC's vectors, a bit-by-bit oracle and itself without the instruction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.crc32c import crc32c, crc32c_portable


def bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c_portable(data) == expected


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_equals_the_oracle_and_goes_on(first: bytes, second: bytes) -> None:
    assert crc32c(first) == crc32c_portable(first) == bit_by_bit(first)
    assert crc32c(second, crc32c(first)) == crc32c(first + second)
    assert crc32c_portable(second, crc32c_portable(first)) == crc32c(first + second)


def test_large_and_foreign_buffers() -> None:
    data = bytes(range(256)) * 1000
    assert crc32c(memoryview(data)) == crc32c(bytearray(data)) == crc32c_portable(data)
