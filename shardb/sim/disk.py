"""A disk in memory that keeps what a disk promises and nothing more.

Everything that changes it (a piece written, a sync, a name made, changed or removed, a cut) is a
*point*; points are counted, and at any of them the process may crash. After a crash of the machine
there is what was synced, and of the rest whatever sectors and names a seed chooses. The disk may be
full, and every kind of point may fail. Nothing happens in the background before `step`.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from shardb.appendfile import SyncFailed
from shardb.env import NEW_SUFFIX, AppendFile, Lock, MakingFile, OutputFile
from shardb.sim.loop import Crash

SECTOR_BYTES = 512


class Content(bytearray):
    """A file's bytes, and those that survive a power failure. Names refer to it."""

    def __init__(self, data: bytes | bytearray = b"", synced: bytes | None = None) -> None:
        super().__init__(data)
        self.synced = bytes(data) if synced is None else synced


@dataclass
class Disk:
    """`written` is what a process sees: contents by path. A directory is there without asking."""

    written: dict[str, Content] = field(default_factory=dict)
    free_bytes: int = 1 << 40
    failing: set[str] = field(default_factory=set)  # kinds of points that end in EIO
    failing_paths: str = ""  # a part of the paths where they do
    crash_at: int | None = None  # the number of a point, counted from 1
    crash_how: str = "before"  # the point, "after" it, or "torn" in the midst of what is written
    points: list[str] = field(default_factory=list)  # each with its kind and path
    jobs: list[Callable[[], None]] = field(default_factory=list)
    makings: list[DiskMaking] = field(default_factory=list)
    make_late: bool = False
    timers: list[Callable[[], None]] = field(default_factory=list)
    locks: set[str] = field(default_factory=set)
    on_crash: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.written = {
            path: data if isinstance(data, Content) else Content(data)
            for path, data in self.written.items()
        }
        self.crashed = False
        self._durable = dict(self.written)
        # Changes of names that are not durable yet, in order: path -> content, None if it is gone.
        self._changes: list[dict[str, Content | None]] = []

    @property
    def syncs(self) -> int:
        """How often a file was synced."""
        return sum(point.startswith("sync ") for point in self.points)

    # --- after the end of the process or the machine

    def after_kill(self) -> Disk:
        """The same disk for the next process: all that was written is there, synced or not."""
        copies: dict[int, Content] = {}

        def copy(names: dict[str, Content]) -> dict[str, Content]:
            return {path: one(content) for path, content in names.items()}

        def one(content: Content) -> Content:
            return copies.setdefault(id(content), Content(content, content.synced))

        after = Disk(copy(self.written), self.free_bytes)
        after._durable = copy(self._durable)
        after._changes = [
            {path: None if new is None else one(new) for path, new in change.items()}
            for change in self._changes
        ]
        return after

    def after_crash(self, rng: random.Random, sector_bytes: int = SECTOR_BYTES) -> Disk:
        """The disk after a power failure: what was synced, and of the rest what `rng` chooses."""
        names = dict(self._durable)
        for change in self._changes:
            if rng.random() < 0.5:
                _change(names, change)
        kept = {path: Content(_torn(content, rng, sector_bytes)) for path, content in names.items()}
        all_bytes = self.free_bytes + sum(map(len, self.written.values()))
        return Disk(kept, all_bytes - sum(map(len, kept.values())))

    # --- what happens later

    def step(self) -> bool:
        """Carries out the append under way, and then, unless `make_late`, makes the next file.

        False if there was nothing to do.
        """
        had_job, had_making = bool(self.jobs), bool(self.makings)
        if had_job:
            self.jobs.pop(0)()
        if self.makings and not (had_job and self.make_late):
            self.makings[0].wait()
        return had_job or had_making

    def step_timers(self) -> None:
        """Calls all that `call_later` has put off."""
        timers, self.timers = self.timers, []
        for timer in timers:
            timer()

    # --- points

    def point(self, kind: str, path: str, change: Callable[[], None]) -> None:
        """Carries out a change that the process may not survive, or that may fail."""
        self._alive()
        self.points.append(f"{kind} {path}")
        here = len(self.points) == self.crash_at
        if here and self.crash_how != "after":
            self._crash()
        if kind in self.failing and self.failing_paths in path:
            raise OSError(errno.EIO, "Input/output error")
        change()
        if here:
            self._crash()

    def write(self, path: str, content: Content, offset: int, data: bytes) -> None:
        """A point. What the disk has no room for is not written, and then ENOSPC is raised."""
        assert offset <= len(content)
        self._alive()
        if len(self.points) + 1 == self.crash_at and self.crash_how == "torn":
            content[offset : offset + len(data) // 2] = data[: len(data) // 2]
        self.point("write", path, lambda: self._write(content, offset, data))

    def _write(self, content: Content, offset: int, data: bytes) -> None:
        growth = max(offset + len(data) - len(content), 0)
        missing = max(growth - self.free_bytes, 0)
        kept = data[: len(data) - missing]
        content[offset : offset + len(kept)] = kept
        self.free_bytes -= growth - missing
        if missing:
            # The system may write dirty pages back at any time; here it does at the worst one.
            content.synced = bytes(content)
            raise OSError(errno.ENOSPC, "No space left on device")

    def sync(self, path: str, content: Content) -> None:
        """A point. Raises SyncFailed where another would raise EIO."""

        def work() -> None:
            content.synced = bytes(content)

        try:
            self.point("sync", path, work)
        except OSError as error:
            raise SyncFailed(*error.args) from error

    def cut(self, path: str, content: Content, size_bytes: int) -> None:
        def work() -> None:
            self.free_bytes += max(len(content) - size_bytes, 0)
            del content[size_bytes:]

        self.point("truncate", path, work)

    def rename(self, kind: str, path: str, change: dict[str, Content | None]) -> None:
        """A point that changes names; durable when the directory has been synced."""

        def work() -> None:
            before = {id(content): content for content in self.written.values()}
            _change(self.written, change)
            self._changes.append(change)
            for content in self.written.values():
                before.pop(id(content), None)
            self.free_bytes += sum(map(len, before.values()))

        self.point(kind, path, work)

    def _alive(self) -> None:
        if self.crashed:
            raise Crash

    def _crash(self) -> None:
        self.crashed = True
        if self.on_crash is not None:
            self.on_crash()
        raise Crash

    # --- Files

    def make_directory(self, path: str) -> None:
        self._alive()

    def names(self, path: str) -> list[str]:
        self._alive()
        found = [other.rpartition("/") for other in self.written]
        return [name for directory, _, name in found if directory == path]

    def exists(self, path: str) -> bool:
        self._alive()
        inside = f"{path}/"
        return path in self.written or any(other.startswith(inside) for other in self.written)

    def size(self, path: str) -> int:
        return len(self._content(path))

    def read(self, path: str, size_bytes: int = -1, offset: int = 0) -> bytes:
        end = None if size_bytes < 0 else offset + size_bytes
        return bytes(self._content(path)[offset:end])

    def map(self, path: str) -> pa.Buffer:
        if "map" in self.failing and self.failing_paths in path:
            raise OSError(errno.EIO, "Input/output error")
        return pa.py_buffer(bytes(self._content(path)))

    def create(self, path: str) -> OutputFile:
        self._alive()
        if path in self.written:
            raise FileExistsError(errno.EEXIST, "File exists")
        return DiskOutput(self, path, self._created(path))

    def remove(self, path: str) -> None:
        self._content(path)
        self.rename("remove", path, {path: None})
        self.sync_directory(path.rpartition("/")[0])

    def sync_directory(self, path: str) -> None:
        def work() -> None:
            later = []
            for change in self._changes:
                if any(name.rpartition("/")[0] == path for name in change):
                    _change(self._durable, change)
                else:
                    later.append(change)
            self._changes = later

        self.point("sync-directory", path, work)

    def write_new(self, path: str, data: bytes) -> None:
        temporary = path + NEW_SUFFIX
        content = self._created(temporary)
        try:
            self.write(temporary, content, 0, data)
            self.sync(temporary, content)
            self.rename("rename", path, {temporary: None, path: content})
        except OSError:
            with contextlib.suppress(OSError):
                self.rename("remove", temporary, {temporary: None})
            raise
        self.sync_directory(path.rpartition("/")[0])

    def make_zeroed(
        self, path: str, head: bytes, size_bytes: int, done: Callable[[OSError | None], None]
    ) -> MakingFile:
        assert not self.makings, "one file at a time"
        making = DiskMaking(self, path, head, size_bytes, done)
        self.makings.append(making)
        return making

    def open_append(self, path: str, offset: int) -> AppendFile:
        self._alive()
        content = self.written.get(path)
        return DiskFile(self, path, offset, self._created(path) if content is None else content)

    def call_later(self, delay_ms: int, call: Callable[[], None]) -> None:
        self._alive()
        if delay_ms:
            self.timers.append(call)
        else:
            call()

    def lock(self, path: str) -> Lock | None:
        self._alive()
        if path in self.locks:
            return None
        self.locks.add(path)
        return DiskLock(self, path)

    def _created(self, path: str) -> Content:
        content = Content()
        self.rename("create", path, {path: content})
        return content

    def _content(self, path: str) -> Content:
        self._alive()
        if path not in self.written:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self.written[path]


def _change(names: dict[str, Content], change: dict[str, Content | None]) -> None:
    for path, content in change.items():
        if content is None:
            names.pop(path, None)
        else:
            names[path] = content


def _torn(content: Content, rng: random.Random, sector_bytes: int) -> bytes:
    """What was synced, and of what was written since any sectors, at any size the file had."""
    sizes = sorted({len(content.synced), len(content)})
    sizes += range(sizes[0] // sector_bytes * sector_bytes, sizes[-1], sector_bytes)[1:]
    size = rng.choice(sizes)
    left = bytearray((content.synced + bytes(size))[:size])
    for at in range(0, min(size, len(content)), sector_bytes):
        now = content[at : min(at + sector_bytes, size)]
        if left[at : at + len(now)] != now and rng.random() < 0.5:
            left[at : at + len(now)] = now
    return bytes(left)


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
    content: Content
    job: Callable[[], None] | None = None

    def append_durably(
        self, parts: Sequence[bytes], done: Callable[[OSError | None], None]
    ) -> None:
        assert self.job is None, "one append at a time"
        data = b"".join(parts)

        def work() -> None:
            self.job = None
            try:
                self.disk.write(self.path, self.content, self.offset, data)
                self.offset += len(data)
                self.disk.sync(self.path, self.content)
            except OSError as error:
                done(error)
            else:
                done(None)

        self.job = work
        self.disk.jobs.append(work)

    def wait(self) -> None:
        if self.job is not None:
            self.disk.jobs.remove(self.job)
            self.job()

    def sync(self) -> None:
        self.disk.sync(self.path, self.content)

    def truncate(self, size_bytes: int) -> None:
        self.disk.cut(self.path, self.content, size_bytes)
        self.offset = size_bytes

    def close(self) -> None:
        assert self.job is None


@dataclass
class DiskOutput:
    disk: Disk
    path: str
    content: Content

    def write(self, data: Any) -> None:
        self.disk.write(self.path, self.content, len(self.content), bytes(data))

    def sync(self) -> None:
        self.disk.sync(self.path, self.content)
        self.disk.sync_directory(self.path.rpartition("/")[0])

    def close(self) -> None:
        pass


@dataclass
class DiskLock:
    disk: Disk
    path: str

    def close(self) -> None:
        self.disk.locks.discard(self.path)
