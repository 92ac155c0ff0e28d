"""What one range's log has to keep beside the rows that are not yet in segments.

A prepare record is needed as long as its decision may have to be carried out again, and every
record until nobody may ask for its outcome any more (PROTOCOL 2: at least ten minutes).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from shardb.txn import oracle, records
from shardb.txn.participant import FORGET_AFTER

STEP: Final = oracle.from_ms(10_000)  # how finely the age of records is known


class Retention:
    """Learns of every durable record with `note`; times are oracle timestamps, 0: not known."""

    def __init__(self) -> None:
        self._prepares: dict[bytes, tuple[int, int]] = {}  # its index, its decision's (0: open)
        # (index, time) of a record every now and then; the time of those replayed is not known.
        self._ages: deque[tuple[int, int]] = deque()
        self.due = -1  # until then, and then too, only prepares and decisions need a `note`

    def note(self, kind: int, payload: bytes, index: int, now: int) -> None:
        """A record is durable, or replayed."""
        if kind == records.PREPARE:
            self._prepares[records.txn_id_of(payload)] = (index, 0)
        elif kind == records.DECIDE:
            txn_id = records.txn_id_of(payload)
            found = self._prepares.get(txn_id)
            if found is not None:
                self._prepares[txn_id] = (found[0], index)
        if not self._ages or now > self.due:
            self._ages.append((index, now))
            self.due = now + STEP

    def retained(self, needed: int, now: int) -> int:
        """The least index that is needed, where tablets need all from `needed` on."""
        ages = self._ages
        horizon = now - FORGET_AFTER
        if ages and not ages[0][1]:  # may have been written just before the restart
            ages[0] = ages[0][0], ages[1][1] if len(ages) > 1 else now
        while len(ages) > 1 and ages[1][1] < horizon:
            ages.popleft()
        if len(ages) == 1 and ages[0][1] + STEP < horizon:
            ages.clear()  # so is all that came after it
        if ages:
            needed = min(needed, ages[0][0])
        return self._with_prepares(needed)

    def _with_prepares(self, needed: int) -> int:
        """The least index where all from `needed` on, and their prepares, are needed.

        Forgets what is not. Prepares come in the order of their indexes, so that no more are looked
        at than are forgotten, and a few.
        """
        settled: list[tuple[bytes, int, int]] = []
        for txn_id, (begun, decided) in self._prepares.items():
            if begun >= needed:
                break
            if not decided or decided >= needed:
                needed = begun
                break
            settled.append((txn_id, begun, decided))
        at = 0
        while at < len(settled):
            _, begun, decided = settled[at]
            at += 1
            if decided >= needed:  # its decision is not before what is needed now
                needed = begun
                del settled[at - 1 :]
                at = 0
        for txn_id, _, _ in settled:
            del self._prepares[txn_id]
        return needed
