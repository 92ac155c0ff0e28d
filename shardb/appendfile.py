"""The operating system's append-only file: written and synced in the background, or at once.

Beside a busy loop a thread in C writes and syncs. To be woken, that thread and then the loop take
about as long as half a sync of a fast disk; a loop that has little else to do therefore syncs by
itself: nothing waits for it but what comes in that short time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from shardb._core.syncer import Syncer

JOIN_MAX_BYTES: Final = 256 * 1024  # many small parts are copied together up to this
ALONE_MAX_BYTES: Final = 64 * 1024  # longer ones are always the thread's
ALONE_BUSY_MAX: Final = 0.4  # the part of the loop's time that it may work for
ALONE_SYNC_MAX_NS: Final = 1_000_000  # how long a sync may take
BUSY_MEMORY: Final = 0.1  # the weight of the newest measurement


class SyncFailed(OSError):
    """Data was written but could not be made durable: nothing is known of the file any more."""


class ReaderLoop(Protocol):
    """What `SystemFiles` needs of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> object: ...

    def call_soon(self, callback: Callable[[], None], /) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object: ...


class Idleness:
    """Whether a loop has so little to do that it may wait for a sync itself.

    `now_ns` and `cpu_ns` are a clock and this thread's use of a processor.
    """

    def __init__(
        self,
        now_ns: Callable[[], int] = time.perf_counter_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._now_ns = now_ns
        self._cpu_ns = cpu_ns
        self._busy = 1.0
        self._sync_ns = 0.0
        self._begun_ns = now_ns()
        self._counted_cpu_ns = cpu_ns()

    def begin(self) -> bool:
        """A sync is due: True if the loop may wait for it. `end` follows when it is done."""
        now, cpu = self._now_ns(), self._cpu_ns()
        worked = cpu - self._counted_cpu_ns
        share = min(worked / max(now - self._begun_ns, 1), 1.0)
        self._busy += (share - self._busy) * BUSY_MEMORY
        self._begun_ns, self._counted_cpu_ns = now, cpu
        return self._busy < ALONE_BUSY_MAX and self._sync_ns < ALONE_SYNC_MAX_NS

    def end(self, alone: bool) -> None:
        """The sync is done, by the loop `alone` or not. After a slow one come some of the thread's.

        What the kernel took for a sync of the loop's is not the loop's work.
        """
        took = self._now_ns() - self._begun_ns
        if alone:
            self._counted_cpu_ns = self._cpu_ns()
        self._sync_ns = max(took, self._sync_ns + (took - self._sync_ns) * BUSY_MEMORY)


class SystemAppendFile:
    """A file descriptor, the offset to go on at, and a thread in C for the background."""

    def __init__(self, path: str, offset: int, loop: ReaderLoop) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = offset
        self._syncer = Syncer()
        self._loop = loop
        self._under_way: tuple[int, Callable[[OSError | None], None]] | None = None
        self._idleness = Idleness()
        self._result: tuple[int, int] | None = None  # of a sync that the loop waited for
        loop.add_reader(self._syncer.fileno(), self._ready)

    def append_durably(
        self, parts: Sequence[bytes], done: Callable[[OSError | None], None]
    ) -> None:
        assert self._under_way is None
        size = sum(map(len, parts))
        if size < JOIN_MAX_BYTES:
            parts = (b"".join(parts),)
        self._under_way = size, done
        if self._idleness.begin() and size <= ALONE_MAX_BYTES:
            self._result = self._syncer.run(self._fd, parts, self._end)
            self._idleness.end(alone=True)
            self._loop.call_soon(self._ready)
        else:
            self._syncer.submit(self._fd, parts, self._end)

    def wait(self) -> None:
        self._ready(wait=True)

    def _ready(self, wait: bool = False) -> None:
        result, self._result = self._result, None
        if result is None:
            result = self._syncer.take(wait and self._under_way is not None)
            if result is None:
                return
            self._idleness.end(alone=False)
        assert self._under_way is not None
        (size, done), self._under_way = self._under_way, None
        write_errno, sync_errno = result
        error: OSError | None = None
        if write_errno:
            error = OSError(write_errno, os.strerror(write_errno))
        elif sync_errno:
            error = SyncFailed(sync_errno, os.strerror(sync_errno))
        else:
            self._end += size
        done(error)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)
        self._end = size_bytes

    def close(self) -> None:
        assert self._under_way is None
        self._loop.remove_reader(self._syncer.fileno())
        self._syncer.close()
        os.close(self._fd)
