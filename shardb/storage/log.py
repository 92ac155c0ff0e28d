"""The log: one append-only file sequence a process, shared by its ranges (docs/formats/log.md).

Group commit: all that is waiting is written at once and synced in the background (by a thread of
`env.Files`); meanwhile the next batch gathers. A sync is cheapest when neither the file's size nor
its extents change, so files are made of written zeros ahead of need, and records overwrite them.

Invariants: one batch is in flight at a time, and each batch begins with a marker record that names
its own offset, so a valid marker proves that everything before it was durable. Callbacks run in the
order of the appends. After a failed sync nothing is ever acknowledged again. Nothing ever waits for
zeros: where there are none yet, the file grows.

It must not look into payloads, and knows nothing of tables.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from shardb import limits
from shardb.appendfile import SyncFailed
from shardb.env import NEW_SUFFIX, AppendFile, Files, MakingFile, Rng
from shardb.errors import StorageError
from shardb.storage.failures import NO_ROOM, OnDurable, Run, run_now, storage_error, tell
from shardb.storage.logfile import (
    FILE_HEADER_BYTES,
    FILE_SUFFIX,
    KIND_BATCH,
    NOT_BEGUN,
    RECORD,
    TOKEN_BYTES,
    ClosedReader,
    LastReader,
    LogRecord,
    encode_file_header,
    encode_head,
    log_numbers,
    log_path,
    read_ahead,
)


class _NextFile(NamedTuple):
    number: int
    token: bytes
    size_bytes: int


class _ClosedFile(NamedTuple):
    """A file that others follow, and the last index of each range in it."""

    number: int
    size_bytes: int
    last: Mapping[int, int]


class _Waiting(NamedTuple):
    range_id: int
    log_index: int
    head: bytes
    payload: bytes
    on_durable: OnDurable


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
        # The file that is written: what is durable ends at `_end`, and zeros follow up to `_size`.
        self._number = 0
        self._token = b""
        self._end = 0
        self._size = 0
        self._file: AppendFile | None = None
        # The last index of each range in that file, and in those before it, oldest first.
        self._last: dict[int, int] = {}
        self._closed: deque[_ClosedFile] = deque()
        self._leaving: deque[str] = deque()  # paths of older ones, being removed
        self._removing = False
        # The next file: being made, made, being begun. It is due once this one ends past `_due_at`.
        self._making: MakingFile | None = None
        self._next: _NextFile | None = None
        self._beginning: AppendFile | None = None
        self._due_at = 0
        self._pending: list[_Waiting] = []
        self._in_flight: list[_Waiting] = []
        self._in_flight_bytes = 0
        # A batch or the next file's header is under way, or a batch waits for `_making` to end.
        self._busy = False
        self._again = False
        # Some of `_pending` is in a hurry; the rest goes with it, or when the timer ends.
        self._hurry = False
        self._starting = False
        self._timer = False
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
        lazy: bool = False,
    ) -> None:
        """Queues a record; `on_durable(None)` follows when it is on disk, else its StorageError.

        A `lazy` one waits up to LOG_LAZY_MAX_MS for others, so that it costs no sync of its own.
        When a write fails, all records queued until the error is told fail with it, so that
        none becomes durable after one that it was built upon did not.
        """
        assert kind != KIND_BATCH and self._file is not None and not self._closing
        if RECORD.size + len(payload) > limits.LOG_RECORD_MAX_BYTES:
            raise StorageError("54000", f"log record of {len(payload)} bytes is too long")
        head = encode_head(range_id, epoch, index, kind, payload)
        self._pending.append(_Waiting(range_id, index, head, payload, on_durable))
        if not lazy:
            self._hurry = True
        if not self._busy and not self._dead and not self._starting:
            if self._hurry:
                # Not now but with the end of this turn, so that all of a turn is one batch.
                self._starting = True
                self._files.call_later(0, self._turn_ended)
            else:
                self._start_if_due()

    def cut(self, needed: Mapping[int, int], run: Run = run_now) -> int:
        """Lets go of the oldest files that nobody needs; returns how many bytes they have.

        `needed` has the first index that is needed of each range; nothing is of one that is not in
        it. A file goes, durably, when nothing in it is needed and all before it are gone; the one
        that is written stays. `run` has a worker remove them, for that may take long.
        """
        assert self._file is not None
        freed = 0
        while self._closed and not self._dead:
            oldest = self._closed[0]
            if any(
                range_id in needed and index >= needed[range_id]
                for range_id, index in oldest.last.items()
            ):
                break
            self._closed.popleft()
            self._leaving.append(self._path(oldest.number))
            freed += oldest.size_bytes
        self._remove(run)
        return freed

    def _remove(self, run: Run) -> None:
        """Removes what is leaving, one by one, or a power failure might leave a gap."""
        if self._removing or not self._leaving or self._dead:
            return
        self._removing = True
        paths = list(self._leaving)

        def job() -> None:
            for path in paths:
                self._files.remove(path)

        def done(_: None, error: BaseException | None) -> None:
            self._removing = False
            if error is None:
                for path in paths:
                    assert self._leaving.popleft() == path
                self._remove(run)
            elif isinstance(error, OSError):
                self._die("remove a log file", error)
            else:
                raise error

        run(job, done)

    def close(self) -> None:
        """Writes what is waiting and a last marker, tells the callbacks, and closes the files."""
        if self._closing or self._file is None:
            return
        while (self._busy or self._pending) and not self._dead:
            if not self._busy:
                self._start()
            under_way = self._making if self._again else self._beginning or self._file
            assert under_way is not None
            under_way.wait()
        self._closing = True
        if self._making is not None:
            self._making.cancel()
            self._making.wait()
        if self._dead:
            (self._beginning or self._file).wait()
        else:
            # So that even damage to the last batch is seen after a clean stop.
            self._file.append_durably(self._marker(), self._finish)
            self._file.wait()
        self._file.close()
        self._file = None

    def _start_if_due(self) -> None:
        """Starts what is in a hurry; has the rest wait for company."""
        if self._hurry:
            self._start()
        elif self._pending and not self._timer:
            self._timer = True
            self._files.call_later(limits.LOG_LAZY_MAX_MS, self._waited)

    def _turn_ended(self) -> None:
        self._starting = False
        if not self._busy and not self._dead and not self._closing:
            self._start_if_due()

    def _waited(self) -> None:
        self._timer = False
        if self._pending and not self._busy and not self._dead and not self._closing:
            self._start()

    def _start(self) -> None:
        """Sends the next batch off: what waits, up to LOG_BATCH_MAX_BYTES or one record.

        Or begins the next file first, if this one's zeros are used up.
        """
        assert self._file is not None and not self._busy
        self._busy = True
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
        if self._next is not None:
            needed = min(size, limits.LOG_ZEROED_BATCH_MAX_BYTES)
            if self._end + needed > self._size:
                self._begin_next(self._next)
                return
        self._in_flight = self._pending[:count]
        self._in_flight_bytes = size
        del self._pending[:count]
        self._hurry = self._hurry and bool(self._pending)
        self._file.append_durably(parts, self._finished)

    def _finished(self, error: OSError | None) -> None:
        """The batch in flight is durable, or it failed."""
        if self._dead:
            return
        batch = self._in_flight
        if isinstance(error, SyncFailed):
            # The kernel may have dropped the dirty pages: a second sync would lie.
            self._die("sync the log", error)
            return
        if error is not None:
            self._fail(error)
            return
        self._end += self._in_flight_bytes
        self._size = max(self._size, self._end)
        self.batches += 1
        self.records += len(batch)
        self._in_flight = []
        self._busy = False
        for waiting in batch:
            self._last[waiting.range_id] = waiting.log_index
        small = self._in_flight_bytes <= limits.LOG_ZEROED_BATCH_MAX_BYTES
        if small or self._end >= self._file_target_bytes:
            self._make_next_if_due()
        if not self._dead:
            self._start_if_due()
        tell((waiting.on_durable for waiting in batch), None)
        if self._hurry and not self._busy and not self._dead and not self._closing:
            self._start()  # what those appended who were told: the turn has little else to bring

    def _fail(self, error: OSError) -> None:
        """Takes back what a failed write left, and tells all that counted on it."""
        assert self._file is not None
        try:
            self._file.truncate(self._end)
            # Else a record told as failed might be there after a power failure.
            self._file.sync()
        except OSError as again:
            self._die("truncate the log", again)
            return
        self._size = self._end
        lost = self._in_flight + self._pending
        self._in_flight = []
        if error.errno in NO_ROOM and (self._making is not None or self._next is not None):
            # The room may have gone into the next file.
            self._pending = lost
            if self._making is None:
                self._busy = False
                self._start()
            else:
                self._again = True
                self._making.cancel()
            return
        self._pending = []
        self._busy = False
        tell((waiting.on_durable for waiting in lost), storage_error("write to the log", error))

    def _finish(self, error: OSError | None) -> None:
        """The last marker is durable; if not, the log is as after a crash and as good."""

    def _die(self, what: str, error: OSError) -> None:
        """Nothing is acknowledged from here on."""
        self._dead = True
        self._on_fatal(storage_error(what, error))

    # --- the next file

    def _zeroed_bytes(self, number: int) -> int:
        """The size a file is made with: small at first, so that a small log stays small."""
        doubled = limits.LOG_ZEROED_FIRST_BYTES << min(number - 1, 20)
        return max(
            min(doubled, limits.LOG_ZEROED_MAX_BYTES, self._file_target_bytes), FILE_HEADER_BYTES
        )

    def _make_next_if_due(self) -> None:
        if self._making is not None or self._next is not None or self._end < self._due_at:
            return
        number = self._number + 1
        coming = _NextFile(number, self._rng.token(TOKEN_BYTES), self._zeroed_bytes(number))
        header = encode_file_header(number, NOT_BEGUN, coming.token)
        try:
            self._making = self._files.make_zeroed(
                self._path(number),
                header,
                coming.size_bytes,
                lambda error: self._made(coming, error),
            )
        except OSError as error:
            self._die("create a log file", error)

    def _made(self, coming: _NextFile, error: OSError | None) -> None:
        """The next file is there, or cannot be made for now."""
        self._making = None
        if self._dead:
            return
        if error is None:
            self._next = coming
        elif error.errno in NO_ROOM or error.errno == errno.ECANCELED:
            # The log goes on in this file and tries again later.
            self._due_at = self._end + self._zeroed_bytes(1)
        else:
            self._die("create a log file", error)
        if self._again and not self._dead:
            self._again = self._busy = False
            self._start()

    def _begin_next(self, coming: _NextFile) -> None:
        """Tells the next file where this one ends: from then on it is the log's last."""
        header = encode_file_header(coming.number, self._end, coming.token)
        try:
            file = self._files.open_append(self._path(coming.number), 0)
        except OSError as error:
            self._die("open a log file", error)
            return
        self._beginning = file
        file.append_durably([header], lambda error: self._begun(coming, file, error))

    def _begun(self, coming: _NextFile, file: AppendFile, error: OSError | None) -> None:
        self._beginning = self._next = None
        if self._dead:
            return
        if isinstance(error, SyncFailed):
            self._die("sync the log", error)
            return
        assert self._file is not None
        if error is None:
            self._file.close()
            self._closed.append(_ClosedFile(self._number, self._size, self._last))
            self._file, self._last = file, {}
            self._number, self._token = coming.number, coming.token
            self._end = FILE_HEADER_BYTES
            self._size = coming.size_bytes
            self._due_at = self._size // 2
        else:
            # Not even zeros could be overwritten. What is in the header now is not known.
            file.close()
            try:
                self._files.remove(self._path(coming.number))
            except OSError as again:
                self._die("remove a log file", again)
                return
            self._due_at = self._end + self._zeroed_bytes(1)
        self._busy = False
        self._start()

    def _marker(self) -> list[bytes]:
        return [encode_head(0, 0, self._end, KIND_BATCH, self._token), self._token]

    def _path(self, number: int) -> str:
        return log_path(self._directory, number)

    # --- recovery

    def recover(self, replay: Callable[[LogRecord], None]) -> None:
        """Replays all records in order, cuts a torn tail, and makes the log ready for appends.

        Raises StorageError XX001 on a bad record that durable data follows.
        """
        self._files.make_directory(self._directory)
        for name in self._files.names(self._directory):
            if name.endswith(FILE_SUFFIX + NEW_SUFFIX):
                self._files.remove(f"{self._directory}/{name}")  # was being made
        numbers = log_numbers(self._files, self._directory)
        if not numbers:
            self._make_first()
            return
        # A killed process may have left a file whose name is not durable yet.
        self._files.sync_directory(self._directory)
        header = read_ahead(self._files, self._directory, numbers)
        if header is not None:
            number = numbers.pop()
            self._next = _NextFile(number, header.token, self._files.size(self._path(number)))
        for number in numbers[:-1]:
            self._replay_closed(number, replay)
        self._replay_last(numbers[-1], replay)
        self._due_at = self._size // 2

    def _make_first(self) -> None:
        self._number, self._token = 1, self._rng.token(TOKEN_BYTES)
        self._end, self._size = FILE_HEADER_BYTES, self._zeroed_bytes(1)
        self._due_at = self._size // 2
        header = encode_file_header(1, 0, self._token)
        path = self._path(1)
        self._files.write_new(path, header + bytes(self._size - self._end))
        self._file = self._files.open_append(path, self._end)

    def _replay_closed(self, number: int, replay: Callable[[LogRecord], None]) -> None:
        self._replay_all(ClosedReader(self._files, self._directory, number), replay)
        size = self._files.size(self._path(number))
        self._closed.append(_ClosedFile(number, size, self._last))
        self._last = {}

    def _replay_last(self, number: int, replay: Callable[[LogRecord], None]) -> None:
        last = LastReader(self._files, self._directory, number)
        self._replay_all(last, replay)
        self._number, self._token = number, last.token
        self._end, self._size = last.end, last.size_bytes
        self._file = self._files.open_append(last.path, last.end)
        if last.torn:
            self._file.truncate(last.end)
            self._size = last.end
        # What a killed process wrote but did not sync has been replayed: make it durable.
        self._file.sync()

    def _replay_all(
        self, records: Iterable[LogRecord], replay: Callable[[LogRecord], None]
    ) -> None:
        last = self._last
        for record in records:
            last[record.range_id] = record.index
            replay(record)
