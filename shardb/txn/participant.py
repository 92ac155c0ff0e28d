"""One range's part in transactions: timestamps, states, commits and outcomes (PROTOCOL 1-6, 10).

No I/O, clock or randomness of its own: what happens comes in by method calls, and goes out through
`Host` (persist, apply) and reply callbacks. A reply that promises something is only given from a
`persist` callback.

Invariants:
- a timestamp assigned here exceeds every read served before and every version it replaces;
- from the step that assigns a timestamp until the outcome is applied, the transaction is in
  `prepared`, and readers at or above that timestamp wait for it;
- per transaction, the first of {prepared, aborted, committed in one phase} in the log is final.

An abort for an error of a statement is not logged: connections neither duplicate nor reorder, and a
lost answer is asked for with QueryOutcome, which logs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from shardb import limits
from shardb.errors import SqlError, StorageError
from shardb.rpc import messages as m
from shardb.txn import oracle, records, spans
from shardb.txn.decisions import Decisions, Done
from shardb.txn.host import Host
from shardb.txn.locks import LockTable
from shardb.txn.records import LockedKey
from shardb.txn.state import (
    ACTIVE,
    COMMITTING,
    DECIDING,
    DONE,
    PREPARED,
    PREPARING,
    Reply,
    State,
)

FORGET_AFTER: Final = oracle.from_ms(10 * 60 * 1000)  # PROTOCOL 2: at least ten minutes behind
PRUNE_EVERY: Final = 4096
PRUNE_MAX: Final = 2 * PRUNE_EVERY  # at once, as commits wait meanwhile
ABORTED_TS: Final = 0


def aborted_failure(message: str) -> m.Failure:
    """A refusal after which the transaction certainly has no effect."""
    hint = spans.RETRY if message == spans.CONFLICT else ""
    return m.Failure("40001", message, hint=hint, aborted=True)


class Participant:
    """The transactions of one range. `locks` is shared by the ranges of a node."""

    def __init__(self, range_id: int, host: Host, locks: LockTable) -> None:
        self.range_id = range_id
        self.host = host
        self.locks = locks
        self.states: dict[bytes, State] = {}
        self.prepared: dict[bytes, State] = {}
        self.bulk_writers: list[State] = []
        self.txn_max_bytes = limits.TXN_BUFFER_MAX_BYTES  # that a transaction keeps row by row
        self.max_read_ts = 0
        self.newest_commit_ts = 0
        self.known_issued = 0
        self._outcomes: dict[bytes, int] = {}  # commit_ts, or minus its age if aborted
        self._prune_at = PRUNE_EVERY
        self.decided: dict[bytes, int] = {}  # two-phase commits, until all have acknowledged
        self._decisions = Decisions(host)

    # --- timestamps and reads

    def fence(self, issued: int) -> None:
        """A fresh oracle timestamp, above every read a former life of this range has served."""
        self.max_read_ts = max(self.max_read_ts, issued)
        self.known_issued = max(self.known_issued, issued)

    def note(self, known_issued: int) -> None:
        """Learns the newest oracle timestamp."""
        if known_issued > self.known_issued:
            self.known_issued = known_issued

    def read_at(self, read_ts: int, floor: int) -> int:
        """Raises `max_read_ts` for a read and returns its timestamp; 0 asks for a lone read's."""
        ts = read_ts or max(self.newest_commit_ts, floor)
        if ts > self.max_read_ts:
            self.max_read_ts = ts
        return ts

    def blocking(
        self,
        table_id: int,
        keys: Sequence[bytes] | None,
        interval: tuple[bytes, bytes] | None,
        read_ts: int,
        own: State | None,
    ) -> State | None:
        """A prepared transaction whose outcome a read has to wait for, or None.

        The read is of `keys`, or of the interval. `read_ts` 0 waits for all prepared on them.
        """
        return next(self._blocking(table_id, keys, interval, read_ts, own), None)

    def all_blocking(
        self,
        table_id: int,
        keys: Sequence[bytes] | None,
        interval: tuple[bytes, bytes] | None,
        read_ts: int,
        own: State | None,
    ) -> list[State]:
        """All of them. Who waits for these, and for none that comes later, waits not for ever."""
        return list(self._blocking(table_id, keys, interval, read_ts, own))

    def _blocking(
        self,
        table_id: int,
        keys: Sequence[bytes] | None,
        interval: tuple[bytes, bytes] | None,
        read_ts: int,
        own: State | None,
    ) -> Iterator[State]:
        for state in self.prepared.values():
            if state is own or (read_ts and state.min_commit_ts > read_ts):
                continue
            if keys is not None:
                if any(state.writes_key(table_id, key) for key in keys):
                    yield state
            elif interval is not None and state.writes_interval(table_id, *interval):
                yield state

    # --- states

    def enter(self, txn: m.TxnRef, owner: object) -> State | m.Failure | None:
        """The state a statement belongs to, made if asked for; None: abort has to be recorded."""
        state = self.states.get(txn.txn_id)
        if txn.state_id == 0 and state is None:
            if txn.txn_id in self._outcomes or txn.txn_id in self.decided:
                return aborted_failure("the transaction has ended")
            if txn.txn_ts and txn.txn_ts <= self.known_issued - FORGET_AFTER:
                return aborted_failure("the transaction is too old to begin on a shard")
            state = State(txn.txn_id, self.host.new_state_id(), owner, self.txn_max_bytes)
            self.states[txn.txn_id] = state
            return state
        if state is None or state.state_id != txn.state_id or state.phase != ACTIVE:
            return None
        return state

    def refuse(self, txn_id: bytes, txn_ts: int, message: str, reply: Reply) -> None:
        """Records abort for a transaction without (the right) state here, and says so."""
        state = self.states.get(txn_id)
        if state is not None and state.phase != ACTIVE:
            reply(m.Failure("40001", message))
            return
        if self._outcomes.get(txn_id, 1) <= 0:
            reply(aborted_failure(message))
            return
        if txn_id in self._outcomes or txn_id in self.decided:
            reply(m.Failure("25000", "the transaction has been committed"))
            return
        if state is not None:
            self.drop(state)
        self.remember(txn_id, ABORTED_TS, txn_ts or self.known_issued)
        payload = records.encode_outcome(txn_id, txn_ts)

        def durable(error: StorageError | None) -> None:
            if error is not None:
                reply(m.Failure(error.sqlstate, error.message))
            else:
                reply(aborted_failure(message))

        self._persist(records.ABORT, payload, durable)

    def drop(self, state: State) -> None:
        """Ends an undecided, unprepared state without effect: its locks go."""
        assert state.phase == ACTIVE, state.phase
        self.end(state)
        if state.abandon is not None:
            state.abandon()

    def lose(self, owner: object) -> None:
        """A connection is gone: its unprepared transactions end."""
        for state in list(self.states.values()):
            if state.owner is owner:
                if state.phase == ACTIVE:
                    self.drop(state)
                else:
                    state.owner = None

    def rollback(self, message: m.Rollback) -> m.Message:
        """Drops a state (id 0: whichever there is), or takes back its later statements."""
        state = self.states.get(message.txn_id)
        unknown = state is None or message.state_id not in (0, state.state_id)
        if unknown or state is None or state.phase != ACTIVE:
            return aborted_failure("the transaction is not known here")
        if message.statement:
            state.undo(message.statement)
        else:
            self.remember(state.txn_id, ABORTED_TS, self.known_issued)
            self.drop(state)
        return m.Ack()

    def cancel(self, message: m.CancelStatement) -> None:
        """Ends the wait of the statement that is under way."""
        state = self.states.get(message.txn_id)
        if state is not None and state.phase == ACTIVE and state.cancel is not None:
            state.cancel(message.statement)

    # --- commit

    def commit_one(
        self,
        state: State,
        floor: int,
        known_issued: int,
        done: Callable[[int, SqlError | None], None],
    ) -> None:
        """Commits everything a state has here. `done(commit_ts, None)` once it is durable.

        Nothing is logged for a transaction that wrote nothing.
        """
        self.note(known_issued)
        if state.bulk:

            def sealed(error: StorageError | None) -> None:
                if error is not None:
                    self.remember(state.txn_id, ABORTED_TS, self.known_issued)
                    self.end(state)
                    done(0, error)
                else:
                    self._commit_sealed(state, floor, done)

            self._seal(state, sealed)
        else:
            self._commit_sealed(state, floor, done)

    def _commit_sealed(
        self, state: State, floor: int, done: Callable[[int, SqlError | None], None]
    ) -> None:
        if state.snapshot_ts and spans.conflicts(self, state):
            error = SqlError("40001", spans.CONFLICT, hint=spans.RETRY)
            self.refuse(state.txn_id, 0, spans.CONFLICT, lambda _: done(0, error))
            return
        commit_ts = self._assign(state, floor)
        if not state.has_writes:
            self.end(state)
            done(commit_ts, None)
            return
        if len(state.log) == 1 and not state.bulk:
            _, table_id, key, row, _ = state.log[0]
            sections = [
                records.Section(
                    table_id,
                    1,
                    len(key).to_bytes(4, "little") + key,
                    None if row is None else len(row).to_bytes(4, "little") + row,
                )
            ]
        else:
            sections = state.sections()
        payload = records.encode_commit(state.txn_id, commit_ts, sections)
        state.phase = COMMITTING
        state.min_commit_ts = commit_ts
        self.prepared[state.txn_id] = state

        def durable(error: StorageError | None) -> None:
            if error is not None:
                self.remember(state.txn_id, ABORTED_TS, commit_ts)
                self.end(state)
                done(0, error)
                return
            self.apply(state, commit_ts)
            self.remember(state.txn_id, commit_ts, commit_ts)
            self.end(state)
            done(commit_ts, None)

        self._persist(records.COMMIT, payload, durable)

    def commit_message(self, message: m.CommitOne, reply: Reply) -> None:
        """Carries out CommitOne."""
        txn = message.txn
        state = self.states.get(txn.txn_id)
        known = self._outcomes.get(txn.txn_id)
        if known is not None and known > 0 and state is None:
            reply(m.Committed(known))
            return
        if state is None or state.state_id != txn.state_id or state.phase != ACTIVE:
            self.refuse(txn.txn_id, txn.txn_ts, "the transaction was lost by a shard", reply)
            return
        if state.sealing:
            state.after.append(lambda: self.commit_message(message, reply))
            return
        try:
            state.keep(message.statements)
        except SqlError as error:
            self.refuse(txn.txn_id, txn.txn_ts, error.message, reply)
            return

        def done(commit_ts: int, error: SqlError | None) -> None:
            if error is not None:
                reply(m.Failure(error.sqlstate, error.message, hint=error.hint, aborted=True))
            else:
                reply(m.Committed(commit_ts))

        state.snapshot_ts, state.spans = message.snapshot_ts, message.spans
        self.commit_one(state, message.floor, message.known_issued, done)

    def prepare(self, message: m.Prepare, reply: Reply) -> None:
        """Carries out Prepare: phase one of a commit over several ranges."""
        txn = message.txn
        state = self.states.get(txn.txn_id)
        if state is not None and state.state_id == txn.state_id and state.phase != ACTIVE:
            self._answer_prepared(state, reply)
            return
        if state is None and txn.txn_id in self.decided:
            reply(m.Prepared(self.decided[txn.txn_id]))
            return
        if state is None and not txn.state_id:
            state = self._only_read(message)
        if state is None or state.state_id != txn.state_id:
            self.refuse(txn.txn_id, txn.txn_ts, "the transaction was lost by a shard", reply)
            return
        if state.sealing:
            state.after.append(lambda: self.prepare(message, reply))
            return
        try:
            state.keep(message.statements)
        except SqlError as error:
            self.refuse(txn.txn_id, txn.txn_ts, error.message, reply)
            return
        self.note(message.known_issued)
        state.snapshot_ts, state.spans = message.snapshot_ts, message.spans
        if not state.bulk:
            self._prepare_sealed(state, message, reply)
            return
        found = state

        def sealed(error: StorageError | None) -> None:
            if error is not None:
                self.remember(txn.txn_id, ABORTED_TS, self.known_issued)
                self.end(found)
                reply(m.Failure(error.sqlstate, error.message, aborted=True))
            else:
                self._prepare_sealed(found, message, reply)

        self._seal(state, sealed)

    def _only_read(self, message: m.Prepare) -> State | None:
        """The state of a transaction that has read here and no more; None if it is too late."""
        txn = message.txn
        entered = None if message.statements else self.enter(txn, None)
        if not isinstance(entered, State):
            return None
        entered.state_id = 0  # so that a repeated PREPARE finds it
        return entered

    def _prepare_sealed(self, state: State, message: m.Prepare, reply: Reply) -> None:
        txn = message.txn
        if state.snapshot_ts and spans.conflicts(self, state):
            self.refuse(txn.txn_id, txn.txn_ts, spans.CONFLICT, reply)
            return
        state.participants = message.participants
        state.min_commit_ts = self._assign(state, message.floor)
        payload = records.encode_prepare(
            records.Prepare(
                txn.txn_id,
                state.state_id,
                state.min_commit_ts,
                message.participants,
                _locks_without_writes(state),
                state.sections(),
                state.spans,
            )
        )
        state.phase = PREPARING
        self.prepared[txn.txn_id] = state

        def durable(error: StorageError | None) -> None:
            if error is not None:
                self.remember(txn.txn_id, ABORTED_TS, self.known_issued)
                after, state.after = state.after, []
                self.end(state)
                reply(m.Failure(error.sqlstate, error.message, aborted=True))
                for call in after:
                    call()
                return
            state.phase = PREPARED
            reply(m.Prepared(state.min_commit_ts))
            after, state.after = state.after, []
            for call in after:
                call()

        self._persist(records.PREPARE, payload, durable)

    def decide(self, txn_id: bytes, commit_ts: int, reply: Reply) -> None:
        """Carries out the outcome of a prepared transaction; the answer follows its record.

        A commit is applied before its record is durable: all participants are prepared, so that
        recovery can only find the same outcome. But the segments of large inserts are only linked
        once it is, for the manifest must not know of a link that the log does not.
        """
        state = self.states.get(txn_id)
        if state is None:
            self._decisions.answer(txn_id, reply)
            return
        if state.phase in (PREPARING, DECIDING):
            state.after.append(lambda: self.decide(txn_id, commit_ts, reply))
            return
        if state.phase == ACTIVE and commit_ts == 0:
            self.refuse(txn_id, 0, "the transaction was rolled back", lambda _: reply(m.Ack()))
            return
        assert state.phase == PREPARED, state.phase
        assert commit_ts == 0 or commit_ts >= state.min_commit_ts, (commit_ts, state.min_commit_ts)

        payload = records.encode_outcome(txn_id, commit_ts)
        if commit_ts and state.bulk:
            self._decide_bulk(state, commit_ts, payload, reply)
            return
        self._decisions.log(txn_id, payload, reply)
        if commit_ts:
            self.apply(state, commit_ts)
            self.decided[txn_id] = commit_ts
        else:
            self.remember(txn_id, ABORTED_TS, self.known_issued)
        self.end(state)

    def _decide_bulk(self, state: State, commit_ts: int, payload: bytes, reply: Reply) -> None:
        """Commits a prepared transaction once the record is durable; until then it is prepared."""
        state.phase = DECIDING

        def durable(error: StorageError | None) -> None:
            after, state.after = state.after, []
            if error is not None:
                state.phase = PREPARED
                reply(m.Failure(error.sqlstate, error.message))
            else:
                self.apply(state, commit_ts)
                self.decided[state.txn_id] = commit_ts
                reply(m.Ack())
                self.end(state)
            for call in after:
                call()

        self._persist(records.DECIDE, payload, durable)

    def query(self, message: m.QueryOutcome, reply: Reply) -> None:
        """Says what became of a transaction here; with `record`, no trace becomes an abort."""
        txn_id = message.txn_id
        state = self.states.get(txn_id)
        if state is not None:
            if state.phase in (COMMITTING, PREPARING, DECIDING):
                call = state.waiters if state.phase == COMMITTING else state.after
                call.append(lambda: self.query(message, reply))
                return
            if state.phase == PREPARED:
                reply(m.Outcome("prepared", state.min_commit_ts))
                return
        else:
            found = self.decided.get(txn_id, self._outcomes.get(txn_id))
            if found is not None:
                reply(m.Outcome("committed", found) if found > 0 else m.Outcome("aborted", 0))
                return
        if not message.record:
            reply(m.Outcome("unknown", 0))
            return

        def refused(answer: m.Message) -> None:
            certain = isinstance(answer, m.Failure) and answer.aborted
            reply(m.Outcome("aborted", 0) if certain else answer)

        self.refuse(txn_id, 0, "the transaction was aborted by recovery", refused)

    def forget(self, txn_ids: Sequence[bytes]) -> None:
        """All participants have acknowledged these: their outcomes may age."""
        for txn_id in txn_ids:
            commit_ts = self.decided.pop(txn_id, None)
            if commit_ts is not None:
                self.remember(txn_id, commit_ts, commit_ts)

    # --- inner workings

    def _persist(self, kind: int, payload: bytes, done: Done) -> None:
        """Appends a record, after the decisions applied here whose records did not get through.

        Records queued together fail together, so none that builds on a decision overtakes it.
        """
        self._decisions.log_owed()
        self.host.persist(kind, payload, done)

    def _seal(self, state: State, done: Done) -> None:
        """Has the bulk writes made ready for the log; `done` unless the state ends meanwhile.

        The state stays active until then: it has promised nothing.
        """
        state.sealing = True
        left = list(state.bulk.items())

        def step(error: StorageError | None) -> None:
            if state.phase == ACTIVE:
                if error is None and left:
                    table_id, bulk = left.pop()
                    bulk.when_ready(state.overlays.get(table_id), step)
                    return
                state.sealing = False
                done(error)
            after, state.after = state.after, []
            for call in after:
                call()

        step(None)

    def _assign(self, state: State, floor: int) -> int:
        ts = max(self.max_read_ts, floor, state.floor) + 1
        # Each request brings a fresh oracle timestamp, so this cannot happen (PROTOCOL 1).
        assert ts < self.known_issued + oracle.STEP, (ts, self.known_issued)
        return ts

    def apply(self, state: State, commit_ts: int) -> None:
        for table_id, bulk in state.bulk.items():
            for section in bulk.sections(table_id):
                self.host.apply_section(section, commit_ts)
            bulk.close(True)
        for table_id, overlay in state.overlays.items():
            if table_id not in state.bulk or not state.bulk[table_id].absorbed:
                self.host.apply(table_id, overlay, commit_ts)
        self.raise_to(commit_ts)

    def raise_to(self, commit_ts: int) -> None:
        if commit_ts > self.newest_commit_ts:
            self.newest_commit_ts = commit_ts
        if commit_ts > self.max_read_ts:
            self.max_read_ts = commit_ts

    def end(self, state: State) -> None:
        """Releases locks and wakes whoever waits for the outcome."""
        state.phase = DONE
        self.states.pop(state.txn_id, None)
        self.prepared.pop(state.txn_id, None)
        if state.bulk:
            self.bulk_writers = [other for other in self.bulk_writers if other is not state]
            for bulk in state.bulk.values():
                bulk.close(False)
        waiters, state.waiters = state.waiters, []
        grants = self.locks.release_all(state)
        # Readers first: the next writer would put itself in their way at once, for ever.
        failure: Exception | None = None
        for wake in (*waiters, *grants):
            try:
                wake()
            except Exception as error:  # a bug of theirs: the others wait for their turn
                failure = failure or error
        if failure is not None:
            raise failure

    def _answer_prepared(self, state: State, reply: Reply) -> None:
        if state.phase in (PREPARED, DECIDING):
            reply(m.Prepared(state.min_commit_ts))
        else:
            state.after.append(lambda: self._answer_prepared(state, reply))

    def remember(self, txn_id: bytes, commit_ts: int, age: int) -> None:
        """Keeps an outcome; now and then those that are old enough go."""
        self._outcomes[txn_id] = commit_ts or -age
        if len(self._outcomes) >= self._prune_at:
            horizon = max(self.known_issued, self.newest_commit_ts) - FORGET_AFTER
            old = []
            for found, value in islice(self._outcomes.items(), PRUNE_MAX):
                if abs(value) > horizon:
                    break
                old.append(found)
            for found in old:
                del self._outcomes[found]
            self._prune_at = len(self._outcomes) + PRUNE_EVERY


def _locks_without_writes(state: State) -> tuple[LockedKey, ...]:
    return tuple(
        LockedKey(table_id, key, mode)
        for (table_id, key), mode in state.held.items()
        if key not in state.overlays.get(table_id, ())
    )
