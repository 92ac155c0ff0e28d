"""`shardb storage`: what is in a data directory that nothing runs on, and whether it is sound.

It takes the locks of what it looks at and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from shardb import limits
from shardb._core.coreerror import CoreError
from shardb.datadir import DirectoryError, node_paths, take_lock
from shardb.env import Files, SystemFiles
from shardb.errors import StorageError
from shardb.node.bulk import decode_links
from shardb.storage.check import (
    Check,
    NamedSegment,
    is_shard,
    lock_shard,
    newest_manifest,
)
from shardb.storage.edits import FileSet, TabletState
from shardb.storage.jobs import open_segment
from shardb.storage.logfile import LogRecord, log_numbers, log_path
from shardb.storage.segmentformat import SegmentIndex, SegmentMeta, file_name
from shardb.storage.tablet import disjoint_runs
from shardb.txn import oracle, records

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Say = Callable[[str], object]


class _NoLoop:
    """What `SystemFiles` tells of work in the background: there is none."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        raise AssertionError

    def remove_reader(self, fd: int, /) -> None:
        raise AssertionError

    def call_soon(self, callback: Callable[[], None], /) -> None:
        raise AssertionError

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        raise AssertionError


def run(action: str, path: Path, say: Say) -> int:
    """`ls` or `verify` on a cluster's data directory or one shard's; the exit code.

    DirectoryError or StorageError if it cannot be looked at, or is in use.
    """
    files = SystemFiles(_NoLoop())
    damaged = False
    with contextlib.ExitStack() as held:
        for shard in _lock(path.absolute(), files, held):
            if action == "verify":
                damaged |= not verify(str(shard), files, say)
            else:
                for line in describe(str(shard), files):
                    say(line)
    return 1 if damaged else 0


def _lock(path: Path, files: Files, held: contextlib.ExitStack) -> Sequence[Path]:
    """The directories of shards that there are, locked."""
    if is_shard(str(path), files):
        shards = [path]
    else:
        shards = [shard for shard in node_paths(path).values() if is_shard(str(shard), files)]
        if not shards:
            raise DirectoryError(f"{path} holds no shard's data")
        try:
            held.callback(os.close, take_lock(path))
        except OSError as error:
            raise DirectoryError(f"cannot lock {path}: {error.strerror}") from error
        except DirectoryError as error:
            hint = f"stop the cluster first (`shardb status --data {path}` shows it)"
            raise DirectoryError(f"{error}: {hint}") from None
    for shard in shards:
        held.callback(lock_shard(str(shard), files).close)
    return shards


# --- verify


def verify(path: str, files: Files, say: Say) -> bool:
    """Says what is found in a shard's directory; True if nothing is damaged."""
    begun = time.monotonic()
    check = Check(path, files, named_segments)
    damages = 0
    for finding in check.run():
        damages += finding.damage
        say(f"{'DAMAGE' if finding.damage else 'note'}: {finding.text}")
    seconds = time.monotonic() - begun
    verdict = f"DAMAGED in {damages} places" if damages else "sound"
    say(
        f"{path}: {verdict}: {check.segments} segments with {check.rows:,} rows, "
        f"{check.log_files} log files with {check.log_records:,} records, "
        f"{size(check.bytes)} read in {seconds:.1f} s"
    )
    return not damages


def named_segments(record: LogRecord) -> Iterator[NamedSegment]:
    """The segments of a transaction's large inserts. StorageError if the record is malformed."""
    if record.kind == records.COMMIT:
        sections = records.decode_commit(record.payload).sections
    elif record.kind == records.PREPARE:
        sections = records.decode_prepare(record.payload).sections
    else:
        return
    for section in sections:
        if section.links is not None:
            for meta in decode_links(section.links):
                yield NamedSegment(meta, record.kind == records.COMMIT)


# --- ls


def describe(path: str, files: Files) -> Iterator[str]:
    """The lines of `shardb storage ls` for one shard."""
    contents = newest_manifest(path, files)
    state = FileSet() if contents is None else contents.state
    log_directory = f"{path}/log"
    numbers = log_numbers(files, log_directory) if files.exists(log_directory) else []
    log_bytes = sum(files.size(log_path(log_directory, number)) for number in numbers)
    segment_bytes = sum(meta.bytes for meta in state.segments.values())
    yield (
        f"{path}: {len(state.tablets)} tablets in {len(state.segments)} segments of "
        f"{size(segment_bytes)}, {len(numbers)} log files of {size(log_bytes)}"
    )
    for key in sorted(state.tablets):
        yield from _describe_tablet(path, files, state.tablets[key], state.runs(*key))


def _describe_tablet(
    path: str, files: Files, tablet: TabletState, metas: Sequence[SegmentMeta]
) -> Iterator[str]:
    rows = sum(meta.rows for meta in metas)
    runs = disjoint_runs(metas)
    line = (
        f"  range {tablet.range_id}, table {tablet.table_id}: {rows:,} rows, "
        f"{size(sum(meta.bytes for meta in metas))}, {len(runs)} runs, "
        f"log wanted after {tablet.flushed_index}"
    )
    if tablet.gc_ts:
        line += f", readable from {moment(tablet.gc_ts)}"
    yield line
    for number, run in enumerate(runs, 1):
        yield f"    run {number}{', the newest' if number == 1 and len(runs) > 1 else ''}"
        for meta in run:
            yield f"      {_describe_segment(path, files, meta)}"


def _describe_segment(path: str, files: Files, meta: SegmentMeta) -> str:
    try:
        index = open_segment(files, f"{path}/segments", meta).index
        assert isinstance(index, SegmentIndex)
        how = f"{index.codec or 'plain'}, {len(index.groups)} groups"
    except (StorageError, CoreError) as error:
        how = f"UNREADABLE: {error.message}"
    when = moment(meta.link_ts or meta.min_ts)
    if not meta.link_ts and meta.min_ts != meta.max_ts:
        when += f" to {moment(meta.max_ts)}"
    deleted = f" ({meta.tombstones:,} deleted)" if meta.tombstones else ""
    return (
        f"{file_name(meta.number)}  {meta.rows:,} rows{deleted}, {size(meta.bytes)}, {when}, {how}"
    )


def size(count: int) -> str:
    """Bytes for people."""
    for unit, name in ((limits.GIB, "GiB"), (limits.MIB, "MiB"), (limits.KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def moment(ts: int) -> str:
    """A timestamp of the oracle as a time, the number itself if it is none."""
    try:
        time = EPOCH + timedelta(milliseconds=ts >> oracle.LOGICAL_BITS)
    except OverflowError:
        return str(ts)
    return time.strftime("%Y-%m-%d %H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"
