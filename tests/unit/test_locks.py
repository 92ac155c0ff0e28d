"""Row locks: what conflicts, who waits, who goes first, who has to give way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb.errors import SqlError
from shardb.txn import advisory, ids
from shardb.txn.lockmodes import CONFLICTS, KEY_SHARE, NO_KEY_UPDATE, SHARE, UPDATE
from shardb.txn.locks import Key, LockTable

ROW: Key = (1, b"row")
OTHER: Key = (1, b"other")
MODES = (KEY_SHARE, SHARE, NO_KEY_UPDATE, UPDATE)


class Owner:
    """A transaction of a session of its own; higher process ids began later."""

    def __init__(self, process_id: int, begin_ts: int = 0) -> None:
        self.txn_id = ids.make(begin_ts or process_id, process_id, 1, 0)
        self.held: dict[Key, int] = {}


class Waits:
    """Has owners wait, and notes whose waits ended and how."""

    def __init__(self) -> None:
        self.locks = LockTable()
        self.ended: list[tuple[Owner, str]] = []

    def lock(self, owner: Owner, key: Key, mode: int) -> bool:
        """True if it need not wait."""
        if self.locks.try_acquire(owner, key, mode):
            return True

        def refused(error: SqlError) -> None:
            self.ended.append((owner, error.sqlstate))
            run(self.locks.release_all(owner))

        self.locks.wait(owner, key, mode, lambda: self.ended.append((owner, "granted")), refused)
        self.locks.refuse_victims()
        return False

    def release(self, owner: Owner) -> list[Owner]:
        """Whose waits that ended."""
        before = len(self.ended)
        run(self.locks.release_all(owner))
        return [each for each, _ in self.ended[before:]]


def run(grants: list[Callable[[], None]]) -> None:
    for grant in grants:
        grant()


@pytest.mark.parametrize(("held", "wanted"), list(itertools.product(MODES, MODES)))
def test_conflicts_are_those_of_the_manual(held: int, wanted: int) -> None:
    conflicting = {
        (KEY_SHARE, UPDATE),
        (SHARE, NO_KEY_UPDATE),
        (SHARE, UPDATE),
        (NO_KEY_UPDATE, NO_KEY_UPDATE),
        (NO_KEY_UPDATE, UPDATE),
        (UPDATE, UPDATE),
    }
    locks = LockTable()
    assert locks.try_acquire(Owner(1), ROW, held)
    expected = tuple(sorted((held, wanted))) not in conflicting
    assert locks.try_acquire(Owner(2), ROW, wanted) == expected


def test_locks_are_granted_in_order() -> None:
    waits = Waits()
    a, b, c, d = (Owner(number) for number in range(1, 5))
    assert waits.lock(a, ROW, UPDATE)
    assert not waits.lock(b, ROW, SHARE) and not waits.lock(c, ROW, SHARE)
    assert not waits.lock(d, ROW, UPDATE)
    assert waits.release(a) == [b, c]
    assert waits.release(b) == []
    assert waits.release(c) == [d]
    assert waits.release(d) == [] and len(waits.locks) == 0


def test_nobody_overtakes_a_waiter_in_whose_way_it_would_be() -> None:
    waits = Waits()
    a, b, c, d = (Owner(number) for number in range(1, 5))
    assert waits.lock(a, ROW, SHARE)
    assert not waits.lock(b, ROW, NO_KEY_UPDATE)
    assert not waits.lock(c, ROW, SHARE), "it would keep the update waiting"
    assert waits.lock(d, ROW, KEY_SHARE), "which is in nobody's way"


def test_an_upgrade_goes_before_the_queue() -> None:
    waits = Waits()
    a, b, c = (Owner(number) for number in range(1, 4))
    assert waits.lock(a, ROW, SHARE) and waits.lock(b, ROW, SHARE)
    assert not waits.lock(c, ROW, UPDATE)
    assert not waits.lock(a, ROW, UPDATE)
    assert waits.release(b) == [a] and a.held[ROW] == UPDATE
    assert waits.release(a) == [c]


def test_a_weaker_lock_of_ones_own_changes_nothing() -> None:
    waits = Waits()
    a, b = Owner(1), Owner(2)
    assert waits.lock(a, ROW, UPDATE) and waits.lock(a, ROW, KEY_SHARE)
    assert not waits.lock(b, ROW, KEY_SHARE)


def test_what_leaves_the_queue_lets_others_go_on() -> None:
    waits = Waits()
    a, b, c = (Owner(number) for number in range(1, 4))
    assert waits.lock(a, ROW, SHARE)
    assert not waits.lock(b, ROW, UPDATE)
    assert not waits.lock(c, ROW, SHARE)
    assert waits.release(b) == [c]


def test_of_a_circle_the_youngest_gives_way() -> None:
    for old_first in (True, False):
        waits = Waits()
        old, young = Owner(12), Owner(13)
        assert waits.lock(old, ROW, UPDATE) and waits.lock(young, OTHER, UPDATE)
        if old_first:
            assert not waits.lock(old, OTHER, NO_KEY_UPDATE)
            with pytest.raises(SqlError) as caught:
                waits.lock(young, ROW, NO_KEY_UPDATE)
            error = caught.value
            assert (error.sqlstate, error.message) == ("40P01", "deadlock detected")
            assert error.detail == (
                "Process 13 waits for ShareLock on transaction 12; blocked by process 12.\n"
                "Process 12 waits for ShareLock on transaction 13; blocked by process 13."
            )
            assert error.hint == "See server log for query details."
            assert waits.release(young) == [old]
        else:
            assert not waits.lock(young, ROW, NO_KEY_UPDATE)
            assert not waits.lock(old, OTHER, NO_KEY_UPDATE)
            assert waits.ended == [(young, "40P01"), (old, "granted")]


def test_two_who_share_and_both_want_more_are_a_circle() -> None:
    waits = Waits()
    a, b = Owner(1), Owner(2)
    assert waits.lock(a, ROW, SHARE) and waits.lock(b, ROW, SHARE)
    assert not waits.lock(a, ROW, UPDATE)
    with pytest.raises(SqlError):
        waits.lock(b, ROW, UPDATE)
    assert waits.release(b) == [a]


def test_a_wait_for_an_end_is_part_of_a_circle() -> None:
    waits = Waits()
    a, b = Owner(1), Owner(2)
    assert waits.lock(a, ROW, UPDATE)
    waits.locks.await_end(a, b, lambda error: None)
    with pytest.raises(SqlError):
        waits.lock(b, ROW, UPDATE)


def test_a_session_is_not_in_its_own_way_to_an_advisory_lock() -> None:
    waits = Waits()
    key = (advisory.TABLE_ID, advisory.key_of_number(1))
    session, other = Owner(7, 1), Owner(8, 1)
    own = Owner(7, 2)
    assert waits.lock(session, key, UPDATE)
    assert not waits.lock(other, key, UPDATE)
    assert waits.lock(own, key, UPDATE), "also before who waits for the session"
    assert waits.release(session) == [] and waits.release(own) == [other]


def test_a_weakened_lock_lets_those_in_that_may() -> None:
    waits = Waits()
    a, b, c = (Owner(number) for number in range(1, 4))
    assert waits.lock(a, ROW, UPDATE)
    assert not waits.lock(b, ROW, SHARE) and not waits.lock(c, ROW, UPDATE)
    run(waits.locks.weaken(a, ROW, SHARE))
    assert waits.ended == [(b, "granted")]
    run(waits.locks.weaken(b, ROW, 0))
    run(waits.locks.weaken(a, ROW, 0))
    assert waits.ended == [(b, "granted"), (c, "granted")]


def test_many_waiters_in_line_make_one_edge_each() -> None:
    waits = Waits()
    owners = [Owner(number) for number in range(1, 51)]
    for owner in owners:
        waits.lock(owner, ROW, UPDATE)
    # The one who is first in line waits for the holder, everybody else for the one before, too.
    assert len(waits.locks.edges(waits.locks.last_wait)) < 2 * len(owners)
    assert waits.locks.edges(0) == ()


class Oracle:
    """One lock by its rules: holders and, in order, waiters, each a pair of owner and mode."""

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self.queue: list[tuple[int, int]] = []

    def free(self, who: int, mode: int) -> bool:
        return not any(
            other != who and held in CONFLICTS[mode] for other, held in self.holders.items()
        )

    def lock(self, who: int, mode: int) -> bool:
        if self.holders.get(who, 0) >= mode:
            return True
        ahead = [] if who in self.holders else [wanted for _, wanted in self.queue]
        if self.free(who, mode) and not any(wanted in CONFLICTS[mode] for wanted in ahead):
            self.holders[who] = mode
            return True
        at = sum(other in self.holders for other, _ in self.queue)
        self.queue.insert(at if who in self.holders else len(self.queue), (who, mode))
        return False

    def release(self, who: int) -> set[int]:
        """Who can go on now."""
        self.holders.pop(who, None)
        self.queue = [pair for pair in self.queue if pair[0] != who]
        gone = set()
        for pair in list(self.queue):
            other, mode = pair
            ahead = [] if other in self.holders else self.queue[: self.queue.index(pair)]
            if self.free(other, mode) and not any(w in CONFLICTS[mode] for _, w in ahead):
                self.queue.remove(pair)
                self.holders[other] = mode
                gone.add(other)
        return gone


@given(st.integers(0, 1_000_000))
def test_locks_do_as_their_rules_say(seed: int) -> None:
    """Of one row, where circles are upgrades only: their victims leave both."""
    rng = random.Random(seed)
    waits, oracle = Waits(), Oracle()
    owners = [Owner(number) for number in range(1, 7)]
    numbers = {owner: number for number, owner in enumerate(owners)}
    waiting: set[int] = set()
    for _ in range(60):
        number = rng.randrange(len(owners))
        owner = owners[number]
        before = len(waits.ended)
        if number in waiting or rng.random() < 0.3:
            gone = oracle.release(number)
            waits.release(owner)
        else:
            mode = rng.choice(MODES)
            granted, gone = oracle.lock(number, mode), set()
            try:
                assert waits.lock(owner, ROW, mode) == granted, f"seed {seed}"
                if not granted:
                    waiting.add(number)
            except SqlError:
                gone = oracle.release(number)
                waits.release(owner)
        ended = waits.ended[before:]
        for victim in [numbers[o] for o, how in ended if how != "granted"]:
            gone |= oracle.release(victim)
            waiting.discard(victim)
            gone.discard(victim)
        assert {numbers[o] for o, how in ended if how == "granted"} == gone, f"seed {seed}"
        waiting -= gone | {number} if number not in {p[0] for p in oracle.queue} else gone
        held = {numbers[o]: o.held[ROW] for o in owners if ROW in o.held}
        assert held == oracle.holders, f"seed {seed}"
        assert {p[0] for p in oracle.queue} == waiting, f"seed {seed}"
    for owner in owners:
        waits.release(owner)
    assert len(waits.locks) == 0 and not waits.locks.waits, f"seed {seed}"


@given(st.integers(0, 1_000_000))
def test_nobody_waits_for_ever(seed: int) -> None:
    rng = random.Random(seed)
    waits = Waits()
    owners = [Owner(number) for number in range(1, 6)]
    keys: list[Key] = [(1, bytes([number])) for number in range(3)]
    waiting: set[Owner] = set()
    for _ in range(80):
        idle = [owner for owner in owners if owner not in waiting]
        assert idle, f"seed {seed}: a circle was not found"
        owner = rng.choice(idle)
        if rng.random() < 0.2:
            waits.release(owner)
        else:
            try:
                if not waits.lock(owner, rng.choice(keys), rng.choice(MODES)):
                    waiting.add(owner)
            except SqlError:
                waits.release(owner)
        waiting -= {each for each, _ in waits.ended}
        waits.ended.clear()
        for key in keys:
            for one, other in itertools.combinations([o for o in owners if key in o.held], 2):
                assert other.held[key] not in CONFLICTS[one.held[key]], f"seed {seed}"
