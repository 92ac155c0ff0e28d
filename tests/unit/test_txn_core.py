"""The pure parts of transactions: oracle, records, two-phase commit, participant, frames."""

from __future__ import annotations

import random
from array import array

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core import frames
from shardb.errors import StorageError
from shardb.meta.descriptors import Column, Range, Table
from shardb.rpc import framing
from shardb.rpc import messages as m
from shardb.txn import records
from shardb.txn.coordinator import ABORTED, COMMITTED, Ask, Report, Tell, TwoPhaseCommit
from shardb.txn.lockmodes import KEY_SHARE, SHARE, UPDATE
from shardb.txn.oracle import STEP, Oracle
from shardb.txn.recovery import Recovery
from shardb.txn.replay import replay_outcome, replay_prepare
from tests.support.participants import TXN, enter, participant, prepare

# --- oracle


@given(st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), max_size=200))
def test_oracle_ascends_below_its_persisted_bound(steps: list[tuple[int, bool]]) -> None:
    oracle = Oracle(0)
    last = 0
    for now_ms, persist in steps:
        if persist and (bound := oracle.wanted_bound(now_ms)):
            oracle.persisted(bound)
        ts = oracle.issue(now_ms)
        if ts:
            assert last < ts < oracle.bound
            assert ts % STEP == 0
            last = ts
    assert Oracle(oracle.bound).issue(0) == 0  # a successor needs a bound of its own


# --- records


def items(*values: bytes) -> bytes:
    return frames.join_items(values)


SECTIONS = [
    records.Section(7, 2, items(b"a", b"b"), items(b"row", b"")),
    records.Section(7, 1, items(b"c"), None),
]


def test_record_bytes_do_not_change() -> None:
    assert records.encode_outcome(TXN, 5).hex() == (
        "01000102030405060708090a0b0c0d0e0f0500000000000000"
    )
    section = records.Section(7, 1, items(b"k"), items(b"r"))
    assert records.encode_commit(TXN, 5, [section]).hex() == (
        "01000102030405060708090a0b0c0d0e0f0500000000000000"
        "01000000"
        "0700000000000000"
        "01"
        "01000000"
        "0500000000000000"
        "0500000000000000"
        "010000006b"
        "0100000072"
    )


def test_records_come_back() -> None:
    commit = records.decode_commit(records.encode_commit(TXN, 9, SECTIONS))
    assert commit == records.Commit(TXN, 9, SECTIONS)
    prepare = records.Prepare(
        TXN,
        3,
        8,
        (m.Participant(1, 2, b"k", 3),),
        (records.LockedKey(7, b"x", KEY_SHARE),),
        SECTIONS,
    )
    assert records.decode_prepare(records.encode_prepare(prepare)) == prepare
    assert records.decode_outcome(records.encode_outcome(TXN, 4)) == records.Outcome(TXN, 4)
    descriptor = Range(1, 2, b"", b"z", 1, 1, (1,), (1,))
    table = Table(5, "t", 2, (Column(1, "id", 3),), (0,))
    install = records.decode_install(records.encode_install(descriptor, table))
    assert (install.range, install.table) == (descriptor, table)


def test_a_prepare_of_before_locks_had_modes_is_read() -> None:
    payload = bytes.fromhex(
        "01000102030405060708090a0b0c0d0e0f03000000000000000800000000000000"
        "170000009391940102c4016b03929307c40178c29307c40179c39000000000"
    )
    found = records.decode_prepare(payload)
    assert found.locks == (records.LockedKey(7, b"x", SHARE), records.LockedKey(7, b"y", UPDATE))
    assert found.participants == (m.Participant(1, 2, b"k", 3),)


@given(st.data())
def test_cut_records_are_refused(data: st.DataObject) -> None:
    payload = records.encode_commit(TXN, 9, SECTIONS)
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(StorageError):
        records.decode_commit(payload[:cut])


def test_a_newer_record_version_is_refused_clearly() -> None:
    with pytest.raises(StorageError) as caught:
        records.decode_outcome(b"\x02" + records.encode_outcome(TXN, 4)[1:])
    assert caught.value.sqlstate == "0A000"


