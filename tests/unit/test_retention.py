"""What a range's log has to keep, held to a plain reading of the rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardb.node.retention import Retention
from shardb.txn import records
from shardb.txn.participant import FORGET_AFTER

MUCH_LATER = 100 * FORGET_AFTER


def plain(records_: list[tuple[int, bytes]], needed: int) -> int:
    """The least index from which on nothing lacks its prepare."""
    while True:
        begun: dict[bytes, int] = {}
        decided: dict[bytes, int] = {}
        for index, (kind, txn_id) in enumerate(records_, 1):
            if kind == records.PREPARE:
                begun[txn_id] = index
            elif kind == records.DECIDE:
                decided[txn_id] = index
        open_ = [at for txn_id, at in begun.items() if decided.get(txn_id, needed) >= needed]
        least = min([needed, *open_])
        if least == needed:
            return needed
        needed = least


@given(st.data())
def test_prepares_are_kept_as_long_as_their_decisions(data: st.DataObject) -> None:
    retention = Retention()
    log: list[tuple[int, bytes]] = []
    undecided: list[bytes] = []
    needed = 1
    for serial in range(data.draw(st.integers(1, 40))):
        kind = data.draw(st.sampled_from((records.COMMIT, records.PREPARE, records.DECIDE)))
        if kind == records.DECIDE and undecided:
            txn_id = undecided.pop(data.draw(st.integers(0, len(undecided) - 1)))
        else:
            kind = records.COMMIT if kind == records.DECIDE else kind
            txn_id = serial.to_bytes(16, "big")
            if kind == records.PREPARE:
                undecided.append(txn_id)
        log.append((kind, txn_id))
        retention.note(kind, b"\1" + txn_id, len(log), 1)
        if data.draw(st.booleans()):
            needed = data.draw(st.integers(needed, len(log) + 1))
            assert retention.retained(needed, MUCH_LATER) == plain(log, needed)
