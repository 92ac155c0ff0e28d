"""A disk in memory for tests of the log, and a log on it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shardb.env import AppendFile, Lock, MakingFile, SyncFailed, SystemRng
from shardb.errors import StorageError
from shardb.storage.log import Log, LogRecord


@dataclass
class Disk:
    """Files in memory; `synced` is what survives a power failure."""

    written: dict[str, bytearray] = field(default_factory=dict)
    synced: dict[str, bytes] = field(default_factory=dict)
    free_bytes: int = 1 << 40
    fail_sync: bool = False
    fail_truncate: bool = False
    syncs: int = 0
    jobs: list[Callable[[], None]] = field(default_factory=list)
    makings: list[DiskMaking] = field(default_factory=list)
    make_late: bool = False
    timers: list[Callable[[], None]] = field(default_factory=list)

    def step(self) -> None:
        """Carries out the append under way, and then, unless `make_late`, makes the next file."""
        had_job = bool(self.jobs)
        if had_job:
            self.jobs.pop(0)()
        if self.makings and not (had_job and self.make_late):
            self.makings[0].wait()

    def make_directory(self, path: str) -> None:
        pass

    def names(self, path: str) -> list[str]:
        return [name.rpartition("/")[2] for name in self.written]

    def exists(self, path: str) -> bool:
        return path in self.written

    def read(self, path: str, size_bytes: int = -1) -> bytes:
        return bytes(self.written[path][: None if size_bytes < 0 else size_bytes])

    def remove(self, path: str) -> None:
        del self.written[path], self.synced[path]

    def make_zeroed(
        self, path: str, head: bytes, size_bytes: int, done: Callable[[OSError | None], None]
    ) -> MakingFile:
        assert not self.makings, "one file at a time"
        making = DiskMaking(self, path, head, size_bytes, done)
        self.makings.append(making)
        return making

    def write_new(self, path: str, data: bytes) -> None:
        self.take(len(data))
        self.written[path] = bytearray(data)
        self.synced[path] = data

    def open_append(self, path: str, offset: int) -> AppendFile:
        return DiskFile(self, path, offset)

    def call_later(self, delay_ms: int, call: Callable[[], None]) -> None:
        if delay_ms:
            self.timers.append(call)
        else:
            call()

    def lock(self, path: str) -> Lock | None:
        raise NotImplementedError

    def take(self, size: int) -> None:
        if size > self.free_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.free_bytes -= size


@dataclass
class DiskMaking:
    disk: Disk
    path: str
    head: bytes
    size_bytes: int
    done: Callable[[OSError | None], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def wait(self) -> None:
        if self not in self.disk.makings:
            return
        self.disk.makings.remove(self)
        if self.cancelled:
            self.done(OSError(errno.ECANCELED, "Operation canceled"))
            return
        try:
            self.disk.write_new(self.path, self.head + bytes(self.size_bytes - len(self.head)))
        except OSError as error:
            self.done(error)
        else:
            self.done(None)


@dataclass
class DiskFile:
    disk: Disk
    path: str
    offset: int

    def append_durably(
        self, parts: Sequence[bytes], done: Callable[[OSError | None], None]
    ) -> None:
        assert not self.disk.jobs, "one append at a time"

        def work() -> None:
            try:
                self.write(parts)
                self.sync()
            except OSError as error:
                done(error)
            else:
                done(None)

        self.disk.jobs.append(work)

    def wait(self) -> None:
        if self.disk.jobs:
            self.disk.step()

    def write(self, parts: Sequence[bytes]) -> None:
        data, content = b"".join(parts), self.disk.written[self.path]
        assert self.offset <= len(content)
        growth = max(self.offset + len(data) - len(content), 0)
        kept = data[: len(data) - max(growth - self.disk.free_bytes, 0)]
        content[self.offset : self.offset + len(kept)] = kept
        if growth > self.disk.free_bytes:
            # The system may write dirty pages back at any time; here it does at the worst one.
            self.disk.synced[self.path] = bytes(content)
        self.disk.take(growth)
        self.offset += len(data)

    def sync(self) -> None:
        if self.disk.fail_sync:
            raise SyncFailed(errno.EIO, "Input/output error")
        self.disk.syncs += 1
        self.disk.synced[self.path] = bytes(self.disk.written[self.path])

    def truncate(self, size_bytes: int) -> None:
        if self.disk.fail_truncate:
            raise OSError(errno.EIO, "Input/output error")
        del self.disk.written[self.path][size_bytes:]
        self.offset = size_bytes

    def close(self) -> None:
        pass


class Bench:
    """A log on a disk, and what its callbacks said."""

    def __init__(self, disk: Disk, file_target_bytes: int = 1 << 20) -> None:
        self.disk = disk
        self.fatal: list[StorageError] = []
        self.replayed: list[LogRecord] = []
        self.outcomes: dict[int, str] = {}
        self.index = 0
        self.log = Log("log", disk, SystemRng(), self.fatal.append, file_target_bytes)
        self.log.recover(self.replayed.append)

    def append(self, payload: bytes, lazy: bool = False) -> int:
        self.index += 1
        index = self.index
        self.log.append(7, 1, index, 3, payload, lambda error: self.note(index, error), lazy)
        return index

    def note(self, index: int, error: StorageError | None) -> None:
        assert index not in self.outcomes, "told twice"
        self.outcomes[index] = "durable" if error is None else error.sqlstate

    def run_until(self, index: int) -> str:
        while index not in self.outcomes:
            self.disk.step()
        return self.outcomes[index]

    def payloads(self) -> list[bytes]:
        return [record.payload for record in self.replayed]
