"""The manifest: edits of the live file set, one after another in a file (docs/formats/manifest.md).

Edits are appended and synced in the background; what waits meanwhile goes together in the next
record. A file that has grown long is replaced by one that begins with the whole file set.

Invariants: one record is in flight at a time, so a valid record proves that those before it were
durable; none is while a new file is made. Callbacks run in the order of the appends. `current` is
what is durable, and nothing else. A file under its final name is whole, and the one with the
largest number holds everything. After a failed sync nothing is ever told again.

It must not touch any file but its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from shardb import limits
from shardb._core.crc32c import crc32c
from shardb.appendfile import SyncFailed
from shardb.env import NEW_SUFFIX, AppendFile, Files, Rng
from shardb.errors import StorageError
from shardb.storage.edits import EDITS_VERSION, Edit, FileSet, decode_edits, encode_edits
from shardb.storage.failures import NO_ROOM, OnDurable, Run, run_now, storage_error, tell

MAGIC: Final = b"SHRDBMFT"
FILE_PREFIX: Final = "MANIFEST-"
FILE_HEADER: Final = struct.Struct("<8sIQ8s")  # magic, version, number, token
FILE_HEADER_BYTES: Final = FILE_HEADER.size + 4  # and its CRC32C
PREFIX: Final = struct.Struct("<II")  # length of what follows the CRC, CRC32C of it
RECORD: Final = struct.Struct("<Q8s")  # its own offset, the file's token
RECORD_HEADER_BYTES: Final = PREFIX.size + RECORD.size
TOKEN_BYTES: Final = 8


class _Waiting(NamedTuple):
    edit: Edit
    after: FileSet
    done: OnDurable


class Contents(NamedTuple):
    """What is in a file: `end` is where the last valid record ends, after it is a torn one."""

    token: bytes
    snapshot_end: int
    end: int
    size_bytes: int
    state: FileSet


def encode_file_header(number: int, token: bytes) -> bytes:
    """The first bytes of a file."""
    header = FILE_HEADER.pack(MAGIC, EDITS_VERSION, number, token)
    return header + crc32c(header).to_bytes(4, "little")


def encode_record(offset: int, token: bytes, edits: tuple[Edit, ...]) -> bytes:
    """A record for `offset` of the file with this token."""
    body = RECORD.pack(offset, token) + encode_edits(edits)
    return PREFIX.pack(len(body), crc32c(body)) + body


class Manifest:
    """The file set of one data directory. One thread, the event loop's.

    `on_fatal(error)` must end the process: the disk no longer says what is on it. `run` has a
    worker make files, for that may take long.
    """

    def __init__(
        self,
        directory: str,
        files: Files,
        rng: Rng,
        on_fatal: Callable[[StorageError], None],
        number: int,
        contents: Contents,
        run: Run = run_now,
    ) -> None:
        self.current = contents.state
        self._directory = directory
        self._files = files
        self._rng = rng
        self._on_fatal = on_fatal
        self._run = run
        self._number = number
        self._token = contents.token
        self._end = contents.end
        self._due_at = _due_at(contents.snapshot_end)
        self._file: AppendFile | None = files.open_append(
            manifest_path(directory, number), contents.end
        )
        self._planned = self.current  # with all that is queued
        self._pending: list[_Waiting] = []
        self._in_flight: list[_Waiting] = []
        self._in_flight_bytes = 0
        self._busy = False  # a record is in flight, or a new file being made
        self._making: _Making | None = None
        self._starting = False
        self._dead = False
        self._closing = False

    @classmethod
    def open(
        cls,
        directory: str,
        files: Files,
        rng: Rng,
        on_fatal: Callable[[StorageError], None],
        new: bool = False,
        run: Run = run_now,
    ) -> Manifest:
        """Reads the newest file, cuts a torn tail, and begins a file anew if there is room for it.

        `new`: the directory may have none yet. `run` is for later. Raises OSError, and
        StorageError: XX001 if there is none or a durable part of it is damaged, 0A000 if its format
        is newer.
        """
        for name in files.names(directory):
            if name.startswith(FILE_PREFIX) and name.endswith(NEW_SUFFIX):
                files.remove(f"{directory}/{name}")  # was being made
        numbers = manifest_numbers(files, directory)
        if not numbers:
            if not new:
                raise StorageError("XX001", f"the manifest of {directory} is missing")
            contents = _begin(files, directory, 1, rng.token(TOKEN_BYTES), FileSet())
            return cls(directory, files, rng, on_fatal, 1, contents, run)
        number = numbers[-1]
        contents = read_manifest(files, directory, number)
        manifest = cls(directory, files, rng, on_fatal, number, contents, run)
        try:
            manifest._recover(contents, numbers[:-1])
        except BaseException:
            assert manifest._file is not None
            manifest._file.close()
            raise
        return manifest

    def _recover(self, contents: Contents, older: list[int]) -> None:
        """Makes what was found durable: a killed process may have left it as it was written."""
        assert self._file is not None
        if contents.end < contents.size_bytes:
            self._file.truncate(contents.end)
        self._file.sync()
        self._files.sync_directory(self._directory)
        # Not before: the newest file's name might not have been durable.
        for number in older:
            self._files.remove(manifest_path(self._directory, number))
        if contents.end > contents.snapshot_end:
            making = self._new_file()
            making.make()
            self._go_on_in(making)

    @property
    def planned(self) -> FileSet:
        """`current` with all that is queued."""
        return self._planned

    def append(self, edit: Edit, done: OnDurable) -> None:
        """Queues an edit; `done(None)` follows when it is durable and in `current`, else its error.

        When a write fails, all edits queued until the error is told fail with it, so that none
        becomes durable without one that it was built upon. AssertionError if the edit contradicts
        the file set as it will be after those that are queued.
        """
        assert self._file is not None and not self._closing
        self._planned = self._planned.apply(edit)
        self._pending.append(_Waiting(edit, self._planned, done))
        if not self._busy and not self._dead and not self._starting:
            # Not now but with the end of this turn, so that all of a turn is one record.
            self._starting = True
            self._files.call_later(0, self._turn_ended)

    def close(self) -> None:
        """Writes what is waiting and an empty record, tells the callbacks, and closes the file.

        REQUIRES: jobs that `run` was given have ended or will not begin.
        """
        if self._closing or self._file is None:
            return
        self._run = run_now
        if self._making is not None:
            self._made(self._making)
        while (self._busy or self._pending) and not self._dead:
            if not self._busy:
                self._start()
            self._file.wait()
        self._closing = True
        if self._dead:
            self._file.wait()
        else:
            # So that even damage to the last edit is seen after a clean stop.
            record = encode_record(self._end, self._token, ())
            self._file.append_durably([record], self._finish)
            self._file.wait()
        self._file.close()
        self._file = None

    def _turn_ended(self) -> None:
        self._starting = False
        if self._pending and not self._busy and not self._dead and not self._closing:
            self._start()

    def _start(self) -> None:
        """Sends all that waits off as one record."""
        assert self._file is not None and not self._busy and not self._in_flight
        self._busy = True
        self._in_flight, self._pending = self._pending, []
        edits = tuple(waiting.edit for waiting in self._in_flight)
        record = encode_record(self._end, self._token, edits)
        assert len(record) <= limits.MANIFEST_RECORD_MAX_BYTES, "an edit out of all proportion"
        self._in_flight_bytes = len(record)
        self._file.append_durably([record], self._finished)

    def _finished(self, error: OSError | None) -> None:
        """The record in flight is durable, or it failed."""
        if self._dead:
            return
        if isinstance(error, SyncFailed):
            # The kernel may have dropped the dirty pages: a second sync would lie.
            self._die("sync the manifest", error)
            return
        if error is not None:
            self._fail(error)
            return
        batch, self._in_flight = self._in_flight, []
        self._end += self._in_flight_bytes
        self.current = batch[-1].after
        self._busy = False
        if self._end >= self._due_at:
            self._rewrite()
            if self._dead:
                return
        if self._pending and not self._busy:
            self._start()
        tell((waiting.done for waiting in batch), None)

    def _fail(self, error: OSError) -> None:
        """Takes back what a failed write left, and tells all that counted on it."""
        assert self._file is not None
        try:
            self._file.truncate(self._end)
            # Else an edit told as failed might be there after a power failure.
            self._file.sync()
        except OSError as again:
            self._die("truncate the manifest", again)
            return
        lost = self._in_flight + self._pending
        self._in_flight, self._pending = [], []
        self._planned = self.current
        self._busy = False
        tell((waiting.done for waiting in lost), storage_error("write to the manifest", error))

    def _finish(self, error: OSError | None) -> None:
        """The last record is durable; if not, the manifest is as after a crash and as good."""

    def _die(self, what: str, error: OSError) -> None:
        """Nothing is told from here on."""
        self._dead = True
        self._on_fatal(storage_error(what, error))

    def _rewrite(self) -> None:
        """Goes on in a new file, which begins with `current`; in the old one if there is no room.

        Edits wait for it. REQUIRES: nothing is in flight.
        """
        assert not self._busy and not self._in_flight
        self._busy = True
        making = self._making = self._new_file()

        def done(_: None, error: BaseException | None) -> None:
            assert error is None, "making keeps its error"
            self._made(making)
            if self._pending and not self._busy and not self._dead:
                self._start()

        self._run(making.make, done)

    def _new_file(self) -> _Making:
        number, token = self._number + 1, self._rng.token(TOKEN_BYTES)
        return _Making(self._files, self._directory, number, token, self.current)

    def _made(self, making: _Making) -> None:
        """A file was made, or not; or, with a closed `run`, it was not even begun."""
        self._making = None
        self._busy = False
        try:
            self._go_on_in(making)
        except OSError as error:
            self._die("rewrite the manifest", error)

    def _go_on_in(self, making: _Making) -> None:
        """OSError: it is not known which file is the newest."""
        assert self._file is not None
        path = manifest_path(self._directory, making.number)
        if making.contents is None:
            if making.error is not None and making.error.errno not in NO_ROOM:
                raise making.error
            if self._files.exists(path):
                # It holds the same as the old one only as long as that is not gone on with.
                self._files.remove(path)
            self._due_at = self._end + limits.MANIFEST_REWRITE_BYTES
            return
        contents, old = making.contents, manifest_path(self._directory, self._number)
        old_file, self._file = self._file, self._files.open_append(path, contents.end)
        old_file.close()
        self._number, self._token = making.number, contents.token
        self._end = contents.end
        self._due_at = _due_at(contents.snapshot_end)
        remove = self._files.remove
        self._run(lambda: remove(old), self._removed)

    def _removed(self, _: None, error: BaseException | None) -> None:
        """The old file is gone; if not, it goes when the manifest is next opened."""


class _Making:
    """A new file in the making; `contents` once it is there, or `error`."""

    def __init__(
        self, files: Files, directory: str, number: int, token: bytes, state: FileSet
    ) -> None:
        self.number = number
        self.contents: Contents | None = None
        self.error: OSError | None = None
        self._files = files
        self._directory = directory
        self._token = token
        self._state = state

    def make(self) -> None:
        """Any thread."""
        try:
            self.contents = _begin(
                self._files, self._directory, self.number, self._token, self._state
            )
        except OSError as error:
            self.error = error


def manifest_path(directory: str, number: int) -> str:
    """Where a manifest is."""
    return f"{directory}/{FILE_PREFIX}{number:06d}"


def manifest_numbers(files: Files, directory: str) -> list[int]:
    """The numbers of the manifests in a directory, ascending: the last one counts."""
    names = [
        name.removeprefix(FILE_PREFIX)
        for name in files.names(directory)
        if name.startswith(FILE_PREFIX)
    ]
    return sorted(int(name) for name in names if name.isdigit())


def _due_at(snapshot_end: int) -> int:
    """Where a file is to be rewritten: twice as long as need be, and not for a trifle."""
    return snapshot_end + max(limits.MANIFEST_REWRITE_BYTES, snapshot_end)


def _begin(files: Files, directory: str, number: int, token: bytes, state: FileSet) -> Contents:
    """Makes a file of a header and a snapshot, in one durable step."""
    header = encode_file_header(number, token)
    data = header + encode_record(len(header), token, (state.as_edit(),))
    files.write_new(manifest_path(directory, number), data)
    return Contents(token, len(data), len(data), len(data), state)


def read_manifest(files: Files, directory: str, number: int) -> Contents:
    """A file's valid records. StorageError XX001 if more than a torn tail is missing.

    Reading changes nothing.
    """
    path = manifest_path(directory, number)
    data = files.read(path)
    token = _check_file_header(path, number, data)
    state = FileSet()
    offset, snapshot_end = FILE_HEADER_BYTES, 0
    while (payload := _record(data, offset, token)) is not None:
        try:
            edits = decode_edits(payload)
        except msgspec.DecodeError as error:
            raise StorageError(
                "XX001", f"manifest {path} has an edit at offset {offset} that is none: {error}"
            ) from error
        for edit in edits:
            state = state.apply(edit)
        offset += RECORD_HEADER_BYTES + len(payload)
        snapshot_end = snapshot_end or offset
    # The snapshot was durable before the file had its name, a record before the next was written.
    if not snapshot_end or _record_after(data, offset, token):
        raise StorageError(
            "XX001",
            f"manifest {path} is damaged at offset {offset}: bad record before durable data",
        )
    return Contents(token, snapshot_end, offset, len(data), state)


def _check_file_header(path: str, number: int, data: bytes) -> bytes:
    """The file's token."""
    header = data[: FILE_HEADER.size]
    checksum = int.from_bytes(data[FILE_HEADER.size : FILE_HEADER_BYTES], "little")
    if len(data) < FILE_HEADER_BYTES or crc32c(header) != checksum:
        raise StorageError("XX001", f"manifest {path} is damaged at offset 0: bad file header")
    magic, version, found, token = FILE_HEADER.unpack(header)
    if magic != MAGIC or found != number:
        raise StorageError("XX001", f"{path} is not manifest number {number}")
    if version > EDITS_VERSION:
        raise StorageError(
            "0A000",
            f"manifest {path} has format {version}, this shardb reads up to {EDITS_VERSION}",
        )
    assert isinstance(token, bytes)
    return token


def _record(data: bytes, offset: int, token: bytes) -> bytes | None:
    """The payload of the record at `offset`, or None if there is no valid one."""
    start = offset + PREFIX.size
    if start + RECORD.size > len(data):
        return None
    length, checksum = PREFIX.unpack_from(data, offset)
    if length < RECORD.size or start + length > len(data):
        return None
    body = data[start : start + length]
    if RECORD.unpack_from(body) != (offset, token) or crc32c(body) != checksum:
        return None
    return body[RECORD.size :]


def _record_after(data: bytes, offset: int, token: bytes) -> bool:
    """True if a valid record begins after `offset`.

    It holds the file's random token and its own offset, so no client's bytes pass for one.
    """
    found = data.find(token, offset)
    while found >= 0:
        start = found - (RECORD_HEADER_BYTES - TOKEN_BYTES)
        if start > offset and _record(data, start, token) is not None:
            return True
        found = data.find(token, found + 1)
    return False
