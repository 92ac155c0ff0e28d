"""The storage engine of one shard process: its directory, log, manifest, segments and tablets.

Opening takes the directory's lock, checks its format, reads the manifest and replays the log; the
`Owner` (the node) knows what descriptors and payloads mean. Afterwards every change is appended to
the log first and applied when it is durable; flushes carry it into segments (`maintenance.py`).

Invariant: what is acknowledged is in the log or in segments that the manifest names. The log is cut
only where every tablet's `settled_index`, and what `Owner.retained` asks for, lies behind.

It must not interpret payloads or descriptors, nor know of transactions.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import msgspec

from shardb import limits
from shardb._core.segment import Segment
from shardb._core.shadow import Shadows
from shardb.env import Background, Files, Lock, Rng
from shardb.errors import StorageError
from shardb.storage import jobs
from shardb.storage.edits import Edit, TabletKey, TabletState
from shardb.storage.failures import OnDurable, storage_error
from shardb.storage.log import Log
from shardb.storage.logfile import LogRecord
from shardb.storage.maintenance import Maintenance
from shardb.storage.manifest import Manifest
from shardb.storage.memory import MemoryBudget
from shardb.storage.schema import TabletSchema
from shardb.storage.segmentformat import SegmentColumn, SegmentMeta
from shardb.storage.tablet import Tablet

FORMAT: Final = 2
FORMAT_FILE: Final = "FORMAT"
LOCK_FILE: Final = "LOCK"
SEGMENT_SUFFIX: Final = ".arrow"
ALL: Final = 1 << 63  # an index above all


class Owner(Protocol):
    """What the engine asks of the node."""

    def restore(self, engine: Engine, state: TabletState) -> None:
        """Installs a tablet that the manifest names."""

    def replay(self, engine: Engine, record: LogRecord) -> None:
        """Carries out a log record again."""

    def retained(self, range_id: int, needed: int) -> int:
        """The least index of the range's log that is needed; tablets need all from `needed` on."""

    def gc_ts(self) -> int:
        """Versions that only snapshots below it need may go; 0: none."""


class Private(Protocol):
    """Rows in memory of a transaction under way."""

    @property
    def unsealed_bytes(self) -> int:
        """What `seal` would have written."""

    def seal(self) -> None:
        """Has a worker write what is in memory."""


