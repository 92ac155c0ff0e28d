"""The storage engine of one shard process: its data directory, log and tablets.

Opening takes the directory's lock, checks its format, and replays the log; `replay` (the node's)
knows what the payloads mean and fills the tablets. Afterwards every change is appended first and
applied when it is durable.

It must not interpret payloads, nor know of transactions.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, Protocol

from shardb._core.rowcodec import RowLayout
from shardb.env import Files, Lock, Rng
from shardb.errors import StorageError
from shardb.storage.failures import OnDurable
from shardb.storage.log import Log
from shardb.storage.logfile import LogRecord
from shardb.storage.tablet import Tablet

FORMAT: Final = 1
FORMAT_FILE: Final = "FORMAT"
LOCK_FILE: Final = "LOCK"


class Replay(Protocol):
    def __call__(self, engine: Engine, record: LogRecord) -> None: ...


class Engine:
    """Tablets by (range id, table id), and the log they share. Belongs to one thread.

    `on_fatal`: see `storage.log.Log`. Raises StorageError: 55006 if another process
    has the directory, 0A000 if its format is newer, XX001 if its log is damaged, 58030 or 53100 if
    it cannot be opened.
    """

    def __init__(
        self,
        path: str,
        files: Files,
        rng: Rng,
        replay: Replay,
        on_fatal: Callable[[StorageError], None],
    ) -> None:
        self.path = path
        self.tablets: dict[tuple[int, int], Tablet] = {}
        self._indexes: dict[int, int] = {}
        try:
            self._lock = _open_directory(path, files)
            self._log = Log(f"{path}/log", files, rng, on_fatal)
            try:
                self._log.recover(lambda record: self._replay(replay, record))
            except BaseException:
                self.close()
                raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StorageError(
                "53100" if full else "58030",
                f"could not open data directory {path}: {error.strerror}",
            ) from error

    def _replay(self, replay: Replay, record: LogRecord) -> None:
        before = self._indexes.get(record.range_id, 0)
        if record.index <= before:
            raise StorageError(
                "XX001",
                f"the log of range {record.range_id} goes from index {before} to {record.index}",
            )
        self._indexes[record.range_id] = record.index
        replay(self, record)

    def append(
        self,
        range_id: int,
        kind: int,
        payload: bytes,
        on_durable: OnDurable,
        epoch: int = 1,
        lazy: bool = False,
    ) -> int:
        """Queues a log record of a range and returns its index; see `Log.append`."""
        index = self._indexes.get(range_id, 0) + 1
        self._log.append(range_id, epoch, index, kind, payload, on_durable, lazy)
        self._indexes[range_id] = index
        return index

    def last_index(self, range_id: int) -> int:
        """The index of the range's last record, durable or queued; 0 if it has none."""
        return self._indexes.get(range_id, 0)

    def install(self, range_id: int, table_id: int, layout: RowLayout) -> Tablet:
        """The tablet of a table in a range, made empty if it is new."""
        tablet = self.tablets.get((range_id, table_id))
        if tablet is None:
            tablet = Tablet(range_id, table_id, layout)
            self.tablets[range_id, table_id] = tablet
        return tablet

    def drop(self, range_id: int, table_id: int) -> None:
        """Forgets a tablet; running scans keep theirs until they end. Fine if there is none."""
        self.tablets.pop((range_id, table_id), None)

    def counters(self) -> dict[str, int]:
        """Figures for `shardb status`."""
        tablets = self.tablets.values()
        return {
            "log_batches": self._log.batches,
            "log_records": self._log.records,
            "tablets": len(self.tablets),
            "rows": sum(tablet.memtable.live for tablet in tablets),
            "versions": sum(tablet.memtable.versions for tablet in tablets),
            "memory_bytes": sum(tablet.memtable.memory_bytes for tablet in tablets),
        }

    def close(self) -> None:
        """Makes what was appended durable, tells the callbacks and lets the directory go."""
        self._log.close()
        self._lock.close()


def _open_directory(path: str, files: Files) -> Lock:
    """Takes the directory's lock and checks (or writes) its format."""
    files.make_directory(path)
    lock = files.lock(f"{path}/{LOCK_FILE}")
    if lock is None:
        raise StorageError("55006", f"data directory {path} is in use by another process")
    try:
        format_path = f"{path}/{FORMAT_FILE}"
        if files.exists(format_path):
            text = files.read(format_path).decode("ascii", "replace").strip()
            if not text.isdigit():
                raise StorageError("XX001", f"{format_path} does not hold a format number")
            if int(text) > FORMAT:
                raise StorageError(
                    "0A000",
                    f"data directory {path} has format {text}, this shardb reads up to {FORMAT}",
                )
        else:
            files.write_new(format_path, f"{FORMAT}\n".encode())
    except BaseException:
        lock.close()
        raise
    return lock
