"""When memtables are flushed, runs merged and the log cut; the engine's hands in the background.

Runs on the engine's thread and hands jobs to workers: at most one flush and one merge at a time, so
that a long merge never keeps a flush waiting. What fails is tried again later; what it had made is
removed. Writers are told to wait (`pressed`) when flushes or merges cannot keep up.

Invariant: a tablet's unsettled items settle oldest first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from shardb import limits
from shardb._core.coreerror import CoreError
from shardb._core.memtable import MemTable
from shardb._core.runmerge import RunMerge
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb.errors import SqlError, StorageError
from shardb.storage import jobs, policy
from shardb.storage.edits import Edit
from shardb.storage.failures import storage_error
from shardb.storage.segmentformat import SegmentMeta
from shardb.storage.tablet import Frozen, Linked, Tablet

if TYPE_CHECKING:
    from shardb.storage.engine import Engine

log = logging.getLogger("shardb.storage")


class Maintenance:
    """Keeps one engine's tablets in shape. `start` once everything is recovered."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._flushing: Tablet | None = None
        self._merging: Tablet | None = None
        self._linking: set[tuple[int, int]] = set()  # tablets with a link's edit under way
        self._work: set[RunMerge] = set()
        self._waiting: list[Callable[[], None]] = []
        self._blocked: dict[Tablet, int] = {}  # the order of the newest run that damage keeps
        self._retry_in_ms = 0
        self._trim_ms = 0
        self._started = False
        self.stopped = False
        self.pressed = False
        self.failure: StorageError | None = None  # of what was tried last, until something succeeds
        self.flushes = 0
        self.merges = 0
        self.merged_bytes = 0

    def start(self) -> None:
        """Begins to look after the tablets."""
        self._started = True
        self._tick()

    def stop(self) -> None:
        """Ends what is under way as soon as it can be."""
        self.stopped = True
        for work in list(self._work):
            work.cancel()

    def when_room(self, call: Callable[[], None]) -> None:
        """Calls once writers need not wait any more, or their wait is in vain."""
        self._waiting.append(call)

    def _tick(self) -> None:
        if self.stopped:
            return
        self._engine.files.call_later(limits.MAINTENANCE_TICK_MS, self._tick)
        self._retry_in_ms = max(self._retry_in_ms - limits.MAINTENANCE_TICK_MS, 0)
        self._freeze_some()
        self._trim_ms += limits.MAINTENANCE_TICK_MS
        if self._trim_ms >= limits.CACHE_TRIM_MS:
            self._trim_ms = 0
            self._trim()
            self._engine.cut_log()  # what is kept for its age gets old on a shard that is idle, too
        self.pump()

    def _trim(self) -> None:
        """Drops caches that have grown too large; they fill again with what is used."""
        tablets = list(self._engine.tablets.values())
        most = self._engine.budget.cache_bytes // 2
        if sum(tablet.shadows.memory_bytes for tablet in tablets) > most:
            for tablet in tablets:
                tablet.shadows.clear()
        segments = [segment for tablet in tablets for segment in tablet.open_segments]
        if sum(segment.held_bytes for segment in segments) > most:
            for segment in segments:
                segment.trim()

    def pump(self) -> None:
        """Starts what is due, and lets writers go on or has them wait."""
        if not self._started or self.stopped:
            return
        if not self._retry_in_ms:
            self._settle_links()
            self._flush_next()
            self._merge_next()
        self._press()

    # --- pressure

    def _freeze_some(self) -> None:
        """Freezes memtables that are large, or hold up too much memory or log."""
        engine = self._engine
        budget = engine.budget
        for tablet in engine.tablets.values():
            if tablet.memtable.memory_bytes >= budget.memtable_bytes:
                engine.freeze(tablet)
        active: list[tuple[int, Callable[[], object]]] = [
            (tablet.active_bytes, partial(engine.freeze, tablet))
            for tablet in engine.tablets.values()
        ]
        active += [(private.unsealed_bytes, private.seal) for private in engine.privates]
        size, freeze = max(active, key=itemgetter(0), default=(0, lambda: None))
        others = engine.memtable_bytes - sum(size for size, _ in active)
        if size and not others and engine.memtable_bytes > budget.memtables_bytes * 7 // 10:
            freeze()  # one is enough, as long as it is not written yet
        for tablet in engine.tablets.values():
            if not tablet.memtable.entries:
                continue
            if not tablet.since_log_bytes:
                tablet.since_log_bytes = engine.log_bytes
            elif engine.log_bytes - tablet.since_log_bytes > limits.LOG_UNSETTLED_MAX_BYTES:
                engine.freeze(tablet)

    def _press(self) -> None:
        engine = self._engine
        full = engine.memtable_bytes > engine.budget.memtables_bytes
        if not full:
            full = any(
                len(self._mergeable(tablet)) > limits.RUNS_STALL_MAX
                for tablet in engine.tablets.values()
            )
        self.pressed = full
        if not full or self.failure is not None:
            waiting, self._waiting = self._waiting, []
            for call in waiting:
                call()

    # --- settling

    def _settle_links(self) -> None:
        """Has the manifest name what transactions linked, where nothing older is unsettled."""
        for tablet in self._engine.tablets.values():
            if tablet.unsettled and tablet.key not in self._linking:
                item = tablet.unsettled[0]
                if isinstance(item, Linked):
                    self._link(tablet, item)

    def _link(self, tablet: Tablet, item: Linked) -> None:
        self._linking.add(tablet.key)

        def done(error: StorageError | None) -> None:
            self._linking.discard(tablet.key)
            if error is not None:
                self._failed("name a transaction's segments in the manifest", error)
            elif not tablet.dropped:
                tablet.settle(item)
                self.failure = None
                self._engine.cut_log()
                self.pump()

        self._engine.manifest.append(self._edit(tablet, item.index, item.metas), done)

    def _flush_next(self) -> None:
        if self._flushing is not None:
            return
        due = [
            tablet
            for tablet in self._engine.tablets.values()
            if tablet.unsettled and isinstance(tablet.unsettled[0], Frozen)
        ]
        if due:
            tablet = max(due, key=lambda tablet: tablet.memory_bytes)
            item = tablet.unsettled[0]
            assert isinstance(item, Frozen)
            self._flush(tablet, item)

    def _flush(self, tablet: Tablet, item: Frozen) -> None:
        engine = self._engine
        schema = tablet.schema
        columns = schema.columns_of(item.version)
        gc_ts = engine.gc_ts()
        work = jobs.merge(
            [(item.memtable, None)],
            schema.layout(item.version),
            columns,
            gc_ts,
            False,
            engine.budget.group_bytes,
        )
        target = engine.target(tablet, item.order, columns, item.version)
        self._flushing = tablet
        self._work.add(work)

        def done(made: list[Segment] | None, error: BaseException | None) -> None:
            self._work.discard(work)
            if made is None:
                self._flushing = None
                self._failed("flush a memtable", error)
                return
            self._flushed(tablet, item, made, gc_ts)

        engine.background.run(self._job(tablet, work, target, [item.memtable]), done)

    def _job(
        self,
        tablet: Tablet,
        work: RunMerge,
        target: jobs.Target,
        sources: Sequence[MemTable | Segment],
    ) -> Callable[[], list[Segment]]:
        """Writes, opens what was written, and tells the shadows what takes the sources' place."""
        shadows = tablet.shadows
        runs: Runs | None = None
        if shadows.memory_bytes:  # else nobody has scanned it
            with contextlib.suppress(StorageError):  # damaged: whoever reads it will hear of it
                runs = tablet.runs()

        def job() -> list[Segment]:
            made = jobs.make_segments(work, target)
            if runs is not None:
                shadows.replace(runs, sources, made)
            return made

        return job

    def _flushed(self, tablet: Tablet, item: Frozen, made: list[Segment], gc_ts: int) -> None:
        """The files are there; now they have to be named."""
        engine = self._engine
        metas = metas_of(made)

        def done(error: StorageError | None) -> None:
            self._flushing = None
            if error is not None or tablet.dropped:
                engine.remove_later(meta.number for meta in metas)
                if error is not None:
                    self._failed("name a flushed segment in the manifest", error)
                return
            tablet.settle(item, made)
            tablet.gc_ts = max(tablet.gc_ts, gc_ts)
            self.flushes += 1
            self.failure = None
            engine.cut_log()
            self.pump()

        if tablet.dropped or self.stopped:
            self._flushing = None
            engine.remove_later(meta.number for meta in metas)
            return
        engine.manifest.append(self._edit(tablet, item.index, metas, gc_ts=gc_ts), done)

    def _edit(
        self,
        tablet: Tablet,
        index: int,
        added: Sequence[SegmentMeta],
        removed: Sequence[SegmentMeta] = (),
        gc_ts: int = 0,
    ) -> Edit:
        engine = self._engine
        state = engine.state_of(tablet, index, gc_ts)
        numbers = [max(meta.number, meta.order) + 1 for meta in added]
        return Edit(
            put_tablets=(state,),
            remove_segments=tuple(meta.number for meta in removed),
            add_segments=tuple(added),
            next_number=max(numbers, default=0),
            range_indexes=engine.index_of(tablet.range_id, state.flushed_index),
        )

    # --- merging

    def _merge_next(self) -> None:
        if self._merging is not None:
            return
        gc_ts = self._engine.gc_ts()
        for tablet in sorted(
            self._engine.tablets.values(), key=lambda tablet: len(tablet.shape), reverse=True
        ):
            if tablet.unsettled_links:
                continue
            runs = self._mergeable(tablet)
            choice = policy.choose(runs, gc_ts, whole=len(runs) == len(tablet.shape))
            if choice is not None:
                self._merge(tablet, choice, gc_ts)
                return

    def _mergeable(self, tablet: Tablet) -> list[list[SegmentMeta]]:
        """The tablet's runs, newest first, up to where damage was found."""
        kept = self._blocked.get(tablet, 0)
        if not kept:
            return tablet.shape
        return [run for run in tablet.shape if all(meta.order > kept for meta in run)]

    def _merge(self, tablet: Tablet, choice: policy.Choice, gc_ts: int) -> None:
        engine = self._engine
        chosen = tablet.shape[choice.first : choice.end]
        inputs = [meta for run in chosen for meta in run]
        try:
            segments = [tablet.segment(meta) for meta in inputs]
        except StorageError as error:
            self._block(tablet, inputs, error)
            return
        version = max(tablet.version_of(segment) for segment in segments)
        sources = [tablet.piece(segment, version) for segment in segments]
        columns = tablet.schema.columns_of(version)
        layout, group_bytes = tablet.schema.layout(version), engine.budget.group_bytes
        work = jobs.merge(sources, layout, columns, gc_ts, choice.bottom, group_bytes)
        order = max(meta.order for meta in inputs)
        target = engine.target(tablet, order, columns, version)
        self._merging = tablet
        self._work.add(work)

        def done(made: list[Segment] | None, error: BaseException | None) -> None:
            self._work.discard(work)
            if made is None:
                self._merging = None
                if isinstance(error, CoreError) and error.sqlstate == "XX001":
                    self._block(tablet, inputs, error)
                else:
                    self._failed("merge segments", error)
                return
            self._merged(tablet, inputs, made, gc_ts)

        engine.background.run(self._job(tablet, work, target, segments), done)

    def _merged(
        self, tablet: Tablet, inputs: list[SegmentMeta], made: list[Segment], gc_ts: int
    ) -> None:
        engine = self._engine
        metas = metas_of(made)

        def done(error: StorageError | None) -> None:
            self._merging = None
            if error is not None or tablet.dropped:
                engine.remove_later(meta.number for meta in metas)
                if error is not None:
                    self._failed("name merged segments in the manifest", error)
                return
            tablet.replace(inputs, made)
            tablet.gc_ts = max(tablet.gc_ts, gc_ts)
            self.merges += 1
            self.failure = None
            self.merged_bytes += sum(meta.bytes for meta in metas)
            engine.remove_later(meta.number for meta in inputs)
            self.pump()

        if tablet.dropped or self.stopped:
            self._merging = None
            engine.remove_later(meta.number for meta in metas)
            return
        engine.manifest.append(self._edit(tablet, 0, metas, inputs, gc_ts), done)

    # --- failures

    def _block(
        self, tablet: Tablet, inputs: Sequence[SegmentMeta], error: StorageError | CoreError
    ) -> None:
        """Damage: reads say so, and merges leave alone what is there."""
        self._blocked[tablet] = max(meta.order for meta in inputs)
        log.error("range %d is not merged as before: %s", tablet.range_id, error.message)

    def _failed(self, what: str, error: BaseException | None) -> None:
        if self.stopped:
            return
        if isinstance(error, OSError):
            self.failure = storage_error(what, error)
        elif isinstance(error, SqlError | CoreError):
            self.failure = StorageError(error.sqlstate, f"could not {what}: {error.message}")
        else:
            self.failure = StorageError("58030", f"could not {what}: {error!r}")
        log.error("%s; it will be tried again", self.failure.message)
        self._retry_in_ms = limits.MAINTENANCE_RETRY_MS
        self._press()


def metas_of(segments: Sequence[Segment]) -> list[SegmentMeta]:
    """What the manifest says of segments."""
    metas = []
    for segment in segments:
        assert isinstance(segment.meta, SegmentMeta)
        metas.append(segment.meta)
    return metas