@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=30))), st.integers(1, 80))
def test_slices_are_the_items_again(pairs: list[tuple[bytes, bytes]], slice_bytes: int) -> None:
    keys, rows = items(*(key for key, _ in pairs)), items(*(row for _, row in pairs))
    slices = frames.slice_items(keys, rows, len(pairs), slice_bytes)
    assert b"".join(key for _, key, _ in slices) == keys
    assert b"".join(row for _, _, row in slices) == rows
    assert sum(count for count, _, _ in slices) == len(pairs)
    for count, some, other in slices:
        assert count and len(frames.split_items(some, count)) == count
        assert len(frames.split_items(other, count)) == count
    for _, some, other in slices[:-1]:
        assert slice_bytes <= len(some) + len(other) < slice_bytes + 2 * 4 + 9 + 30
    for wrong in (len(pairs) + 1, len(pairs) - 1):
        if wrong >= 0 and pairs:
            with pytest.raises(ValueError, match="item"):
                frames.slice_items(keys, rows, wrong, slice_bytes)


# --- two-phase commit and recovery


def test_all_prepared_is_committed_at_the_maximum() -> None:
    machine = TwoPhaseCommit(2)
    assert machine.prepared(0, 10) == []
    assert machine.prepared(1, 12) == [Report(12), Tell(0, 12), Tell(1, 12)]
    assert machine.phase == COMMITTED


def test_one_refusal_aborts_and_late_answers_are_told() -> None:
    machine = TwoPhaseCommit(3)
    assert machine.refused(1) == [Report(0), Tell(0, 0), Tell(2, 0)]
    assert machine.prepared(2, 5) == [Tell(2, 0)]
    assert machine.phase == ABORTED


def test_a_lost_answer_is_asked_for_and_never_guessed() -> None:
    machine = TwoPhaseCommit(2)
    assert machine.lost(0) == [Ask(0)]
    assert machine.prepared(1, 5) == []
    assert machine.gave_up() == [Report(None)]
    assert machine.prepared(0, 9) == []


def test_recovery_decides_only_when_it_must() -> None:
    recovery = Recovery(2)
    assert recovery.answer(0, m.Outcome("prepared", 5)) is None
    assert recovery.answer(1, m.Outcome("unknown", 0)) is None
    assert recovery.answer(1, m.Outcome("prepared", 9)) == 9
    assert Recovery(2).answer(0, m.Outcome("aborted", 0)) == 0
    assert Recovery(2).answer(0, m.Outcome("committed", 7)) == 7


# --- participant


def test_nothing_is_answered_before_its_record_is_durable() -> None:
    found, host = participant()
    state = enter(found)
    replies: list[m.Message] = []
    found.prepare(prepare(state.state_id), replies.append)
    assert replies == [] and found.blocking(7, [b"k"], None, 0, None) is state
    host.flush()
    assert replies == [m.Prepared(STEP + 1)]
    found.decide(TXN, STEP + 5, replies.append)
    assert host.rows == {(7, b"k"): [(STEP + 5, b"row")]} and len(replies) == 1
    host.flush()
    assert replies[1] == m.Ack() and not found.prepared


def test_a_timestamp_exceeds_every_read_before() -> None:
    found, host = participant()
    state = enter(found)
    found.read_at(3 * STEP, 0)
    replies: list[m.Message] = []
    message = m.CommitOne(1, m.TxnRef(TXN, state.state_id, 2, STEP), (2,), 0, 4 * STEP)
    found.commit_message(message, replies.append)
    host.flush()
    assert replies == [m.Committed(3 * STEP + 1)]


def test_a_lost_state_is_an_abort_for_ever() -> None:
    found, host = participant()
    replies: list[m.Message] = []
    found.prepare(prepare(99), replies.append)
    assert replies == []
    host.flush()
    assert isinstance(replies[0], m.Failure) and replies[0].aborted
    assert host.log[0][0] == records.ABORT
    assert isinstance(found.enter(m.TxnRef(TXN, 0, 2, STEP), None), m.Failure)


