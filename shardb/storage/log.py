"""The log: one append-only file sequence a process, shared by its ranges (docs/formats/log.md).

Group commit: all that is waiting is written at once and synced in the background (by a thread of
`env.Files`); meanwhile the next batch gathers.

Invariants: one batch is in flight at a time, and each batch begins with a marker record that names
its own offset, so a valid marker proves that everything before it was durable. Callbacks run in the
order of the appends. After a failed sync nothing is ever acknowledged again.

It must not look into payloads, and knows nothing of tables.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from shardb import limits
from shardb._core.crc32c import crc32c
from shardb.env import AppendFile, Files, Rng, SyncFailed
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
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

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
    """REQUIRES: `recover` is called once, before the first append. One thread, the event loop's.

    `on_fatal(error)` must end the process: the disk no longer says what is on it.
    """

    def __init__(
        self,
        directory: str,
        files: Files,
        rng: Rng,
        on_fatal: Callable[[StorageError], None],
        file_target_bytes: int = limits.LOG_FILE_TARGET_BYTES,
    ) -> None:
        self._directory = directory
        self._files = files
        self._rng = rng
        self._on_fatal = on_fatal
        self._file_target_bytes = file_target_bytes
        # The file at the end of the sequence and its durable size.
        self._number = 0
        self._token = b""
        self._end = 0
        self._file: AppendFile | None = None
        self._pending: list[_Waiting] = []
        self._in_flight: list[_Waiting] | None = None
        self._in_flight_bytes = 0
        self._dead = False
        self._closing = False
        self.batches = 0
        self.records = 0

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

        When a write fails, all records queued until the error is told fail with it, so that
        none becomes durable after one that it was built upon did not.
        """
        assert kind != KIND_BATCH and self._file is not None and not self._closing
        if RECORD.size + len(payload) > limits.LOG_RECORD_MAX_BYTES:
            raise StorageError("54000", f"log record of {len(payload)} bytes is too long")
        head = encode_head(range_id, epoch, index, kind, payload)
        self._pending.append(_Waiting(head, payload, on_durable))
        if self._in_flight is None and not self._dead:
            self._start(self._file)

    def close(self) -> None:
        """Writes what is waiting and a last marker, tells the callbacks, and closes the files."""
        file = self._file
        if self._closing or file is None:
            return
        while self._in_flight is not None and not self._dead:
            file.wait()
            assert self._file is not None
            file = self._file
        self._closing = True
        if not self._dead:
            # So that even damage to the last batch is seen after a clean stop.
            file.append_durably(self._marker(), self._finish)
            file.wait()
        file.close()
        self._file = None

    def _start(self, file: AppendFile) -> None:
        """Sends the next batch off: what waits, up to LOG_BATCH_MAX_BYTES or one record."""
        parts = self._marker()
        size = sum(map(len, parts))
        count = 0
        for waiting in self._pending:
            more = len(waiting.head) + len(waiting.payload)
            if count and size + more > limits.LOG_BATCH_MAX_BYTES:
                break
            count += 1
            size += more
            parts.append(waiting.head)
            parts.append(waiting.payload)
        self._in_flight = self._pending[:count]
        self._in_flight_bytes = size
        del self._pending[:count]
        file.append_durably(parts, self._finished)

    def _finished(self, error: OSError | None) -> None:
        """The batch in flight is durable, or it failed."""
        batch, file = self._in_flight, self._file
        assert batch is not None and file is not None
        if isinstance(error, SyncFailed):
            # The kernel may have dropped the dirty pages: a second sync would lie.
            self._die("sync the log", error)
            return
        if error is not None:
            self._fail(file, batch, error)
            return
        self._end += self._in_flight_bytes
        self.batches += 1
        self.records += len(batch)
        self._in_flight = None
        if self._end >= self._file_target_bytes:
            file = self._next_file_if_room(file)
        if self._pending and not self._dead:
            self._start(file)
        _tell(batch, None)

    def _fail(self, file: AppendFile, batch: list[_Waiting], error: OSError) -> None:
        """Takes back what a failed write left, and tells all that counted on it."""
        try:
            file.truncate(self._end)
        except OSError as again:
            self._die("truncate the log", again)
            return
        lost = batch + self._pending
        self._pending = []
        self._in_flight = None
        told = _error("write to the log", error)
        _tell(lost, told)

    def _finish(self, error: OSError | None) -> None:
        """The last marker is durable; if not, the log is as after a crash and as good."""

    def _die(self, what: str, error: OSError) -> None:
        """Nothing is acknowledged from here on."""
        self._dead = True
        self._on_fatal(_error(what, error))

    def _next_file_if_room(self, file: AppendFile) -> AppendFile:
        """Goes on in a new file; in the old one for now if there is no room for it."""
        try:
            self._next_file()
        except OSError as error:
            if error.errno not in NO_ROOM:
                self._die("create a log file", error)
            return file
        file.close()
        assert self._file is not None
        return self._file

    def _next_file(self) -> None:
        number = self._number + 1
        token = self._rng.token(TOKEN_BYTES)
        header = encode_file_header(number, self._end if self._number else 0, token)
        path = self._path(number)
        self._files.write_new(path, header)
        self._file = self._files.open_append(path)
        self._number, self._token, self._end = number, token, len(header)

    def _marker(self) -> list[bytes]:
        return [encode_head(0, 0, self._end, KIND_BATCH, self._token), self._token]

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:06d}{FILE_SUFFIX}"

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


def _tell(batch: list[_Waiting], error: StorageError | None) -> None:
    """Calls all callbacks; if some fail, the first one's error is raised when all were called."""
    failure: Exception | None = None
    for waiting in batch:
        try:
            waiting.on_durable(error)
        except Exception as raised:
            failure = failure or raised
    if failure is not None:
        raise failure


def _error(what: str, error: OSError) -> StorageError:
    sqlstate = "53100" if error.errno in NO_ROOM else "58030"
    return StorageError(sqlstate, f"could not {what}: {error.strerror}")


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
