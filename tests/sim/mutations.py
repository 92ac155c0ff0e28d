"""Rules of the protocol, each broken on purpose: the simulator has to notice.

A mutation replaces something of the running code for a while; production has no trace of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from shardb.errors import StorageError
from shardb.node import node, ranges
from shardb.rpc import messages as m
from shardb.txn import coordinator, recovery, spans
from shardb.txn.participant import Participant
from shardb.txn.state import ACTIVE, State

Patch = Callable[[Any, str, Any], None]


def reply_before_sync(patch: Patch) -> None:
    """A record is answered for when it is queued."""
    original = ranges.LocalRange.persist

    def persist(
        self: Any, kind: int, payload: bytes, done: Callable[..., None], lazy: bool = False
    ) -> None:
        told: list[bool] = []

        def once(error: StorageError | None) -> None:
            if not told:
                told.append(True)
                done(error)

        original(self, kind, payload, once, lazy)
        self.engine.files.call_later(0, lambda: once(None))

    patch(ranges.LocalRange, "persist", persist)


def no_max_read_ts(patch: Patch) -> None:
    """Reads leave no trace: a commit may get a timestamp below them (PROTOCOL 1)."""

    def read_at(self: Participant, read_ts: int, floor: int) -> int:
        return read_ts or max(self.newest_commit_ts, floor)

    patch(Participant, "read_at", read_at)


def commit_at_minimum(patch: Patch) -> None:
    """A transaction over several ranges commits at the least of the answers."""

    def prepared(self: Any, index: int, min_commit_ts: int) -> list[Any]:
        if self.phase != coordinator.PREPARING:
            return list(self._late(index))
        self._answers[index] = min_commit_ts
        if any(answer is None for answer in self._answers):
            return []
        return list(self._commit(min(self._answers)))

    def decide(
        self: Participant, txn_id: bytes, commit_ts: int, reply: Callable[[m.Message], None]
    ) -> None:
        state = self.states.get(txn_id)
        if state is not None and commit_ts:
            state.min_commit_ts = min(state.min_commit_ts, commit_ts)
        original(self, txn_id, commit_ts, reply)

    original = Participant.decide
    patch(coordinator.TwoPhaseCommit, "prepared", prepared)
    patch(Participant, "decide", decide)


def late_prepare_accepted(patch: Patch) -> None:
    """A PREPARE after an abort, or without the statements before it, succeeds (PROTOCOL 2, 3)."""
    original = Participant.prepare

    def prepare(self: Participant, message: m.Prepare, reply: Callable[[m.Message], None]) -> None:
        txn = message.txn
        state = self.states.get(txn.txn_id)
        if state is None and txn.txn_id not in self.decided:
            self._outcomes.pop(txn.txn_id, None)
            state = State(txn.txn_id, txn.state_id, None)
            state.statements = set(message.statements)
            self.states[txn.txn_id] = state
        original(self, message, reply)

    patch(Participant, "prepare", prepare)


def lock_released_early(patch: Patch) -> None:
    """Locks go with the prepare record, before the outcome (PROTOCOL 4)."""
    original = Participant._prepare_sealed

    def prepare(
        self: Participant, state: State, message: m.Prepare, reply: Callable[[m.Message], None]
    ) -> None:
        original(self, state, message, reply)
        if state.phase != ACTIVE:
            for wake in self.locks.release_all(state):
                wake()

    patch(Participant, "_prepare_sealed", prepare)


def spans_not_held(patch: Patch) -> None:
    """Nobody looks at what SERIALIZABLE transactions that are prepared have read (PROTOCOL 5)."""

    def conflicts(found: Participant, state: State) -> bool:
        changed_since = found.host.changed_since
        return any(
            changed_since(span.table_id, span.low, span.high, state.snapshot_ts)
            for span in state.spans
        ) or any(
            other is not state and other.writes_any(state.spans)
            for other in found.prepared.values()
        )

    patch(spans, "conflicts", conflicts)


def spans_not_checked(patch: Patch) -> None:
    """SERIALIZABLE is REPEATABLE READ."""
    patch(spans, "conflicts", lambda found, state: False)


def intents_dropped(patch: Patch) -> None:
    """A restarted shard knows nothing of what it had prepared."""
    patch(node, "replay_prepare", lambda found, record: None)


def readers_do_not_wait(patch: Patch) -> None:
    """A reader takes no notice of a prepared write below its timestamp."""
    patch(Participant, "_blocking", lambda self, *rest: iter(()))


def abort_not_recorded(patch: Patch) -> None:
    """Recovery answers abort for what has not prepared, and writes nothing down (PROTOCOL 2)."""

    def query(
        self: Participant, message: m.QueryOutcome, reply: Callable[[m.Message], None]
    ) -> None:
        state = self.states.get(message.txn_id)
        known = message.txn_id in self.decided or message.txn_id in self._outcomes
        if message.record and not known and (state is None or state.phase == ACTIVE):
            reply(m.Outcome("aborted", 0))
        else:
            original(self, message, reply)

    original = Participant.query
    patch(Participant, "query", query)


def recovery_at_minimum(patch: Patch) -> None:
    """Who recovers a transaction commits it at its own range's timestamp."""
    original = recovery.Recovery.answer

    def answer(self: Any, position: int, outcome: m.Outcome) -> int | None:
        decided = original(self, position, outcome)
        return outcome.ts if decided and outcome.state == "prepared" else decided

    patch(recovery.Recovery, "answer", answer)


MUTATIONS: Final[dict[str, Callable[[Patch], None]]] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        reply_before_sync,
        no_max_read_ts,
        commit_at_minimum,
        late_prepare_accepted,
        lock_released_early,
        spans_not_held,
        spans_not_checked,
        intents_dropped,
        readers_do_not_wait,
        abort_not_recorded,
        recovery_at_minimum,
    )
}


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """The code with this mutation; "" is as it is."""
    undo: list[tuple[Any, str, Any]] = []

    def patch(target: Any, attribute: str, value: Any) -> None:
        undo.append((target, attribute, getattr(target, attribute)))
        setattr(target, attribute, value)

    if name:
        MUTATIONS[name](patch)
    try:
        yield
    finally:
        for target, attribute, value in reversed(undo):
            setattr(target, attribute, value)
