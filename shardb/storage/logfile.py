"""The log's files: their format, declared once, and how they are read (docs/formats/log.md).

A file is read in pieces, so that a long one takes no more memory than a short one; only a record is
held in memory whole. Reading changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from shardb import limits
from shardb._core.crc32c import crc32c
from shardb._core.logread import RecordWalk
from shardb.env import Files
from shardb.errors import StorageError

MAGIC: Final = b"SHRDBLOG"
VERSION: Final = 2
FILE_HEADER: Final = struct.Struct("<8sIQQ8s")  # magic, version, number, previous size, token
FILE_HEADER_BYTES: Final = FILE_HEADER.size + 4  # and its CRC32C
PREFIX: Final = struct.Struct("<II")  # length of what follows the CRC, CRC32C of it
RECORD: Final = struct.Struct("<QIQB")  # range, epoch, index, kind
RECORD_HEADER_BYTES: Final = PREFIX.size + RECORD.size
TOKEN_BYTES: Final = 8
MARKER_BYTES: Final = RECORD_HEADER_BYTES + TOKEN_BYTES
NOT_BEGUN: Final = (1 << 64) - 1  # the previous size in a file that is only made ahead
FILE_SUFFIX: Final = ".log"
KIND_BATCH: Final = 0  # the marker; all other kinds belong to the users of the log


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """One record as appended; `index` grows within a range, with gaps after failed appends."""

    range_id: int
    epoch: int
    index: int
    kind: int
    payload: bytes


class FileHeader(NamedTuple):
    """`previous_size` is where the file before it ends, 0 if there is none."""

    token: bytes
    previous_size: int


def encode_head(range_id: int, epoch: int, index: int, kind: int, payload: bytes) -> bytes:
    """All of a record but its payload."""
    fields = RECORD.pack(range_id, epoch, index, kind)
    return PREFIX.pack(RECORD.size + len(payload), crc32c(payload, crc32c(fields))) + fields


def encode_file_header(number: int, previous_size: int, token: bytes) -> bytes:
    """The first bytes of a file."""
    header = FILE_HEADER.pack(MAGIC, VERSION, number, previous_size, token)
    return header + crc32c(header).to_bytes(4, "little")


def read_file_header(files: Files, path: str, number: int) -> FileHeader:
    """Raises StorageError: XX001 if it is damaged or another file's, 0A000 if it is newer."""
    data = files.read(path, FILE_HEADER_BYTES)
    header = data[: FILE_HEADER.size]
    checksum = int.from_bytes(data[FILE_HEADER.size :], "little")
    if len(data) < FILE_HEADER_BYTES or crc32c(header) != checksum:
        raise StorageError("XX001", f"log file {path} is damaged at offset 0: bad file header")
    magic, version, found, previous_size, token = FILE_HEADER.unpack(header)
    if magic != MAGIC or found != number:
        raise StorageError("XX001", f"{path} is not log file number {number}")
    if version > VERSION:
        raise StorageError(
            "0A000", f"log file {path} has format {version}, this shardb reads up to {VERSION}"
        )
    return FileHeader(token, previous_size)


class RecordReader:
    """The records of one file up to `size_bytes`, but for the markers.

    After the iteration `end` is the offset of the first that is not valid, or `size_bytes`.
    """

    def __init__(self, files: Files, path: str, size_bytes: int) -> None:
        self._files = files
        self._path = path
        self._size = size_bytes
        self.end = FILE_HEADER_BYTES

    def __iter__(self) -> Iterator[LogRecord]:
        wanted = limits.LOG_READ_BYTES
        while self.end < self._size:
            left = self._size - self.end
            data = self._files.read(self._path, min(wanted, left), self.end)
            walk = RecordWalk(data)
            for range_id, epoch, index, kind, at, size in walk:
                if kind != KIND_BATCH:
                    yield LogRecord(range_id, epoch, index, kind, data[at : at + size])
            self.end += walk.offset
            rest = len(data) - walk.offset
            if rest and not rest < walk.needed <= self._size - self.end:
                return  # not even with more of the file
            wanted = max(walk.needed, limits.LOG_READ_BYTES)


