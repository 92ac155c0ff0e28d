"""What a simulated process finds around it: clock, randomness, files and workers, all of its world.

See `shardb.env` for what each promises. Everything runs in the one thread there is: work for other
threads is done here at some moment that the seed chooses, and told of at a later one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Final

from shardb.env import AppendFile, Lock, MakingFile, OutputFile
from shardb.sim.disk import Disk, DiskFile
from shardb.sim.loop import JOB_MAX_NS, JOB_MIN_NS, MS, Crash, ProcessLoop

if TYPE_CHECKING:
    import pyarrow as pa

WALL_START_MS: Final = 1_767_225_600_000  # 2026-01-01
WRITE_MAX_NS: Final = 100_000
SYNC_MAX_NS: Final = 2 * MS
SLOW_FACTOR: Final = 100


class SimClock:
    """A process's clocks; `offset_ms` is how far the wall clock is off, and may jump."""

    def __init__(self, loop: ProcessLoop, offset_ms: int = 0) -> None:
        self._loop = loop
        self.offset_ms = offset_ms

    def wall_ms(self) -> int:
        return WALL_START_MS + self.monotonic_ms() + self.offset_ms

    def wall_us(self) -> int:
        return self.wall_ms() * 1000 + self._loop.world.now_ns // 1000 % 1000

    def monotonic_ms(self) -> int:
        return int(self._loop.time() * 1000)


class SimRng:
    """Random bytes that a seed determines."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def token(self, size: int) -> bytes:
        return self._rng.randbytes(size)


class SimAppendFile:
    """A file whose appends are written some time after they are asked for, and synced later."""

    def __init__(self, files: SimFiles, file: DiskFile) -> None:
        self._files = files
        self._file = file
        self._under_way: _Append | None = None

    def append_durably(
        self, parts: Sequence[bytes], done: Callable[[OSError | None], None]
    ) -> None:
        assert self._under_way is None, "one append at a time"
        append = self._under_way = _Append(self._file, b"".join(parts), done)
        loop = self._files.loop
        write_ns = loop.world.now_ns + self._files.takes_ns(WRITE_MAX_NS)
        loop.post(write_ns, append.write)
        loop.post(write_ns + self._files.takes_ns(SYNC_MAX_NS), self._finish, append)

    def _finish(self, append: _Append) -> None:
        if self._under_way is append:
            append.write()
            error = append.sync()
            self._under_way = None
            append.done(error)

    def wait(self) -> None:
        if self._under_way is not None:
            self._finish(self._under_way)

    def sync(self) -> None:
        self._file.sync()

    def truncate(self, size_bytes: int) -> None:
        self._file.truncate(size_bytes)

    def close(self) -> None:
        assert self._under_way is None


class _Append:
    def __init__(self, file: DiskFile, data: bytes, done: Callable[[OSError | None], None]) -> None:
        self.done = done
        self._file = file
        self._data: bytes | None = data
        self._error: OSError | None = None

    def write(self) -> None:
        """The system takes the data; from now on a crash may leave any part of it."""
        data, self._data = self._data, None
        if data is None:
            return
        file = self._file
        try:
            file.disk.write(file.path, file.content, file.offset, data)
            file.offset += len(data)
        except OSError as error:
            self._error = error

    def sync(self) -> OSError | None:
        try:
            if self._error is None:
                self._file.sync()
        except OSError as error:
            self._error = error
        return self._error


class SimFiles:
    """The files of one life of a process, on a disk that outlives it."""

    def __init__(self, disk: Disk, loop: ProcessLoop) -> None:
        self.disk = disk
        self.loop = loop
        self.slow_until_ns = 0
        disk.on_crash = loop.crash

    def takes_ns(self, most_ns: int) -> int:
        """How long something takes that takes at most so long on a good day."""
        world = self.loop.world
        spent = 1 + int(world.rng.random() * most_ns)
        return spent * SLOW_FACTOR if world.now_ns < self.slow_until_ns else spent

    def make_directory(self, path: str) -> None:
        self.disk.make_directory(path)

    def names(self, path: str) -> list[str]:
        return self.disk.names(path)

    def exists(self, path: str) -> bool:
        return self.disk.exists(path)

    def size(self, path: str) -> int:
        return self.disk.size(path)

    def read(self, path: str, size_bytes: int = -1, offset: int = 0) -> bytes:
        return self.disk.read(path, size_bytes, offset)

    def map(self, path: str) -> pa.Buffer:
        return self.disk.map(path)

    def create(self, path: str) -> OutputFile:
        return self.disk.create(path)

    def remove(self, path: str) -> None:
        self.disk.remove(path)

    def sync_directory(self, path: str) -> None:
        self.disk.sync_directory(path)

    def write_new(self, path: str, data: bytes) -> None:
        self.disk.write_new(path, data)

    def make_zeroed(
        self, path: str, head: bytes, size_bytes: int, done: Callable[[OSError | None], None]
    ) -> MakingFile:
        making = self.disk.make_zeroed(path, head, size_bytes, done)
        self.loop.post(self.loop.world.now_ns + self.takes_ns(2 * SYNC_MAX_NS), making.wait)
        return making

    def open_append(self, path: str, offset: int) -> AppendFile:
        file = self.disk.open_append(path, offset)
        assert isinstance(file, DiskFile)
        return SimAppendFile(self, file)

    def lock(self, path: str) -> Lock | None:
        return self.disk.lock(path)

    def call_later(self, delay_ms: int, call: Callable[[], None]) -> None:
        self.loop.call_later(delay_ms / 1000, call)


Done = Callable[[Any, BaseException | None], None]


class SimBackground:
    """Workers: a job is done at one moment of its process's and told of at a later one."""

    def __init__(self, loop: ProcessLoop) -> None:
        self._loop = loop
        self._jobs: list[Callable[[], None]] = []

    def run(self, job: Callable[[], Any], done: Done) -> None:
        """See `env.Background`."""
        steps = [job]
        result: list[Any] = []

        def work() -> None:
            if not steps:
                return
            steps.clear()
            try:
                result.append((job(), None))
            except Crash:
                raise
            except BaseException as error:
                result.append((None, error))
            loop.post(loop.world.now_ns + self._takes_ns(), tell)

        def tell() -> None:
            if end in self._jobs:
                self._jobs.remove(end)
                done(*result[0])

        def end() -> None:
            work()
            tell()

        loop = self._loop
        self._jobs.append(end)
        loop.post(loop.world.now_ns + self._takes_ns(), work)

    def wait(self) -> None:
        """See `env.Background`."""
        while self._jobs:
            self._jobs[0]()

    def close(self) -> None:
        """See `env.Background`."""
        self._jobs.clear()

    def _takes_ns(self) -> int:
        return self._loop.world.rng.randrange(JOB_MIN_NS, JOB_MAX_NS)


class SimWorkers(Executor):
    """A pool of threads without threads."""

    def __init__(self, loop: ProcessLoop) -> None:
        self._loop = loop

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Has it run later; the future never learns of it."""
        loop = self._loop
        at_ns = loop.world.now_ns + loop.world.rng.randrange(JOB_MIN_NS, JOB_MAX_NS)
        loop.post(at_ns, lambda: fn(*args, **kwargs))
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing is left over."""
