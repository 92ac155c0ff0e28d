from typing import final

from typing_extensions import Buffer

BITS_PER_KEY: int

@final
class BloomBuilder:
    """Collects the hashes of keys, 8 bytes a key; one thread at a time."""

    def add(self, rows: int, offsets: Buffer, values: Buffer | None) -> None:
        """The keys of a binary column; equal ones that follow one another count once."""

    def build(self) -> bytes:
        """The filter over all keys; empty if there were none."""

def key_hash(key: bytes) -> int: ...
def may_have(bloom: bytes, key: bytes) -> bool:
    """False: the key was certainly not added."""

def first_missing(bloom: bytes, rows: int, offsets: Buffer, values: Buffer | None) -> int:
    """The first row of a binary column whose key the filter denies; -1 if it has them all."""