def test_a_missing_statement_refuses_the_prepare() -> None:
    found, host = participant()
    state = enter(found)
    replies: list[m.Message] = []
    found.prepare(prepare(state.state_id, (2, 3)), replies.append)
    host.flush()
    assert isinstance(replies[0], m.Failure) and replies[0].aborted


def test_a_question_with_record_aborts_what_is_not_prepared() -> None:
    found, host = participant()
    state = enter(found)
    answers: list[m.Message] = []
    found.query(m.QueryOutcome(1, TXN, False), answers.append)
    assert answers == [m.Outcome("unknown", 0)]
    found.query(m.QueryOutcome(1, TXN, True), answers.append)
    host.flush()
    assert answers[1] == m.Outcome("aborted", 0)
    replies: list[m.Message] = []
    found.prepare(prepare(state.state_id), replies.append)
    host.flush()
    assert isinstance(replies[0], m.Failure) and replies[0].aborted


def test_a_question_waits_for_a_prepare_in_flight() -> None:
    found, host = participant()
    state = enter(found)
    answers: list[m.Message] = []
    found.prepare(prepare(state.state_id), lambda _: None)
    found.query(m.QueryOutcome(1, TXN, True), answers.append)
    assert answers == []
    host.flush()
    assert answers == [m.Outcome("prepared", STEP + 1)]


def test_a_full_disk_aborts_a_commit_and_owes_a_decision() -> None:
    found, host = participant()
    state = enter(found)
    full = StorageError("53100", "disk full")
    replies: list[m.Message] = []
    found.prepare(prepare(state.state_id), replies.append)
    host.flush()
    found.decide(TXN, STEP + 5, replies.append)
    host.flush(full)
    assert isinstance(replies[1], m.Failure)
    other = enter(found, b"o" * 16)
    found.commit_one(other, 0, 4 * STEP, lambda *_: None)
    assert [kind for kind, _ in host.log] == [
        records.PREPARE,
        records.DECIDE,
        records.DECIDE,
        records.COMMIT,
    ]


def test_a_restarted_range_holds_what_was_prepared() -> None:
    found, host = participant()
    state = enter(found)
    found.prepare(prepare(state.state_id), lambda _: None)
    host.flush()
    again, fresh = participant()
    replay_prepare(again, records.decode_prepare(host.log[0][1]))
    assert again.blocking(7, [b"k"], None, 0, None) is not None
    assert again.locks.holders((7, b"k"))
    replay_outcome(again, records.Outcome(TXN, STEP + 3), records.DECIDE)
    assert fresh.rows == {(7, b"k"): [(STEP + 3, b"row")]}
    assert not again.prepared and len(again.locks) == 0


def test_statements_are_taken_back_by_number() -> None:
    found, _ = participant()
    state = enter(found)
    state.put(3, 7, b"k", b"newer")
    state.put(3, 7, b"j", None)
    state.statements.add(3)
    state.undo(2)
    assert state.overlays == {7: {b"k": b"row"}} and state.statements == {2}
    state.put(4, 7, b"j", b"x")
    state.statements.add(4)
    state.keep([4])
    assert state.overlays == {7: {b"j": b"x"}}


def test_a_decision_told_again_is_acknowledged_once_it_is_durable() -> None:
    found, host = participant()
    state = enter(found)
    found.prepare(prepare(state.state_id), lambda reply: None)
    host.flush()
    replies: list[m.Message] = []
    found.decide(TXN, STEP + 5, replies.append)
    found.decide(TXN, STEP + 5, replies.append)
    assert not replies and len(host.log) == 2
    host.flush(StorageError("53100", "full"))
    assert [type(reply) for reply in replies] == [m.Failure] * 2
    found.decide(TXN, STEP + 5, replies.append)
    assert len(replies) == 2
    host.flush()
    found.decide(TXN, STEP + 5, replies.append)
    assert replies[2:] == [m.Ack()] * 2 and len(host.log) == 3


# --- frames


