"""The log: one append-only file sequence a process, shared by its ranges (docs/formats/log.md).

Group commit: a writer thread writes all that is waiting at once and syncs it; meanwhile the next
batch gathers. Everything but the writer thread's own loop runs on the one thread that appends (the
event loop's), which learns of durability through `notify`.

Invariants: one batch is in flight at a time, and each batch begins with a marker record that names
its own offset, so a valid marker proves that everything before it was durable. Callbacks run in the
order of the appends. After a failed sync nothing is ever acknowledged again.

It must not look into payloads, and knows nothing of tables.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, NamedTuple

import msgspec

from shardb import limits
from shardb._core.crc32c import crc32c
from shardb.env import AppendFile, Files, Rng
from shardb.errors import StorageError

MAGIC: Final = b"SHRDBLOG"
VERSION: Final = 1
FILE_HEADER: Final = struct.Struct("<8sIQQ8s")  # magic, version, number, previous size, token
FILE_HEADER_BYTES: Final = FILE_HEADER.size + 4  # and its CRC32C
PREFIX: Final = struct.Struct("<II")  # length of what follows the CRC, CRC32C of it
RECORD: Final = struct.Struct("<QIQB")  # range, epoch, index, kind
RECORD_HEADER_BYTES: Final = PREFIX.size + RECORD.size
TOKEN_BYTES: Final = 8
KIND_BATCH: Final = 0  # the marker; all other kinds belong to the users of the log
FILE_SUFFIX: Final = ".log"

OnDurable = Callable[[StorageError | None], None]


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """One record as appended; `index` grows within a range, with gaps after failed appends."""

    range_id: int
    epoch: int
    index: int
    kind: int
    payload: bytes


class _Waiting(NamedTuple):
    head: bytes
    payload: bytes
    on_durable: OnDurable


def encode_head(range_id: int, epoch: int, index: int, kind: int, payload: bytes) -> bytes:
    """All of a record but its payload."""
    fields = RECORD.pack(range_id, epoch, index, kind)
    return PREFIX.pack(RECORD.size + len(payload), crc32c(payload, crc32c(fields))) + fields


def encode_file_header(number: int, previous_size: int, token: bytes) -> bytes:
    """The first bytes of a file. `previous_size` is the length of the file before it, 0 if none."""
    header = FILE_HEADER.pack(MAGIC, VERSION, number, previous_size, token)
    return header + crc32c(header).to_bytes(4, "little")


class Log:
    """REQUIRES: `recover` is called once, before the first append.

    `notify(call)` runs `call` on the appending thread soon, from any thread
    (`loop.call_soon_threadsafe`). `on_fatal(error)` runs on the writer thread and must end the
    process: the disk no longer says what is on it.
    """

    def __init__(
        self,
        directory: str,
        files: Files,
        rng: Rng,
        notify: Callable[[Callable[[], None]], object],
        on_fatal: Callable[[StorageError], None],
        file_target_bytes: int = limits.LOG_FILE_TARGET_BYTES,
    ) -> None:
        self._directory = directory
        self._files = files
        self._rng = rng
        self._notify = notify
        self._on_fatal = on_fatal
        self._file_target_bytes = file_target_bytes
        # The file at the end of the sequence; the writer thread's once it runs.
        self._number = 0
        self._token = b""
        self._end = 0
        self._file: AppendFile | None = None
        # Shared with the writer thread, under the lock.
        self._lock = threading.Lock()
        self._pending: list[_Waiting] = []
        self._done: list[list[_Waiting]] = []
        self._failed: tuple[list[_Waiting], StorageError] | None = None
        self._idle = True
        self._told = False
        self._closing = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.batches = 0
        self.records = 0

    # --- the appending thread

    def append(
        self,
        range_id: int,
        epoch: int,
        index: int,
        kind: int,
        payload: bytes,
        on_durable: OnDurable,
    ) -> None:
        """Queues a record; `on_durable(None)` follows when it is on disk, else its StorageError.

        When a write fails, all records queued until the error is delivered fail with it, so that
        none becomes durable after one that it was built upon did not.
        """
        assert kind != KIND_BATCH and self._thread is not None and not self._closing
        if RECORD.size + len(payload) > limits.LOG_RECORD_MAX_BYTES:
            raise StorageError("54000", f"log record of {len(payload)} bytes is too long")
        head = encode_head(range_id, epoch, index, kind, payload)
        with self._lock:
            self._pending.append(_Waiting(head, payload, on_durable))
            if not self._idle:
                return
            self._idle = False
        self._wake.put(None)

    def close(self) -> None:
        """Writes what is waiting and a last marker, tells the callbacks, and closes the files."""
        if self._closing:
            return
        self._closing = True
        if self._thread is not None:
            self._wake.put(None)
            self._thread.join()
        self._deliver()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _deliver(self) -> None:
        """Tells the callbacks of finished batches; runs on the appending thread."""
        with self._lock:
            done, self._done = self._done, []
            failed, self._failed = self._failed, None
            self._told = False
            lost: list[_Waiting] = []
            if failed is not None:
                lost = failed[0] + self._pending
                self._pending = []
                self._idle = True
        for batch in done:
            for waiting in batch:
                waiting.on_durable(None)
        if failed is not None:
            for waiting in lost:
                waiting.on_durable(failed[1])

    # --- the writer thread

    def _run(self) -> None:
        try:
            while True:
                self._wake.get()
                self._write_waiting()
                if self._closing:
                    break
            self._finish()
        except _Fatal as fatal:
            self._on_fatal(fatal.error)
        except Exception as error:
            self._on_fatal(StorageError("XX000", f"the log's writer failed: {error!r}"))

    def _write_waiting(self) -> None:
        """Writes batch after batch until nothing waits or one fails."""
        while True:
            with self._lock:
                if self._failed is not None:
                    return
                batch = self._take()
                if not batch:
                    self._idle = True
                    return
            error = self._write_batch(batch)
            with self._lock:
                if error is None:
                    self._done.append(batch)
                else:
                    self._failed = (batch, error)
                tell, self._told = not self._told, True
            if tell:
                self._notify(self._deliver)

    def _take(self) -> list[_Waiting]:
        """The next batch: what waits, up to LOG_BATCH_MAX_BYTES or one record. Under the lock."""
        size = 0
        for count, waiting in enumerate(self._pending):
            size += len(waiting.head) + len(waiting.payload)
            if size > limits.LOG_BATCH_MAX_BYTES and count > 0:
                batch = self._pending[:count]
                del self._pending[:count]
                return batch
        batch, self._pending = self._pending, []
        return batch

    def _write_batch(self, batch: list[_Waiting]) -> StorageError | None:
        """Makes a batch durable; an error if the disk is full, nothing of it being left then."""
        try:
            if self._end >= self._file_target_bytes:
                self._next_file()
        except OSError as error:
            return self._error("create a log file", error)
        parts = self._marker()
        for waiting in batch:
            parts.append(waiting.head)
            parts.append(waiting.payload)
        size = sum(map(len, parts))
        file = self._file
        assert file is not None
        try:
            file.append(parts)
        except OSError as error:
            self._cut(file)
            return self._error("write to the log", error)
        self._sync(file)
        self._end += size
        self.batches += 1
        self.records += len(batch)
        return None

    def _marker(self) -> list[bytes]:
        return [encode_head(0, 0, self._end, KIND_BATCH, self._token), self._token]

    def _finish(self) -> None:
        """A last marker, so that even damage to the last batch is seen after a clean stop."""
        file = self._file
        assert file is not None
        try:
            file.append(self._marker())
            self._sync(file)
        except OSError:
            self._cut(file)

    def _cut(self, file: AppendFile) -> None:
        """Takes back what a failed write left."""
        try:
            file.truncate(self._end)
        except OSError as error:
            raise _Fatal(self._error("truncate the log", error)) from error

    def _sync(self, file: AppendFile) -> None:
        try:
            file.sync()
        except OSError as error:
            # The kernel may have dropped the dirty pages: a second sync would lie.
            raise _Fatal(self._error("sync the log", error)) from error

    def _next_file(self) -> None:
        number = self._number + 1
        token = self._rng.token(TOKEN_BYTES)
        header = encode_file_header(number, self._end if self._number else 0, token)
        path = self._path(number)
        self._files.write_new(path, header)
        previous, self._file = self._file, self._files.open_append(path)
        self._number, self._token, self._end = number, token, len(header)
        if previous is not None:
            previous.close()

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:06d}{FILE_SUFFIX}"

    @staticmethod
    def _error(what: str, error: OSError) -> StorageError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return StorageError("53100" if full else "58030", f"could not {what}: {error.strerror}")

    # --- recovery

    def recover(self, replay: Callable[[LogRecord], None]) -> None:
        """Replays all records in order, cuts a torn tail, and makes the log ready for appends.

        Raises StorageError XX001 on a bad record that durable data follows.
        """
        self._files.make_directory(self._directory)
        numbers = sorted(
            int(name[: -len(FILE_SUFFIX)])
            for name in self._files.names(self._directory)
            if name.endswith(FILE_SUFFIX) and name[: -len(FILE_SUFFIX)].isdigit()
        )
        previous_size = 0
        for position, number in enumerate(numbers):
            path = self._path(number)
            if number != numbers[0] + position:
                raise StorageError("XX001", f"log file {self._path(number - 1)} is missing")
            last = position == len(numbers) - 1
            data = self._files.read(path)
            token, before = self._check_file_header(path, number, data)
            if position and before != previous_size:
                raise StorageError(
                    "XX001",
                    f"log file {self._path(number - 1)} has {previous_size} bytes, not {before}",
                )
            previous_size = _replay_file(path, data, token, last, replay)
            self._number, self._token, self._end = number, token, previous_size
            if last:
                self._file = self._files.open_append(path)
                if previous_size < len(data):
                    self._file.truncate(previous_size)
                # What a killed process wrote but did not sync has been replayed: make it durable.
                self._file.sync()
        if not numbers:
            self._next_file()
        self._thread = threading.Thread(target=self._run, name="shardb-log", daemon=True)
        self._thread.start()

    @staticmethod
    def _check_file_header(path: str, number: int, data: bytes) -> tuple[bytes, int]:
        """The file's token and the size of the file before it."""
        header = data[: FILE_HEADER.size]
        checksum = int.from_bytes(data[FILE_HEADER.size : FILE_HEADER_BYTES], "little")
        if len(data) < FILE_HEADER_BYTES or crc32c(header) != checksum:
            raise StorageError("XX001", f"log file {path} is damaged at offset 0: bad file header")
        magic, version, found, previous_size, token = FILE_HEADER.unpack(header)
        if magic != MAGIC or found != number:
            raise StorageError("XX001", f"{path} is not log file number {number}")
        if version > VERSION:
            raise StorageError(
                "0A000", f"log file {path} has format {version}, this shardb reads up to {VERSION}"
            )
        return token, previous_size


