"""Looks at a shard's data directory while nothing runs on it, and says what is damaged in it.

All that has a checksum is read: manifest, log, segments. It goes on after damage, so that all of it
is named at once. It changes nothing, but for the lock file, which it makes if there is none.

What log records mean, it is told: `Names` gives the segments that one names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from shardb.env import NEW_SUFFIX, Files, Lock
from shardb.errors import StorageError
from shardb.storage.edits import FileSet
from shardb.storage.engine import FORMAT, LOCK_FILE, SEGMENT_SUFFIX, read_format
from shardb.storage.failures import storage_error
from shardb.storage.jobs import segment_path
from shardb.storage.logfile import (
    ClosedReader,
    LastReader,
    LogRecord,
    log_numbers,
    log_path,
    read_ahead,
)
from shardb.storage.manifest import (
    FILE_PREFIX,
    Contents,
    manifest_numbers,
    manifest_path,
    read_manifest,
)
from shardb.storage.segmentcheck import check_segment
from shardb.storage.segmentformat import SegmentMeta, file_name


class NamedSegment(NamedTuple):
    """A segment that a log record names; `committed`: the record alone makes it part of a table."""

    meta: SegmentMeta
    committed: bool


Names = Callable[[LogRecord], Iterable[NamedSegment]]


class Finding(NamedTuple):
    """`damage`: something is lost or wrong; else the next start does away with it."""

    damage: bool
    text: str


def is_shard(path: str, files: Files) -> bool:
    """True if this is one shard's data directory."""
    return files.exists(f"{path}/log") or files.exists(f"{path}/segments")


def lock_shard(path: str, files: Files) -> Lock:
    """Keeps shard processes away. StorageError 55006 if one runs, 58030 if it cannot be done."""
    try:
        lock = files.lock(f"{path}/{LOCK_FILE}")
    except OSError as error:
        raise storage_error(f"lock {path}", error) from error
    if lock is None:
        raise StorageError(
            "55006", f"data directory {path} is in use: its shard, or another check of it, runs"
        )
    return lock


def newest_manifest(path: str, files: Files) -> Contents | None:
    """What the manifest says; None if there need not be one. StorageError as of `Manifest.open`.

    There is none in a directory of format 1, nor in one that was never used.
    """
    found = read_format(path, files)
    numbers = manifest_numbers(files, path)
    if numbers:
        return read_manifest(files, path, numbers[-1])
    if found == FORMAT and files.exists(f"{path}/log"):
        raise StorageError("XX001", f"the manifest of {path} is missing")
    return None


