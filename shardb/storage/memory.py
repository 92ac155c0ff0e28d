"""How a shard's memory budget is divided.

Memtables, frozen and active, of tablets and of transactions under way, take up to a part of it;
above that writers wait for flushes. The fragment engine and decompressed row groups have theirs.
What the kernel keeps of mapped segments is the kernel's: it gives it back when memory is short.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from shardb import limits

# Of glibc's mallopt: its number of an option, and the value.
MALLOC_OPTIONS: Final = (
    (-8, 2),  # M_ARENA_MAX: each arena keeps its own free memory
    (-3, 8 * limits.MIB),  # M_MMAP_THRESHOLD: else it grows with what is freed
    (-1, 16 * limits.MIB),  # M_TRIM_THRESHOLD
)


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


def tame_allocators() -> None:
    """Has freed memory go back to the system, where by default much of it stays with the process.

    Once, at its start. Smaller thresholds would cost more than they save: whoever gives memory back
    keeps all other threads from getting any, or a page of a mapped file.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for option, value in MALLOC_OPTIONS:
            mallopt(option, value)
    with contextlib.suppress(NotImplementedError):  # not every build of PyArrow has it
        pa.set_memory_pool(pa.jemalloc_memory_pool())
