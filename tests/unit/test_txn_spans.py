"""SERIALIZABLE on one range: what has been read must still be so at the commit, and stay so."""

from __future__ import annotations

import pytest

from shardb.rpc import messages as m
from shardb.txn import records, spans
from shardb.txn.oracle import STEP
from shardb.txn.participant import Participant
from shardb.txn.replay import replay_outcome, replay_prepare
from shardb.txn.state import State
from tests.support.participants import TXN, Host, enter, participant

SNAPSHOT = 2 * STEP
OTHER = b"o" * 16
ALL = m.Span(7, b"", b"")
READ = m.Span(7, b"a", b"c")
NEAR = m.Span(7, b"c", b"d")


def write(found: Participant, txn_id: bytes, key: bytes) -> State:
    state = found.enter(m.TxnRef(txn_id, 0, 2, STEP), None)
    assert isinstance(state, State)
    state.put(2, 7, key, b"row")
    state.statements.add(2)
    return state


def commit(
    found: Participant, host: Host, state: State, read: tuple[m.Span, ...] = (), ts: int = SNAPSHOT
) -> m.Message:
    replies: list[m.Message] = []
    ref = m.TxnRef(state.txn_id, state.state_id, 2, STEP)
    message = m.CommitOne(1, ref, (2,), 0, 4 * STEP, ts if read else 0, read)
    found.commit_message(message, replies.append)
    host.flush()
    return replies[0]


def prepare_read(found: Participant, read: tuple[m.Span, ...], txn_id: bytes = TXN) -> m.Message:
    """PREPARE of a transaction that has only read here."""
    replies: list[m.Message] = []
    ref = m.TxnRef(txn_id, 0, 2, STEP)
    found.prepare(m.Prepare(1, ref, (), (), 0, 4 * STEP, SNAPSHOT, read), replies.append)
    host = found.host
    assert isinstance(host, Host)
    host.flush()
    return replies[0]


@pytest.mark.parametrize(("key", "refused"), [(b"b", True), (b"c", False)])
def test_a_version_newer_than_the_snapshot_refuses(key: bytes, refused: bool) -> None:
    found, host = participant()
    found.read_at(SNAPSHOT, 0)
    assert isinstance(commit(found, host, write(found, OTHER, key)), m.Committed)
    answer = commit(found, host, write(found, TXN, b"x"), (READ,))
    if refused:
        assert answer == m.Failure("40001", spans.CONFLICT, hint=spans.RETRY, aborted=True)
        assert host.log[-1][0] == records.ABORT and (7, b"x") not in host.rows
    else:
        assert isinstance(answer, m.Committed)


def test_a_commit_in_flight_counts_as_one() -> None:
    found, host = participant()
    other = write(found, OTHER, b"b")
    ref = m.TxnRef(OTHER, other.state_id, 2, STEP)
    found.commit_message(m.CommitOne(1, ref, (2,), 0, 4 * STEP), lambda _: None)
    answer = commit(found, host, write(found, TXN, b"x"), (READ,))
    assert isinstance(answer, m.Failure) and answer.sqlstate == "40001"


def test_spans_are_held_against_serializable_writers_until_the_outcome() -> None:
    found, host = participant()
    answer = prepare_read(found, (READ,))
    assert answer == m.Prepared(STEP + 1)
    refused = commit(found, host, write(found, b"1" * 16, b"b"), (NEAR,))
    assert isinstance(refused, m.Failure) and refused.sqlstate == "40001"
    assert isinstance(commit(found, host, write(found, b"2" * 16, b"c"), (NEAR,)), m.Committed)
    # Others write as they like (PROTOCOL 5).
    assert isinstance(commit(found, host, write(found, b"3" * 16, b"b")), m.Committed)
    replies: list[m.Message] = []
    found.decide(TXN, 3 * STEP + 7, replies.append)
    host.flush()
    assert replies == [m.Ack()] and not found.prepared
    last = commit(found, host, write(found, b"4" * 16, b"a"), (NEAR,), 3 * STEP)
    # What came after read what it had read: it commits above it.
    assert isinstance(last, m.Committed) and last.commit_ts > 3 * STEP + 7


def test_a_prepare_that_only_read_is_answered_again_and_refused_when_late() -> None:
    found, _ = participant()
    first = prepare_read(found, (READ,))
    assert prepare_read(found, (READ,)) == first and len(found.prepared) == 1
    found.query(m.QueryOutcome(1, OTHER, True), lambda _: None)
    late = prepare_read(found, (READ,), OTHER)
    assert isinstance(late, m.Failure) and late.aborted


def test_a_restarted_range_holds_the_spans() -> None:
    found, host = participant()
    prepare_read(found, (READ,))
    again, fresh = participant()
    replay_prepare(again, records.decode_prepare(host.log[0][1]))
    refused = commit(again, fresh, write(again, b"1" * 16, b"b"), (NEAR,))
    assert isinstance(refused, m.Failure) and refused.sqlstate == "40001"
    replay_outcome(again, records.Outcome(TXN, 3 * STEP), records.DECIDE)
    assert isinstance(commit(again, fresh, write(again, b"2" * 16, b"b"), (NEAR,)), m.Committed)
    assert again.max_read_ts >= 3 * STEP


def test_own_writes_are_no_conflict() -> None:
    found, host = participant()
    state = enter(found)
    assert isinstance(commit(found, host, state, (ALL,)), m.Committed)


def test_a_prepare_record_without_spans_is_read() -> None:
    record = records.Prepare(TXN, 3, 5, (), (), [], (READ,))
    assert records.decode_prepare(records.encode_prepare(record)) == record
    old = records.encode_prepare(record._replace(spans=()))
    # As it was written before there were spans: a list of two.
    old = old.replace(b"\x93\x90\x90\x90", b"\x92\x90\x90").replace(
        (4).to_bytes(4, "little"), (3).to_bytes(4, "little"), 1
    )
    assert records.decode_prepare(old) == record._replace(spans=())
