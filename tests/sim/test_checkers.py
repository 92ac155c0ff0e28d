"""The checkers accept what may be, and find what may not."""

from __future__ import annotations

import pytest

from tests.sim.cycles import Append, Read, Transaction, find_anomalies
from tests.sim.history import FAILED, OK, UNKNOWN, Operation
from tests.sim.register import NEVER, Step, is_linearizable

RC, RR, SER = "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"


def txn(
    level: str, *steps: object, at: tuple[int, int] = (0, 100), outcome: str = OK
) -> Transaction:
    """Steps are `(key, element)` for an append, or `{key: list}` for a read."""
    operation = Operation(0, at[0], ended_ns=at[1], outcome=outcome)
    made = [
        Read({key: tuple(seen) for key, seen in step.items()})
        if isinstance(step, dict)
        else Append(*step)  # type: ignore[misc]
        for step in steps
    ]
    return Transaction(operation, level, made)


def anomalies(*txns: Transaction, **final: list[int]) -> str:
    lists = {int(key[1:]): tuple(row) for key, row in final.items()}
    return "\n".join(find_anomalies(list(txns), lists))


@pytest.mark.parametrize("level", [RC, RR, SER])
def test_one_after_another_is_fine(level: str) -> None:
    assert not anomalies(
        txn(level, (1, 1), at=(0, 1)),
        txn(level, {1: [1]}, (1, 2), {1: [1, 2]}, at=(2, 3)),
        txn(level, {1: [1, 2], 2: []}, at=(4, 5)),
        k1=[1, 2],
        k2=[],
    )


@pytest.mark.parametrize("level", [RC, RR, SER])
def test_dirty_write(level: str) -> None:
    found = anomalies(txn(level, (1, 1), (2, 2)), txn(level, (2, 3), (1, 4)), k1=[1, 4], k2=[3, 2])
    assert "cycle" in found and "ww" in found


@pytest.mark.parametrize("level", [RC, RR, SER])
def test_circular_information_flow(level: str) -> None:
    found = anomalies(txn(level, (1, 1), {2: [2]}), txn(level, (2, 2), {1: [1]}), k1=[1], k2=[2])
    assert "cycle" in found and "wr" in found


def test_aborted_read() -> None:
    found = anomalies(txn(RC, (1, 1), outcome=FAILED), txn(RC, {1: [1]}), k1=[])
    assert "failed transaction" in found


def test_intermediate_read() -> None:
    assert "before" in anomalies(txn(RC, (1, 1), (1, 2)), txn(RC, {1: [1]}), k1=[1, 2])


def test_lost_append() -> None:
    assert "lost" in anomalies(txn(RC, (1, 1)), txn(RC, (1, 2)), k1=[2])


def test_half_a_transaction() -> None:
    assert "half" in anomalies(txn(RC, (1, 1), (2, 2), outcome=UNKNOWN), k1=[1], k2=[])
    assert not anomalies(txn(RC, (1, 1), (2, 2), outcome=UNKNOWN), k1=[], k2=[])


def test_read_skew_is_read_committeds_alone() -> None:
    writer = (1, 1), (2, 2)
    reader = {1: []}, {2: [2]}
    lists = {"k1": [1], "k2": [2]}
    assert not anomalies(txn(RC, *writer), txn(RC, *reader), **lists)
    assert "rw" in anomalies(txn(RR, *writer), txn(RR, *reader), **lists)
    assert "rw" in anomalies(txn(RC, *writer), txn(SER, *reader), **lists)


def test_half_a_commit_in_one_statement() -> None:
    assert "cycle" in anomalies(txn(RC, (1, 1), (2, 2)), txn(RC, {1: [], 2: [2]}), k1=[1], k2=[2])


def test_lost_update_is_read_committeds_alone() -> None:
    for level, lost in ((RC, False), (RR, True), (SER, True)):
        found = anomalies(txn(level, {1: []}, (1, 1)), txn(level, {1: []}, (1, 2)), k1=[1, 2])
        assert bool(found) == lost


def test_write_skew_is_no_anomaly_below_serializable() -> None:
    for level, anomaly in ((RC, False), (RR, False), (SER, True)):
        found = anomalies(
            txn(level, {1: [], 2: []}, (1, 1)), txn(level, {1: [], 2: []}, (2, 2)), k1=[1], k2=[2]
        )
        assert bool(found) == anomaly


@pytest.mark.parametrize("level", [RC, RR, SER])
def test_stale_read(level: str) -> None:
    found = anomalies(txn(RC, (1, 1), at=(0, 10)), txn(level, {1: []}, at=(20, 30)), k1=[1])
    assert "rt" in found


def test_long_fork() -> None:
    reads = txn(RR, {1: [1], 2: []}), txn(RR, {1: [], 2: [2]})
    assert "cycle" in anomalies(txn(RR, (1, 1)), txn(RR, (2, 2)), *reads, k1=[1], k2=[2])


def test_registers() -> None:
    def write(begun: int, ended: int, new: int) -> Step:
        return Step("write", begun, ended, new=new)

    def read(begun: int, ended: int, new: int | None) -> Step:
        return Step("read", begun, ended, new=new)

    assert is_linearizable([write(0, 10, 1), read(5, 6, None), read(7, 8, 1)], None)
    assert is_linearizable([write(0, 1, 1), read(2, 3, None)], None) is False
    assert is_linearizable([write(0, 10, 1), read(2, 3, 1), read(4, 5, None)], None) is False
    # What nobody knows may happen late, but only once.
    unknown = write(0, NEVER, 1)
    assert is_linearizable([unknown, write(1, 2, 2), read(3, 4, 2), read(5, 6, 1)], None)
    assert (
        is_linearizable(
            [unknown, read(1, 2, 1), write(3, 4, 2), read(5, 6, 2), read(7, 8, 1)], None
        )
        is False
    )


def test_compare_and_set() -> None:
    both = [Step("cas", 0, 10, 1, 2, True), Step("cas", 0, 10, 1, 3, True)]
    assert is_linearizable(both, 1) is False
    assert is_linearizable([both[0], Step("cas", 0, 10, 1, 3, False)], 1)
    assert is_linearizable([Step("cas", 0, 1, 1, 2, False)], 1) is False
