"""What the world gives us: time, randomness and files, as protocols and as the system's own.

They arrive by constructor, so that the simulator can put its own in their place. A `Files` promises
what a disk promises: what was written is durable after `sync`, a created or renamed name after
`sync_directory`, and nothing before.
"""

from __future__ import annotations

import fcntl
import gc
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from shardb._core.syncer import Syncer
from shardb._core.zerofile import ZeroFile


class Clock(Protocol):
    """Time. No correctness may rest on clocks of different machines agreeing."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; may jump."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds that only grow and go on in suspend; comparable within this machine only."""
        ...


class Rng(Protocol):
    """Randomness for ids."""

    def token(self, size: int) -> bytes:
        """`size` random bytes."""
        ...


class SyncFailed(OSError):
    """Data was written but could not be made durable: nothing is known of the file any more."""


class AppendFile(Protocol):
    """An open file that is written on and on from some offset, by one thread."""

    def append_durably(
        self, parts: Sequence[bytes], done: Callable[[OSError | None], None]
    ) -> None:
        """Writes `parts` after the last and syncs, in the background; REQUIRES: nothing under way.

        `done` is called later on this thread: with None when all is durable, SyncFailed, or another
        OSError, after which any part of it may have been written.
        """
        ...

    def wait(self) -> None:
        """Waits for what is under way, calling its `done`."""
        ...

    def sync(self) -> None:
        """Makes everything in the file durable."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cuts the file; the next append goes there."""
        ...

    def close(self) -> None:
        """REQUIRES: nothing under way."""
        ...


class MakingFile(Protocol):
    """A file that is being made in the background."""

    def cancel(self) -> None:
        """Makes it end soon: with ECANCELED, unless it has ended already."""
        ...

    def wait(self) -> None:
        """Waits for its end, calling its `done`."""
        ...


class Files(Protocol):
    """A file system, paths as strings."""

    def make_directory(self, path: str) -> None:
        """Makes it and its parents, durably; fine if it exists."""
        ...

    def names(self, path: str) -> list[str]:
        """Names in a directory."""
        ...

    def exists(self, path: str) -> bool: ...

    def read(self, path: str, size_bytes: int = -1) -> bytes:
        """The file's first `size_bytes`, or all of it."""
        ...

    def remove(self, path: str) -> None:
        """Removes the file durably."""
        ...

    def write_new(self, path: str, data: bytes) -> None:
        """Creates or replaces the file in one durable step: all of `data` or the old state."""
        ...

    def make_zeroed(
        self, path: str, head: bytes, size_bytes: int, done: Callable[[OSError | None], None]
    ) -> MakingFile:
        """Starts making a file of `head` and then written zeros, in one durable step as above.

        `done` is called later on this thread; after an error, nothing of the file is left.
        """
        ...

    def open_append(self, path: str, offset: int) -> AppendFile:
        """Opens or creates the file; the first append goes to `offset`."""
        ...

    def lock(self, path: str) -> Lock | None:
        """Takes the file's exclusive lock until closed or the process ends; None if it is held."""
        ...

    def call_later(self, delay_ms: int, call: Callable[[], None]) -> None:
        """Runs `call` later on this thread: for writes that are in no hurry."""
        ...


class Lock(Protocol):
    def close(self) -> None: ...


RANDOM_POOL_BYTES: Final = 4096


def calm_garbage_collector() -> None:
    """Has a server's cycle collector pass over what it started with, and run rarely.

    Statements make no cycles: the default of one run per 700 new objects only costs time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


class SystemClock:
    """The kernel's clocks; CLOCK_BOOTTIME where there is one (it goes on in suspend)."""

    def __init__(self) -> None:
        self._clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.clock_gettime_ns(self._clock) // 1_000_000


class SystemRng:
    """The kernel's random bytes, fetched in bulk: a call of the system a token is too dear."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def token(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._pool):
            self._pool = os.urandom(max(size, RANDOM_POOL_BYTES))
            end = size
        token = self._pool[end - size : end]
        self._at = end
        return token


class ReaderLoop(Protocol):
    """What `SystemFiles` needs of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object: ...


NEW_SUFFIX = ".new"  # of a file's name until it is whole
JOIN_MAX_BYTES = 256 * 1024  # many small parts are copied together up to this


class SystemAppendFile:
    """A file descriptor, the offset to go on at, and a thread in C for the background."""

    def __init__(self, path: str, offset: int, loop: ReaderLoop) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = offset
        self._syncer = Syncer()
        self._loop = loop
        self._under_way: tuple[int, Callable[[OSError | None], None]] | None = None
        loop.add_reader(self._syncer.fileno(), self._ready)

    def append_durably(
        self, parts: Sequence[bytes], done: Callable[[OSError | None], None]
    ) -> None:
        assert self._under_way is None
        size = sum(map(len, parts))
        if size < JOIN_MAX_BYTES:
            parts = (b"".join(parts),)
        self._under_way = size, done
        self._syncer.submit(self._fd, parts, self._end)

    def wait(self) -> None:
        self._ready(wait=True)

    def _ready(self, wait: bool = False) -> None:
        result = self._syncer.take(wait)
        if result is None:
            return
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


class SystemMakingFile:
    """A thread in C that makes the file."""

    def __init__(
        self,
        path: str,
        head: bytes,
        size_bytes: int,
        done: Callable[[OSError | None], None],
        loop: ReaderLoop,
    ) -> None:
        temporary = path + NEW_SUFFIX
        self._file = ZeroFile(os.fsencode(path), os.fsencode(temporary), head, size_bytes)
        self._done: Callable[[OSError | None], None] | None = done
        self._loop = loop
        loop.add_reader(self._file.fileno(), self._ready)

    def cancel(self) -> None:
        self._file.cancel()

    def wait(self) -> None:
        self._ready(wait=True)

    def _ready(self, wait: bool = False) -> None:
        error = self._file.take(wait)
        if error is None or self._done is None:
            return
        done, self._done = self._done, None
        self._loop.remove_reader(self._file.fileno())
        done(OSError(error, os.strerror(error)) if error else None)


class SystemLock:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


class SystemFiles:
    """The operating system's files; `loop` (asyncio's) learns of what the background has done."""

    def __init__(self, loop: ReaderLoop) -> None:
        self._loop = loop

    def make_directory(self, path: str) -> None:
        path = os.path.abspath(path)
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_directory(parent)
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._sync_directory(parent)

    def call_later(self, delay_ms: int, call: Callable[[], None]) -> None:
        self._loop.call_later(delay_ms / 1000, call)

    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read(self, path: str, size_bytes: int = -1) -> bytes:
        with open(path, "rb") as file:
            return file.read(size_bytes)

    def remove(self, path: str) -> None:
        os.unlink(path)
        self._sync_directory(os.path.dirname(path))

    def write_new(self, path: str, data: bytes) -> None:
        temporary = path + NEW_SUFFIX
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        self._sync_directory(os.path.dirname(path))

    def make_zeroed(
        self, path: str, head: bytes, size_bytes: int, done: Callable[[OSError | None], None]
    ) -> MakingFile:
        return SystemMakingFile(path, head, size_bytes, done, self._loop)

    def open_append(self, path: str, offset: int) -> AppendFile:
        return SystemAppendFile(path, offset, self._loop)

    def lock(self, path: str) -> Lock | None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return SystemLock(fd)

    @staticmethod
    def _sync_directory(path: str) -> None:
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