class ClosedReader:
    """The records of a file that others follow: it ends where the next one's header says.

    The iteration raises StorageError XX001, after the records before the damage, if it is damaged.
    """

    def __init__(self, files: Files, directory: str, number: int) -> None:
        self._files = files
        self._directory = directory
        self._number = number

    def __iter__(self) -> Iterator[LogRecord]:
        files, number = self._files, self._number
        path, after = log_path(self._directory, number), log_path(self._directory, number + 1)
        end = read_file_header(files, after, number + 1).previous_size
        if end == NOT_BEGUN:
            raise StorageError("XX001", f"log file {after} is damaged: not begun, but not the last")
        read_file_header(files, path, number)
        size = files.size(path)
        if size < end:
            raise StorageError("XX001", f"log file {path} has {size} bytes, not {end}")
        records = RecordReader(files, path, end)
        yield from records
        if records.end != end:
            raise _damaged(path, records.end)


class LastReader:
    """The records of the file that is gone on with.

    Zeros may follow its records, or what a torn write left; after the iteration `end` is where they
    end, `torn` tells if there is more than zeros. StorageError XX001 as above; a bad file header's
    is raised at once.
    """

    def __init__(self, files: Files, directory: str, number: int) -> None:
        self._files = files
        self.path = log_path(directory, number)
        self.token = read_file_header(files, self.path, number).token
        self.size_bytes = files.size(self.path)
        self.end = FILE_HEADER_BYTES
        self.torn = False

    def __iter__(self) -> Iterator[LogRecord]:
        records = RecordReader(self._files, self.path, self.size_bytes)
        yield from records
        self.end = records.end
        if marker_after(self._files, self.path, self.end, self.token):
            raise _damaged(self.path, self.end)
        self.torn = not is_zero(self._files, self.path, self.end)


def log_path(directory: str, number: int) -> str:
    """Where a file of the log is."""
    return f"{directory}/{number:06d}{FILE_SUFFIX}"


def log_numbers(files: Files, directory: str) -> list[int]:
    """The numbers of the log's files, ascending. StorageError XX001 if one between is missing."""
    numbers = sorted(
        int(name.removesuffix(FILE_SUFFIX))
        for name in files.names(directory)
        if name.endswith(FILE_SUFFIX) and name.removesuffix(FILE_SUFFIX).isdigit()
    )
    for position, number in enumerate(numbers):
        if number != numbers[0] + position:
            missing = log_path(directory, numbers[0] + position)
            raise StorageError("XX001", f"log file {missing} is missing")
    return numbers


def read_ahead(files: Files, directory: str, numbers: Sequence[int]) -> FileHeader | None:
    """The header of the last file if that has only been made ahead of need, else None.

    StorageError XX001 if it holds anything, or is the only one.
    """
    path = log_path(directory, numbers[-1])
    header = read_file_header(files, path, numbers[-1])
    if header.previous_size != NOT_BEGUN:
        return None
    if not is_zero(files, path, FILE_HEADER_BYTES):
        raise StorageError("XX001", f"log file {path} is damaged: not begun, but not empty")
    if len(numbers) == 1:
        raise StorageError("XX001", f"log file {log_path(directory, numbers[0] - 1)} is missing")
    return header


def marker_after(files: Files, path: str, offset: int, token: bytes) -> bool:
    """True if a batch begins after `offset`: what is at `offset` was durable before it was written.

    A marker holds the file's random token and its own offset, so no client's bytes pass for one.
    """
    for start, data in _pieces(files, path, offset, overlap=TOKEN_BYTES - 1):
        found = data.find(token)
        while found >= 0:
            at = start + found - RECORD_HEADER_BYTES
            if at > offset and _is_marker(files.read(path, MARKER_BYTES, at), at):
                return True
            found = data.find(token, found + 1)
    return False


def _is_marker(data: bytes, offset: int) -> bool:
    return any(kind == KIND_BATCH and index == offset for _, _, index, kind, *_ in RecordWalk(data))


def is_zero(files: Files, path: str, offset: int) -> bool:
    """True if all bytes from `offset` on are zeros."""
    return all(data == bytes(len(data)) for _, data in _pieces(files, path, offset))


def _pieces(files: Files, path: str, offset: int, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
    """The file from `offset` on: (offset, bytes), each `overlap` bytes into the one before."""
    while data := files.read(path, limits.LOG_READ_BYTES, offset):
        yield offset, data
        if len(data) < limits.LOG_READ_BYTES:
            return
        offset += len(data) - overlap


def _damaged(path: str, offset: int) -> StorageError:
    return StorageError(
        "XX001",
        f"log file {path} is damaged at offset {offset}: bad record before durable data",
    )