class Check:
    """One pass over a directory; the counters grow with it. REQUIRES: `lock_shard`'s lock."""

    def __init__(self, path: str, files: Files, names: Names) -> None:
        self._path = path
        self._files = files
        self._names = names
        self._segments_path = f"{path}/segments"
        self._set: FileSet | None = None
        self._named: dict[int, NamedSegment] = {}  # by the log
        self._log_is_whole = True
        self.log_files = 0
        self.log_records = 0
        self.segments = 0
        self.rows = 0
        self.bytes = 0

    def run(self) -> Iterator[Finding]:
        """Everything that is found, as it is found; OSError of the directory passes through."""
        yield from self._check_manifest()
        yield from self._check_log()
        yield from self._check_segments()
        yield from self._look_for_leftovers()

    # --- manifest

    def _check_manifest(self) -> Iterator[Finding]:
        files, path = self._files, self._path
        try:
            contents = newest_manifest(path, files)
        except (StorageError, OSError) as error:
            yield _damage(f"the manifest of {path}", error)
            return
        except AssertionError as error:
            yield Finding(True, f"the manifest of {path} contradicts itself: {error}")
            return
        if contents is None:
            self._set = FileSet()
            return
        self._set = contents.state
        self.bytes += contents.size_bytes
        numbers = manifest_numbers(files, path)
        if contents.end < contents.size_bytes:
            yield _torn(manifest_path(path, numbers[-1]), contents.end)
        for older in numbers[:-1]:
            yield Finding(False, f"{manifest_path(path, older)} is followed by a newer one")

    # --- log

    def _check_log(self) -> Iterator[Finding]:
        files, directory = self._files, f"{self._path}/log"
        try:
            numbers = log_numbers(files, directory) if files.exists(directory) else []
            if not numbers:
                if self._set is not None and self._set.tablets:
                    self._log_is_whole = False
                    yield Finding(True, f"the log of {self._path} is missing")
                return
            self.log_files = len(numbers)
            self.bytes += sum(files.size(log_path(directory, number)) for number in numbers)
            if read_ahead(files, directory, numbers) is not None:
                numbers.pop()
        except (StorageError, OSError) as error:
            self._log_is_whole = False
            yield _damage(f"the log of {self._path}", error)
            return
        indexes: dict[int, int] = {}
        for number in numbers:
            path = log_path(directory, number)
            try:
                last = LastReader(files, directory, number) if number == numbers[-1] else None
                for record in last or ClosedReader(files, directory, number):
                    yield from self._check_record(path, record, indexes)
            except (StorageError, OSError) as error:
                self._log_is_whole = False
                yield _damage(f"log file {path}", error)
                continue
            if last is not None and last.torn:
                yield _torn(path, last.end)

    def _check_record(
        self, path: str, record: LogRecord, indexes: dict[int, int]
    ) -> Iterator[Finding]:
        self.log_records += 1
        before = indexes.get(record.range_id, 0)
        where = f"log file {path}, record {record.index} of range {record.range_id}"
        if record.index <= before:
            yield Finding(True, f"{where} comes after record {before}")
        indexes[record.range_id] = record.index
        try:
            for named in self._names(record):
                self._note(named, record.index)
        except StorageError as error:
            yield Finding(True, f"{where}: {error.message}")

    def _note(self, named: NamedSegment, index: int) -> None:
        """Whether its file has to be there: not if the manifest has let go of it meanwhile."""
        meta = named.meta
        tablet = self._set.tablets.get((meta.range_id, meta.table_id)) if self._set else None
        settled = tablet is None or index <= tablet.flushed_index
        self._named[meta.number] = NamedSegment(meta, named.committed and not settled)

    # --- segments

    def _check_segments(self) -> Iterator[Finding]:
        live = self._set.segments if self._set is not None else {}
        for number in sorted({*live, *self._named}):
            meta = live.get(number)
            if meta is None:
                named = self._named[number]
                meta = named.meta
                there = self._files.exists(segment_path(self._segments_path, number))
                if not there and not named.committed:
                    continue  # aborted, or linked and merged
            self.segments += 1
            self.rows += meta.rows
            self.bytes += meta.bytes
            owner = f" (range {meta.range_id}, table {meta.table_id})"
            for text in check_segment(self._files, self._segments_path, meta):
                yield Finding(True, text + owner)

    # --- leftovers

    def _look_for_leftovers(self) -> Iterator[Finding]:
        files, path = self._files, self._path
        known = set(self._named)
        if self._set is not None:
            known.update(self._set.segments)
        wanted = {file_name(number) for number in known}
        certain = self._set is not None and self._log_is_whole
        names = files.names(self._segments_path) if files.exists(self._segments_path) else []
        for name in sorted(set(names) - wanted):
            file = f"{self._segments_path}/{name}"
            if not name.endswith(SEGMENT_SUFFIX):
                yield Finding(False, f"{file} is none of ours")
            elif certain:
                yield Finding(False, f"{file}: nothing names it")
            else:
                yield Finding(False, f"{file}: what names it may be damaged, keep it")
        for directory in (path, f"{path}/log"):
            if not files.exists(directory):
                continue
            for name in sorted(files.names(directory)):
                if name.endswith(NEW_SUFFIX) and (
                    directory != path or name.startswith(FILE_PREFIX)
                ):
                    yield Finding(False, f"{directory}/{name} was being made")


def _damage(what: str, error: StorageError | OSError) -> Finding:
    if isinstance(error, StorageError):
        return Finding(True, error.message)
    return Finding(True, f"{what} cannot be read: {error.strerror}")


def _torn(path: str, end: int) -> Finding:
    return Finding(
        False, f"{path} ends at offset {end} in a write of which nobody was told: it will be cut"
    )
