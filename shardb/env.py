"""What the world gives us: time, randomness, files, threads; as protocols and as the system's own.

They arrive by constructor, so that the simulator can put its own in their place. A `Files` promises
what a disk promises: what was written is durable after `sync`, a created, renamed or removed name
after `sync_directory`, and nothing before.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import queue
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from shardb import limits
from shardb._core.syncer import write_back
from shardb._core.zerofile import ZeroFile
from shardb.appendfile import ReaderLoop, SyncFailed, SystemAppendFile

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Buffer


class Clock(Protocol):
    """Time. No correctness may rest on clocks of different machines agreeing."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; may jump."""
        ...

    def wall_us(self) -> int:
        """The same in microseconds."""
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


class OutputFile(Protocol):
    """A new file that is written from its start, by one thread at a time."""

    def write(self, data: Buffer) -> None:
        """Writes all of `data` after the last. OSError: any part of it may have been written."""
        ...

    def sync(self) -> None:
        """Makes the file and its name durable. SyncFailed: nothing is known of it any more."""
        ...

    def close(self) -> None:
        """Fine if it is closed. What was not synced may be lost."""
        ...


class Files(Protocol):
    """A file system, paths as strings.

    Any thread may call `size`, `read`, `map`, `create`, `remove`, `sync_directory` and `write_new`;
    the rest is for the loop's.
    """

    def make_directory(self, path: str) -> None:
        """Makes it and its parents, durably; fine if it exists."""
        ...

    def names(self, path: str) -> list[str]:
        """Names in a directory."""
        ...

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int:
        """The file's size in bytes."""
        ...

    def read(self, path: str, size_bytes: int = -1, offset: int = 0) -> bytes:
        """Up to `size_bytes` from `offset` on, fewer at the file's end; or all from there."""
        ...

    def map(self, path: str) -> pa.Buffer:
        """All of the file as read-only memory, which stays valid when the file is removed.

        REQUIRES: the file is never written or cut again.
        """
        ...

    def create(self, path: str) -> OutputFile:
        """Makes an empty file; FileExistsError if there is one."""
        ...

    def remove(self, path: str) -> None:
        """Removes the file durably."""
        ...

    def sync_directory(self, path: str) -> None:
        """Makes the names in a directory durable, those that are gone too."""
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


T = TypeVar("T")


class Background(Protocol):
    """Worker threads for jobs that take long and release the interpreter lock."""

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Has a worker run `job`; `done(result, None)` or `done(None, error)` follows.

        That is called later on this thread. Jobs start in order, but may overlap and end in any.
        """
        ...

    def wait(self) -> None:
        """Waits until nothing is under way, calling each `done`, also of jobs these have run."""
        ...

    def close(self) -> None:
        """Ends the workers. Jobs that run end first, those that wait are dropped; none is told."""
        ...


RANDOM_POOL_BYTES: Final = 4096
SWITCH_INTERVAL_SECONDS: Final = 0.0005


def calm_garbage_collector() -> None:
    """Has a server's cycle collector pass over what it started with, and run rarely.

    Statements make no cycles: the default of one run per 700 new objects only costs time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def switch_threads_fast() -> None:
    """Has a thread that computes give the interpreter lock up soon when another one asks for it.

    The loop asks for it after everything it does without. The default of 5 ms is too long for it
    beside workers.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)


class SystemClock:
    """The kernel's clocks; CLOCK_BOOTTIME where there is one (it goes on in suspend)."""

    def __init__(self) -> None:
        self._clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def wall_us(self) -> int:
        return time.time_ns() // 1000

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


NEW_SUFFIX = ".new"  # of a file's name until it is whole


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


