"""The detector of deadlocks over several shards: it finds what is one, and nothing else."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from shardb.rpc.messages import WaitEdge
from shardb.txn import ids
from shardb.txn.deadlock import Detector, Found, Place


def txn(process_id: int) -> bytes:
    return ids.make(process_id, process_id, 1, 0)


def edge(wait: int, waiter: int, blocker: int) -> WaitEdge:
    return WaitEdge(wait, txn(waiter), txn(blocker), f"ShareLock on transaction {blocker}")


NOTHING = Found(frozenset(), ())


def test_a_circle_over_two_shards_is_confirmed_and_the_youngest_gives_way() -> None:
    detector = Detector()
    one, two = (edge(5, 12, 13),), (edge(9, 13, 12),)
    assert detector.report(1, detector.asking(), one) == NOTHING
    found = detector.report(2, detector.asking(), two)
    assert found.ask == {1, 2} and not found.victims
    first, second = detector.asking(), detector.asking()
    assert detector.report(2, second, two) == NOTHING
    (victim,) = detector.report(1, first, one).victims
    assert victim.place == Place(2, 9)
    assert victim.detail == (
        "Process 13 waits for ShareLock on transaction 12; blocked by process 12.\n"
        "Process 12 waits for ShareLock on transaction 13; blocked by process 13."
    )
    assert detector.report(1, detector.asking(), one) == NOTHING, "its end is under way"


def test_what_was_never_at_one_time_is_no_deadlock() -> None:
    detector = Detector()
    detector.report(1, detector.asking(), (edge(5, 12, 13),))
    # The wait on shard 1 is over when the one on shard 2 begins, but nobody has said so yet.
    assert detector.report(2, detector.asking(), (edge(9, 13, 12),)).ask == {1, 2}
    assert detector.report(1, detector.asking(), (edge(6, 12, 14),)) == NOTHING
    assert detector.report(2, detector.asking(), (edge(9, 13, 12),)) == NOTHING


def test_a_wait_that_began_anew_is_another_one() -> None:
    detector = Detector()
    detector.report(1, detector.asking(), (edge(5, 12, 13),))
    detector.report(2, detector.asking(), (edge(9, 13, 12),))
    found = detector.report(1, detector.asking(), (edge(6, 12, 13),))
    assert not found.victims and found.ask
    detector.report(2, detector.asking(), (edge(9, 13, 12),))
    assert detector.report(1, detector.asking(), (edge(6, 12, 13),)).victims


def test_a_shard_that_is_gone_takes_its_waits_along() -> None:
    detector = Detector()
    detector.report(1, detector.asking(), (edge(5, 12, 13),))
    detector.forget(1)
    assert detector.report(2, detector.asking(), (edge(9, 13, 12),)) == NOTHING


def test_advisory_locks_of_a_session_and_rows_of_its_transaction_are_one_party() -> None:
    detector = Detector()
    session, later = ids.make(1, 12, 1, 0), ids.make(50, 12, 1, 1)
    one = (WaitEdge(1, later, txn(13), "ShareLock on transaction 13"),)
    two = (WaitEdge(1, txn(13), session, "ExclusiveLock on advisory lock [1,0,1,1]"),)
    victims: tuple[object, ...] = ()
    for _ in range(2):
        detector.report(1, detector.asking(), one)
        victims += detector.report(2, detector.asking(), two).victims
    assert len(victims) == 1


@given(st.integers(0, 1_000_000))
def test_every_deadlock_is_ended_and_nobody_else(seed: int) -> None:
    """Waits over three shards that last: those in no circle end, one by one, by themselves."""
    rng = random.Random(seed)
    waits: dict[Place, WaitEdge] = {}
    for waiter in range(1, 9):
        if rng.random() < 0.8:
            blocker = rng.choice([other for other in range(1, 9) if other != waiter])
            node = rng.randrange(3)
            waits[Place(node, waiter)] = edge(waiter, waiter, blocker)
    detector = Detector()
    for _ in range(40):
        for node in range(3):
            edges = tuple(e for place, e in waits.items() if place.node_id == node)
            for victim in detector.report(node, detector.asking(), edges).victims:
                gone = waits[victim.place].waiter
                assert in_circle(gone, waits), f"seed {seed}: no deadlock"
                del waits[victim.place]
    left = {e.waiter for e in waits.values()}
    assert not any(in_circle(waiter, waits) for waiter in left), f"seed {seed}"


def in_circle(start: bytes, waits: dict[Place, WaitEdge]) -> bool:
    after = {e.waiter: e.blocker for e in waits.values()}
    at = after.get(start)
    for _ in range(len(after)):
        if at == start:
            return True
        at = after.get(at) if at is not None else None
    return False
