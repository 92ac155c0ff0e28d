"""PostgreSQL's hash of text, which names advisory locks: `hashtext` and `hashtextextended`.

Bob Jenkins' lookup3 as in PostgreSQL 15's src/common/hashfn.c, on a little-endian machine.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = 0xFFFFFFFF
_GOLDEN: Final = 0x9E3779B9
_START: Final = 3_923_095


def hashtext(text: str) -> int:
    """hashtext(text), a signed 32-bit number."""
    _, low = _hash(text.encode(), 0)
    return low - (1 << 32) if low >> 31 else low


def hashtextextended(text: str, seed: int) -> int:
    """hashtextextended(text, seed), a signed 64-bit number."""
    high, low = _hash(text.encode(), seed & 0xFFFFFFFFFFFFFFFF)
    value = high << 32 | low
    return value - (1 << 64) if value >> 63 else value


def _rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (32 - bits)) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = (a - c & _MASK) ^ _rotate(c, bits)
        c = c + b & _MASK
        a, b, c = b, c, a
    return a, b, c


def _hash(data: bytes, seed: int) -> tuple[int, int]:
    a = b = c = _GOLDEN + len(data) + _START & _MASK
    if seed:
        a, b, c = _mix(a + (seed >> 32) & _MASK, b + (seed & _MASK) & _MASK, c)
    while len(data) >= 12:
        a = a + int.from_bytes(data[:4], "little") & _MASK
        b = b + int.from_bytes(data[4:8], "little") & _MASK
        c = c + int.from_bytes(data[8:12], "little") & _MASK
        a, b, c = _mix(a, b, c)
        data = data[12:]
    a = a + int.from_bytes(data[:4], "little") & _MASK
    b = b + int.from_bytes(data[4:8], "little") & _MASK
    c = c + (int.from_bytes(data[8:], "little") << 8) & _MASK  # its low byte is the length's
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotate(b, bits)) & _MASK
        a, b, c = b, c, a
    # Seven steps have turned the three by one place.
    return a, b
