"""How a participant comes back from its log: each record carried out again, in order.

It must not write to the log: what it finds there has been answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardb._core.frames import split_items
from shardb.errors import StorageError
from shardb.txn import records
from shardb.txn.lockmodes import UPDATE
from shardb.txn.participant import ABORTED_TS, Participant
from shardb.txn.state import PREPARED, State


def replay_commit(participant: Participant, record: records.Commit) -> None:
    """A one-phase commit."""
    for section in record.sections:
        participant.host.apply_section(section, record.commit_ts)
    participant.raise_to(record.commit_ts)
    participant.remember(record.txn_id, record.commit_ts, record.commit_ts)


def replay_prepare(participant: Participant, record: records.Prepare) -> None:
    """A prepare: the transaction is in doubt until an outcome follows."""
    state = State(record.txn_id, record.state_id, None)
    state.phase = PREPARED
    state.min_commit_ts = record.min_commit_ts
    state.participants = record.participants
    state.spans = record.spans
    for section in record.sections:
        if section.links is not None:
            bulk = participant.host.restore_bulk(section)
            if bulk is not None:
                state.bulk[section.table_id] = bulk
                participant.bulk_writers.append(state)
            continue
        keys = _items(section.keys, section.count)
        rows: Sequence[bytes | None] = (
            [None] * section.count if section.rows is None else _items(section.rows, section.count)
        )
        for key, row in zip(keys, rows, strict=True):
            state.put(0, section.table_id, key, row)
            # Perhaps it was held in a weaker mode: then others may hold the key beside it.
            participant.locks.restore(state, (section.table_id, key), UPDATE)
    for locked in record.locks:
        participant.locks.restore(state, (locked.table_id, locked.key), locked.mode)
    participant.states[record.txn_id] = state
    participant.prepared[record.txn_id] = state


def replay_outcome(participant: Participant, record: records.Outcome, kind: int) -> None:
    """A decide or abort record."""
    commit_ts = record.ts if kind == records.DECIDE else ABORTED_TS
    state = participant.states.get(record.txn_id)
    if state is not None:
        if commit_ts:
            participant.apply(state, commit_ts)
        participant.end(state)
    if commit_ts:
        participant.decided[record.txn_id] = commit_ts
    else:
        participant.remember(record.txn_id, ABORTED_TS, participant.newest_commit_ts)


def _items(data: bytes, count: int) -> list[bytes]:
    """The items of a section read from the log."""
    try:
        return split_items(data, count)
    except ValueError as error:
        raise StorageError("XX001", f"a log record is damaged: {error}") from error