class SystemOutputFile:
    """A file descriptor. The kernel is told to write now and then, so that no sync is long."""

    def __init__(self, path: str) -> None:
        self._directory = os.path.dirname(path)
        self._end = 0
        self._begun = 0  # up to here the kernel was told to write
        self._begun_last = 0  # of that, how much the last time
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)

    def write(self, data: Buffer) -> None:
        self._end += _write_all(self._fd, data)
        new = self._end - self._begun
        if new >= limits.WRITE_BACK_BYTES:
            write_back(self._fd, self._begun, new, self._begun_last)
            self._begun, self._begun_last = self._end, new

    def sync(self) -> None:
        try:
            os.fsync(self._fd)
            _sync_directory(self._directory)
        except OSError as error:
            raise SyncFailed(*error.args) from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


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
        _sync_directory(parent)

    def call_later(self, delay_ms: int, call: Callable[[], None]) -> None:
        self._loop.call_later(delay_ms / 1000, call)

    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def read(self, path: str, size_bytes: int = -1, offset: int = 0) -> bytes:
        with open(path, "rb", buffering=0) as file:
            if offset:
                file.seek(offset)
            if size_bytes < 0:
                return file.readall()
            # One `read` of the system ends at 2 GiB.
            parts = []
            while size_bytes and (part := file.read(size_bytes)):
                parts.append(part)
                size_bytes -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def map(self, path: str) -> pa.Buffer:
        import pyarrow as pa  # a second of start time to processes that map nothing

        with pa.memory_map(path) as file:
            return file.read_buffer()

    def create(self, path: str) -> OutputFile:
        return SystemOutputFile(path)

    def remove(self, path: str) -> None:
        os.unlink(path)
        _sync_directory(os.path.dirname(path))

    def sync_directory(self, path: str) -> None:
        _sync_directory(path)

    def write_new(self, path: str, data: bytes) -> None:
        temporary = path + NEW_SUFFIX
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                _write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except OSError:
            # What came of it takes room, and there may be none.
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_directory(os.path.dirname(path))

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


class ThreadSafeLoop(Protocol):
    """What `SystemBackground` needs of an event loop."""

    def call_soon_threadsafe(self, callback: Callable[[], None], /) -> object: ...


class SystemBackground:
    """Python threads. `loop` (asyncio's) calls `done` on the thread that made this."""

    def __init__(self, loop: ThreadSafeLoop, threads: int = limits.BACKGROUND_THREADS) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="background")
        self._ended: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._under_way = 0

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        def work() -> None:
            try:
                result = job()
            except BaseException as error:
                self._ended.put(partial(done, None, error))
            else:
                self._ended.put(partial(done, result, None))
            # A loop that was closed meanwhile: there is nobody to tell, or `wait` does it.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell_next)

        self._under_way += 1
        self._pool.submit(work)

    def wait(self) -> None:
        while self._under_way:
            self._tell(self._ended.get())

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._under_way = 0
        self._ended = queue.SimpleQueue()

    def _tell_next(self) -> None:
        try:
            done = self._ended.get_nowait()
        except queue.Empty:
            return  # `wait` has told it
        self._tell(done)

    def _tell(self, done: Callable[[], None]) -> None:
        self._under_way -= 1
        done()


def _write_all(fd: int, data: Buffer) -> int:
    """Writes all of it; how many bytes that was."""
    with memoryview(data) as view, view.cast("B") as rest:
        at = 0
        while at < len(rest):
            at += os.write(fd, rest[at : at + limits.GIB])
        return at


def _sync_directory(path: str) -> None:
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SystemLoop(ReaderLoop, ThreadSafeLoop, Protocol):
    """An event loop of the operating system's."""


@dataclass(frozen=True, slots=True)
class Env:
    """What a server process is given of the world. `workers` do what takes long for clients."""

    clock: Clock
    rng: Rng
    files: Files
    background: Background
    workers: Executor


def system_env(loop: SystemLoop, workers: int) -> Env:
    """The operating system's, with so many threads for clients."""
    return Env(
        SystemClock(),
        SystemRng(),
        SystemFiles(loop),
        SystemBackground(loop),
        ThreadPoolExecutor(workers, thread_name_prefix="worker"),
    )
