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

M_TRIM_THRESHOLD: Final = -1  # of glibc's mallopt
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
CHUNKS_UNMAPPED: Final = 4  # a chunk may be twice as large as it should
SMALL_BUDGET_BYTES: Final = 512 * limits.MIB
SMALL_DECAY_MS: Final = 100  # of Arrow's freed pages; it keeps them for a second by default


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
    def transaction_bytes(self) -> int:
        """What one transaction keeps row by row; many rows of a statement go to memtables."""
        return min(limits.TXN_BUFFER_MAX_BYTES, self.total_bytes // 2)

    @property
    def engine_bytes(self) -> int:
        """The fragment engine's."""
        return self.total_bytes * 4 // 10

    @property
    def cache_bytes(self) -> int:
        """Decompressed columns and the marks of overwritten rows."""
        return self.total_bytes // 10

    @property
    def group_bytes(self) -> int:
        """A row group in the making; a flush and a merge have two of them each."""
        return min(limits.SEGMENT_GROUP_TARGET_BYTES, self.total_bytes // 32)

    @property
    def scan_rows(self) -> int:
        """A scan's batch, where rows have to be copied."""
        return min(limits.SCAN_BATCH_ROWS, self.total_bytes // (4 * limits.KIB))

    @property
    def batch_bytes(self) -> int:
        """A chunk of a scan: it is there about three times, as columns and as a message."""
        return min(limits.RPC_CHUNK_BYTES, self.total_bytes // 256)


def tame_allocators(budget: MemoryBudget) -> None:
    """Has freed memory go back to the system, where by default much of it stays with the process.

    Once, at its start. How much stays goes by the budget, as less costs more: whoever gives memory
    back keeps all other threads from getting any, or a page of a mapped file.
    """
    total = budget.total_bytes
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)  # each arena keeps its own free memory
        # By default it grows with what is freed. Chunks of scans have to stay below it: a mapping
        # and its page faults for each would take several times as long as the scan.
        mallopt(M_MMAP_THRESHOLD, min(8 * limits.MIB, CHUNKS_UNMAPPED * budget.batch_bytes))
        mallopt(M_TRIM_THRESHOLD, min(16 * limits.MIB, total // 32))
    with contextlib.suppress(NotImplementedError):  # not every build of PyArrow has it
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        if total < SMALL_BUDGET_BYTES:
            pa.jemalloc_set_decay_ms(SMALL_DECAY_MS)
