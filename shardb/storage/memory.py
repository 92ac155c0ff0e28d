"""How a shard's memory budget is divided.

Memtables, frozen and active, of tablets and of transactions under way, take up to a part of it;
above that writers wait for flushes. The fragment engine and decompressed row groups have theirs.
What the kernel keeps of mapped segments is the kernel's: it gives it back when memory is short.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardb import limits


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """`total_bytes` is for one shard process."""

    total_bytes: int = limits.MEMORY_DEFAULT_BYTES

    @property
    def memtables_bytes(self) -> int:
        """All memtables together; above it writers wait."""
        return self.total_bytes * 3 // 10

    @property
    def memtable_bytes(self) -> int:
        """One memtable, which is frozen above it: four can be under way at once."""
        return min(limits.MEMTABLE_MAX_BYTES, self.memtables_bytes // 4)

    @property
    def engine_bytes(self) -> int:
        """The fragment engine's."""
        return self.total_bytes * 4 // 10

    @property
    def cache_bytes(self) -> int:
        """Decompressed columns and the marks of overwritten rows."""
        return self.total_bytes // 10
