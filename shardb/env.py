"""What the world gives us: time, randomness and files, as protocols and as the system's own.

They arrive by constructor, so that the simulator can put its own in their place. A `Files` promises
what a disk promises: what was written is durable after `sync`, a created or renamed name after
`sync_directory`, and nothing before.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from typing import Protocol


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


class AppendFile(Protocol):
    """An open file that is written at its end. One thread at a time."""

    def append(self, parts: Sequence[bytes]) -> None:
        """Writes all of `parts` at the end; on OSError any part of them may have been written."""
        ...

    def sync(self) -> None:
        """Makes everything appended durable. After an OSError nothing is known about it."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cuts the file; the next append goes there."""
        ...

    def close(self) -> None: ...


class Files(Protocol):
    """A file system, paths as strings."""

    def make_directory(self, path: str) -> None:
        """Makes it and its parents, durably; fine if it exists."""
        ...

    def names(self, path: str) -> list[str]:
        """Names in a directory."""
        ...

    def exists(self, path: str) -> bool: ...

    def read(self, path: str) -> bytes: ...

    def write_new(self, path: str, data: bytes) -> None:
        """Creates or replaces the file in one durable step: all of `data` or the old state."""
        ...

    def open_append(self, path: str) -> AppendFile: ...

    def lock(self, path: str) -> Lock | None:
        """Takes the file's exclusive lock until closed or the process ends; None if it is held."""
        ...


class Lock(Protocol):
    def close(self) -> None: ...


class SystemClock:
    """The kernel's clocks; CLOCK_BOOTTIME where there is one (it goes on in suspend)."""

    def __init__(self) -> None:
        self._clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.clock_gettime_ns(self._clock) // 1_000_000


class SystemRng:
    def token(self, size: int) -> bytes:
        return os.urandom(size)


WRITEV_PARTS_MAX = 512  # of one system call; the kernel's bound is 1024


class SystemAppendFile:
    """A file descriptor and the offset of the end of what was appended."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = os.fstat(self._fd).st_size

    def append(self, parts: Sequence[bytes]) -> None:
        if len(parts) > 8 and sum(map(len, parts)) < 256 * 1024:
            parts = (b"".join(parts),)
        for start in range(0, len(parts), WRITEV_PARTS_MAX):
            self._write(parts[start : start + WRITEV_PARTS_MAX])

    def _write(self, parts: Sequence[bytes]) -> None:
        wanted = sum(map(len, parts))
        written = os.pwritev(self._fd, parts, self._end)
        self._end += written
        if written < wanted:
            # A short write: a signal, the disk nearly full, or the kernel's 2 GiB bound.
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                written = os.pwrite(self._fd, rest, self._end)
                self._end += written
                rest = rest[written:]

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)
        self._end = size_bytes

    def close(self) -> None:
        os.close(self._fd)


class SystemLock:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


class SystemFiles:
    """The operating system's files."""

    def make_directory(self, path: str) -> None:
        path = os.path.abspath(path)
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_directory(parent)
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._sync_directory(parent)

    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write_new(self, path: str, data: bytes) -> None:
        temporary = path + ".new"
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

    def open_append(self, path: str) -> AppendFile:
        return SystemAppendFile(path)

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