class Numbers:
    """Of files and orders: each is given once. Any thread."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._lock = threading.Lock()

    def new(self) -> int:
        """Larger than all before."""
        with self._lock:
            number = self._next
            self._next += 1
        return number

    def skip(self, number: int) -> None:
        """This one has been given already."""
        with self._lock:
            self._next = max(self._next, number + 1)


class Engine:
    """Tablets by (range id, table id), and the log they share. Belongs to one thread.

    `on_fatal`: see `storage.log.Log`. Raises StorageError: 55006 if another process
    has the directory, 0A000 if its format is newer, XX001 if its log or manifest is damaged, 58030
    or 53100 if it cannot be opened.
    """

    def __init__(
        self,
        path: str,
        files: Files,
        rng: Rng,
        owner: Owner,
        on_fatal: Callable[[StorageError], None],
        background: Background,
        budget: MemoryBudget | None = None,
    ) -> None:
        self.path = path
        self.files = files
        self.background = background
        self.budget = budget or MemoryBudget()
        self._memtable_bytes = self.budget.memtable_bytes
        self.tablets: dict[TabletKey, Tablet] = {}
        self.descriptors: dict[TabletKey, bytes] = {}
        self.segments_path = f"{path}/segments"
        self.log_bytes = 0  # of payloads, appended since the start
        self.private_bytes = 0  # memtables of transactions under way
        self.privates: set[Private] = set()
        self._owner = owner
        self._indexes: dict[int, int] = {}
        self._applied: dict[int, int] = {}
        self._unrecorded: set[TabletKey] = set()  # the manifest does not know them yet
        self._leaving: dict[TabletKey, Tablet] = {}  # dropped, and the manifest knows them still
        self._private: set[int] = set()  # segments of transactions that are not committed
        self._snapshots: dict[int, int] = {}  # timestamps of running scans, and how many
        self._snapshots_lock = threading.Lock()
        self.maintenance = Maintenance(self)
        try:
            self._lock, found = _open_directory(path, files)
            try:
                self._open(rng, on_fatal, found)
            except BaseException:
                self._close_files()
                raise
        except OSError as error:
            raise storage_error(f"open data directory {path}", error) from error

    def _open(self, rng: Rng, on_fatal: Callable[[StorageError], None], found: int) -> None:
        files = self.files
        self._log: Log | None = None
        files.make_directory(self.segments_path)
        # In format 1 all was in the log.
        new = found < FORMAT or not files.exists(f"{self.path}/log")
        self.manifest = Manifest.open(self.path, files, rng, on_fatal, new, self.background.run)
        if found < FORMAT:
            files.write_new(f"{self.path}/{FORMAT_FILE}", f"{FORMAT}\n".encode())
        state = self.manifest.current
        on_disk = [
            int(name.removesuffix(SEGMENT_SUFFIX))
            for name in files.names(self.segments_path)
            if name.endswith(SEGMENT_SUFFIX) and name.removesuffix(SEGMENT_SUFFIX).isdigit()
        ]
        self._numbers = Numbers(max([state.next_number, *(n + 1 for n in on_disk)]))
        self._indexes = dict(state.range_indexes)
        for tablet in state.tablets.values():
            self._owner.restore(self, tablet)
        self._log = Log(f"{self.path}/log", files, rng, on_fatal)
        self._log.recover(self._replay)
        named = {meta.number for tablet in self.tablets.values() for meta in tablet.metas}
        strange = [n for n in on_disk if n not in named and n not in self._private]
        jobs.remove_segments(files, self.segments_path, strange)

    def _replay(self, record: LogRecord) -> None:
        range_id, index = record.range_id, record.index
        before = self._applied.get(range_id, 0)
        if index <= before:
            raise StorageError(
                "XX001", f"the log of range {range_id} goes from index {before} to {index}"
            )
        self._indexes[range_id] = max(self._indexes.get(range_id, 0), index)
        self._owner.replay(self, record)
        self._applied[range_id] = index

    def start(self) -> None:
        """Begins to flush and merge; everything has been replayed."""
        for tablet in self.tablets.values():
            self._open_ahead(tablet)
        self.maintenance.start()

    def _open_ahead(self, tablet: Tablet) -> None:
        """Has a worker open the tablet's segments: its first reader would have to, all at once."""
        metas = list(tablet.metas)

        def job() -> list[Segment]:
            return [self.open_segment(meta) for meta in metas]

        def done(segments: list[Segment] | None, error: BaseException | None) -> None:
            if segments is not None:  # else who reads them learns what is wrong
                tablet.opened(segments)

        if metas:
            self.background.run(job, done)

    # --- the log

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
        assert self._log is not None
        index = self._indexes.get(range_id, 0) + 1
        applied = self._applied

        def durable(error: StorageError | None) -> None:
            on_durable(error)
            if error is None:
                applied[range_id] = index

        self._log.append(range_id, epoch, index, kind, payload, durable, lazy)
        self._indexes[range_id] = index
        self.log_bytes += len(payload)
        return index

    def last_index(self, range_id: int) -> int:
        """The index of the range's last record, durable or queued; 0 if it has none."""
        return self._indexes.get(range_id, 0)

    def applied_index(self, range_id: int) -> int:
        """All records of the range up to it are durable and carried out."""
        return self._applied.get(range_id, 0)

    def index_of(self, range_id: int, settled_index: int) -> tuple[tuple[int, int], ...]:
        """The range's applied index as an edit has it; a link's is settled while it is applied."""
        known = self.manifest.planned.range_indexes.get(range_id, 0)
        index = max(self.applied_index(range_id), settled_index, known)
        return ((range_id, index),) if index else ()

    def cut_log(self) -> None:
        """Lets go of log files that nothing needs."""
        if self.maintenance.stopped:
            return
        assert self._log is not None
        needed = dict.fromkeys(self._indexes, ALL)
        for key, tablet in self.tablets.items():
            if key in self._unrecorded:
                needed[key[0]] = 0
            elif tablet.memtable.entries or tablet.unsettled:
                needed[key[0]] = min(needed.get(key[0], ALL), tablet.settled_index + 1)
        for key in self._leaving:
            needed[key[0]] = 0
        for range_id, index in needed.items():
            if index:
                needed[range_id] = self._owner.retained(range_id, index)
        self._log.cut(needed, self.background.run)

    # --- tablets

    def install(
        self, range_id: int, table_id: int, schema: TabletSchema, descriptor: bytes
    ) -> Tablet:
        """The tablet of a table in a range, made if it is new, or with its new schema."""
        key = range_id, table_id
        tablet = self.tablets.get(key)
        if tablet is None:
            state = self.manifest.current.tablets.get(key)
            fresh = state is None or key in self._leaving
            tablet = Tablet(
                range_id,
                table_id,
                schema,
                self._numbers.new(),
                self.open_segment,
                self.freeze,
                Shadows(self.budget.cache_bytes),
                () if fresh else self.manifest.current.runs(range_id, table_id),
                0 if fresh or state is None else state.flushed_index,
                0 if fresh or state is None else state.gc_ts,
            )
            self.tablets[key] = tablet
        else:
            tablet.learn(schema)
        if self.descriptors.get(key) != descriptor:
            self.descriptors[key] = descriptor
            self._record(key, tablet)
        return tablet

    def _record(self, key: TabletKey, tablet: Tablet) -> None:
        """Has the manifest learn a tablet's descriptor."""
        known = self.manifest.current.tablets.get(key)
        if known is not None and known.descriptor == self.descriptors[key]:
            return
        self._unrecorded.add(key)
        state = self.state_of(tablet)

        def done(error: StorageError | None) -> None:
            if self.tablets.get(key) is not tablet:
                return
            if error is None:
                if state.descriptor == self.descriptors[key]:  # else a newer one is on its way
                    self._unrecorded.discard(key)
            else:  # the log has it; later edits bring it too
                self.files.call_later(
                    limits.MAINTENANCE_RETRY_MS, lambda: self._record_again(key, tablet)
                )

        self.manifest.append(Edit(put_tablets=(state,)), done)

    def state_of(self, tablet: Tablet, index: int = 0, gc_ts: int = 0) -> TabletState:
        """What an edit says of a tablet; never less than those before it."""
        planned = self.manifest.planned.tablets.get(tablet.key)
        return TabletState(
            tablet.range_id,
            tablet.table_id,
            self.descriptors[tablet.key],
            max(tablet.settled_index, index, planned.flushed_index if planned else 0),
            max(tablet.gc_ts, gc_ts, planned.gc_ts if planned else 0),
        )

    def _record_again(self, key: TabletKey, tablet: Tablet) -> None:
        if self.tablets.get(key) is tablet and not self.maintenance.stopped:
            self._record(key, tablet)

    def drop(self, range_id: int, table_id: int) -> None:
        """Forgets a tablet; running scans keep theirs until they end. Fine if there is none."""
        key = range_id, table_id
        tablet = self.tablets.pop(key, None)
        if tablet is None:
            return
        tablet.dropped = True
        self.descriptors.pop(key, None)
        self._unrecorded.discard(key)
        if key in self.manifest.planned.tablets:
            self._leaving[key] = tablet
            self._leave(key, tablet)
        else:
            self.remove_later(meta.number for meta in tablet.metas)

    def _leave(self, key: TabletKey, tablet: Tablet) -> None:
        def done(error: StorageError | None) -> None:
            if error is None:
                del self._leaving[key]
                self.remove_later(meta.number for meta in tablet.metas)
            elif not self.maintenance.stopped:
                self.files.call_later(limits.MAINTENANCE_RETRY_MS, lambda: self._leave(key, tablet))

        if key in self.manifest.planned.tablets:
            self.manifest.append(Edit(drop_tablets=(key,)), done)
        else:  # the edit that named it failed together with the first of these
            done(None)

    def written(self, tablet: Tablet) -> None:
        """Something was applied to the tablet: a memtable that has grown large is frozen."""
        if tablet.memtable.memory_bytes >= self._memtable_bytes:
            self.freeze(tablet)
            self.maintenance.pump()

    def freeze(self, tablet: Tablet) -> None:
        """Begins a new memtable."""
        tablet.freeze(self._numbers.new(), self.applied_index(tablet.range_id))

    def link(
        self, tablet: Tablet, metas: Iterable[SegmentMeta], commit_ts: int, index: int
    ) -> None:
        """Makes a transaction's segments, oldest first, part of the tablet at its commit timestamp.

        `index`: all of the range's log up to it is in what the tablet has now and in these.
        """
        # An order each: a later one may change or delete rows of those before.
        linked = [
            msgspec.structs.replace(
                meta,
                order=self._numbers.new(),
                link_ts=commit_ts,
                min_ts=commit_ts,
                max_ts=commit_ts,
            )
            for meta in metas
        ]
        above = self._numbers.new()
        tablet.freeze(above, self.applied_index(tablet.range_id))
        tablet.link(linked, above, index)
        self._private.difference_update(meta.number for meta in linked)
        self.maintenance.pump()

    # --- files

    def new_number(self) -> int:
        """A number for a file or an order, larger than all before; from any thread."""
        return self._numbers.new()

    def skip_numbers(self, metas: Iterable[SegmentMeta]) -> None:
        """The log names these files, so that no other may get their numbers, there or not."""
        for meta in metas:
            self._numbers.skip(meta.number)

    def target(
        self, tablet: Tablet, order: int, columns: Sequence[SegmentColumn], version: int
    ) -> jobs.Target:
        """Where a job for a tablet writes to."""
        return jobs.Target(
            self.files,
            self.segments_path,
            self.new_number,
            tablet.range_id,
            tablet.table_id,
            order,
            columns,
            version,
            tablet.schema.codec,
        )

    def open_segment(self, meta: SegmentMeta) -> Segment:
        """See `jobs.open_segment`."""
        return jobs.open_segment(self.files, self.segments_path, meta)

    def keep_private(self, numbers: Iterable[int]) -> None:
        """These belong to a transaction that may commit yet."""
        self._private.update(numbers)

    def release_private(self, numbers: Iterable[int]) -> None:
        """The tablet has these now, or has merged them since."""
        self._private.difference_update(numbers)

    def remove_later(self, numbers: Iterable[int]) -> None:
        """Removes segments that nothing names any more, in the background or at the next start.

        Not at once: as long as somebody has a file mapped, removing it leaves the work to him, and
        he has the interpreter lock meanwhile.
        """
        gone = list(numbers)
        self._private.difference_update(gone)
        if gone and not self.maintenance.stopped:
            self.files.call_later(limits.SEGMENT_REMOVAL_MS, lambda: self._remove(gone))

    def _remove(self, gone: list[int]) -> None:
        if not self.maintenance.stopped:
            self.background.run(
                lambda: jobs.remove_segments(self.files, self.segments_path, gone),
                lambda _, error: None,
            )

    # --- snapshots

    def gc_ts(self) -> int:
        """Versions that no snapshot at or above it can see may go."""
        with self._snapshots_lock:
            oldest = min(self._snapshots, default=ALL)
        return min(self._owner.gc_ts(), oldest)

    def hold(self, ts: int) -> None:
        """A scan at this snapshot begins. From any thread, as is `release`."""
        with self._snapshots_lock:
            self._snapshots[ts] = self._snapshots.get(ts, 0) + 1

    def release(self, ts: int) -> None:
        """It has ended."""
        with self._snapshots_lock:
            left = self._snapshots[ts] - 1
            if left:
                self._snapshots[ts] = left
            else:
                del self._snapshots[ts]

    # --- figures

    @property
    def memtable_bytes(self) -> int:
        """All memtables together."""
        return self.private_bytes + sum(t.memory_bytes for t in self.tablets.values())

    def counters(self) -> dict[str, int]:
        """Figures for `shardb status`."""
        tablets = list(self.tablets.values())
        metas = [meta for tablet in tablets for meta in tablet.metas]
        work = self.maintenance
        assert self._log is not None
        return {
            "log_batches": self._log.batches,
            "log_records": self._log.records,
            "tablets": len(tablets),
            "rows": sum(tablet.rows for tablet in tablets),
            "memory_bytes": self.memtable_bytes,
            "segments": len(metas),
            "segment_bytes": sum(meta.bytes for meta in metas),
            "segment_rows": sum(meta.rows for meta in metas),
            "runs_max": max((len(tablet.shape) for tablet in tablets), default=0),
            "flushes": work.flushes,
            "merges": work.merges,
            "merged_bytes": work.merged_bytes,
        }

    def close(self) -> None:
        """Makes what was appended durable, tells the callbacks and lets the directory go."""
        self.maintenance.stop()
        self._close_files()

    def _close_files(self) -> None:
        self.background.close()
        if getattr(self, "_log", None) is not None:
            assert self._log is not None
            self._log.close()
        if hasattr(self, "manifest"):
            self.manifest.close()
        self._lock.close()


def _open_directory(path: str, files: Files) -> tuple[Lock, int]:
    """Takes the directory's lock and checks (or writes) its format: the lock, and what it was."""
    files.make_directory(path)
    lock = files.lock(f"{path}/{LOCK_FILE}")
    if lock is None:
        raise StorageError("55006", f"data directory {path} is in use by another process")
    found = FORMAT
    try:
        if files.exists(f"{path}/{FORMAT_FILE}"):
            found = read_format(path, files)
        else:
            files.write_new(f"{path}/{FORMAT_FILE}", f"{FORMAT}\n".encode())
    except BaseException:
        with contextlib.suppress(OSError):
            lock.close()
        raise
    return lock, found


def read_format(path: str, files: Files) -> int:
    """The format of a data directory. StorageError: XX001 if it is none, 0A000 if it is newer."""
    format_path = f"{path}/{FORMAT_FILE}"
    text = files.read(format_path).decode("ascii", "replace").strip()
    if not text.isdigit():
        raise StorageError("XX001", f"{format_path} does not hold a format number")
    if int(text) > FORMAT:
        raise StorageError(
            "0A000", f"data directory {path} has format {text}, this shardb reads up to {FORMAT}"
        )
    return int(text)