def execute(**changes: object) -> m.Execute:
    fields: dict[str, object] = {
        "range_id": 1,
        "program_id": 2**63 - 1,
        "read_ts": 3,
        "floor": 4,
        "known_issued": 5,
        "txn": m.TxnRef(TXN, 2**63 - 1, 7, 8),
        "commit": True,
        "nowait": 2,
        "params": b"pp",
        "formats": b"\x01",
    }
    fields.update(changes)
    return m.Execute(**fields)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 10_000))
def test_frames_come_back_however_they_are_cut(kinds: list[int], seed: int) -> None:
    rng = random.Random(seed)
    sent: list[m.Message] = []
    stream = b""
    for number, kind in enumerate(kinds):
        message: m.Message = [
            execute(),
            execute(txn=None, commit=False),
            m.Rows(b"data" * 9, 1, 2, 3, 4),
            m.Ack(),
            m.Failure("22012", "division by zero"),
        ][kind]
        sent.append(message)
        encode = framing.encode_request if kind < 2 else framing.encode_reply
        stream += encode(number, message)
    reader = framing.new_reader()
    got: list[m.Message] = []
    at = 0
    while at < len(stream):
        size = rng.randint(1, 60)
        for kind, number, body in reader.feed(stream[at : at + size]):
            assert number == len(got)
            if kind == framing.REPLY:
                got.append(framing.decode_reply(body))
            else:
                got.append(body)
        at += size
    assert got == sent


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([(), (1, 2**64 - 1)]))
def test_a_write_comes_back_however_it_is_sent(
    seed: int, count: int, expected_ts: tuple[int, ...]
) -> None:
    rng = random.Random(seed)
    sent: list[m.Message] = []
    stream = b""
    for number in range(count):
        keys = rng.randbytes(rng.choice((0, 300, 70_000)))
        rows = rng.randbytes(rng.choice((0, 300, 70_000, 140_000)))
        ref = m.TxnRef(b"t" * 16, 1, 2, 3)
        empty = m.Write(1, 2, 0, 3, 4, ref, False, "update", 5, b"", b"", expected_ts)
        message = msgspec.structs.replace(empty, keys=keys, rows=rows)
        sent.append(message)
        buffers = b"".join(framing.encode_write(number, empty, keys, rows))
        assert framing.decode_request(buffers[9:]) == message
        stream += buffers if number % 2 else framing.encode_request(number, message)
    reader = framing.new_reader()
    got: list[m.Message] = []
    at = 0
    while at < len(stream):
        size = rng.choice((1, 8, 9, 1000, 65_000, 100_000))
        for kind, number, body in reader.feed(stream[at : at + size]):
            assert (kind, number) == (framing.REQUEST, len(got))
            got.append(framing.decode_request(body))
        at += size
    assert got == sent


def test_malformed_frames_are_refused() -> None:
    for data in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x0a\x00\x00\x00\x03" + bytes(9)):
        with pytest.raises(ValueError):
            framing.new_reader().feed(data)


@given(st.lists(st.binary(max_size=6), max_size=30), st.lists(st.binary(min_size=1, max_size=4)))
def test_rows_are_dealt_to_the_ranges_that_hold_them(keys: list[bytes], cuts: list[bytes]) -> None:
    starts = [b"", *sorted(set(cuts))]
    rows = [b"row of " + key for key in keys]
    offsets = [0]
    row_offsets = [0]
    for key, row in zip(keys, rows, strict=True):
        offsets.append(offsets[-1] + len(key))
        row_offsets.append(row_offsets[-1] + len(row))
    dealt = frames.split_by_range(
        b"".join(keys), array("Q", offsets), b"".join(rows), array("Q", row_offsets), starts
    )
    seen = 0
    for at, members, framed_keys, framed_rows in dealt:
        members = list(range(len(keys))) if members is None else members
        assert frames.split_items(framed_keys, len(members)) == [keys[i] for i in members]
        assert frames.split_items(framed_rows, len(members)) == [rows[i] for i in members]
        for i in members:
            assert starts[at] <= keys[i]
            assert at + 1 == len(starts) or keys[i] < starts[at + 1]
        seen += len(members)
    assert seen == len(keys)