class _Fatal(Exception):
    """Carries the error that must end the process out of the writer's loop."""

    def __init__(self, error: StorageError) -> None:
        super().__init__(error.message)
        self.error = error


def _replay_file(
    path: str,
    data: bytes,
    token: bytes,
    last: bool,
    replay: Callable[[LogRecord], None],
) -> int:
    """Replays one file's records; returns the offset where its good part ends."""
    offset = FILE_HEADER_BYTES
    while offset < len(data):
        record = read_record(data, offset)
        if record is None:
            if not last or _marker_after(data, offset, token):
                raise StorageError(
                    "XX001",
                    f"log file {path} is damaged at offset {offset}: "
                    "bad record before durable data",
                )
            break
        offset += RECORD_HEADER_BYTES + len(record.payload)
        if record.kind != KIND_BATCH:
            replay(record)
    return offset


def read_record(data: bytes, offset: int) -> LogRecord | None:
    """The record at `offset`, or None if there is no whole record with the right checksum."""
    start = offset + PREFIX.size
    if start + RECORD.size > len(data):
        return None
    length, checksum = PREFIX.unpack_from(data, offset)
    if length < RECORD.size or start + length > len(data):
        return None
    with memoryview(data) as view, view[start : start + length] as body:
        if crc32c(body) != checksum:
            return None
    range_id, epoch, index, kind = RECORD.unpack_from(data, start)
    payload = data[start + RECORD.size : start + length]
    return LogRecord(range_id, epoch, index, kind, payload)


def _marker_after(data: bytes, offset: int, token: bytes) -> bool:
    """True if a batch begins after `offset`: what is at `offset` was durable before it was written.

    A marker holds the file's random token and its own offset, so no client's bytes pass for one.
    """
    found = data.find(token, offset)
    while found >= 0:
        start = found - RECORD_HEADER_BYTES
        if start > offset:
            record = read_record(data, start)
            if record is not None and record.kind == KIND_BATCH and record.index == start:
                return True
        found = data.find(token, found + 1)
    return False
