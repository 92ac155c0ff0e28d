"""The timestamp oracle: hands out timestamps below a bound that is persisted ahead of use.

A timestamp is `milliseconds << 18 | logical`; the oracle issues multiples of 2**10, the values
between belong to the ranges' own commits (PROTOCOL 1). Pure: time comes in as an argument, and the
shell persists the bound that `wanted_bound` asks for.

Invariants: timestamps strictly ascend; none reaches the persisted bound; an oracle starts at or
above the bound its predecessor persisted.
"""

from __future__ import annotations

from typing import Final

from shardb import limits

LOGICAL_BITS: Final = 18
STEP: Final = 1 << 10


def from_ms(milliseconds: int) -> int:
    """The least timestamp of a millisecond."""
    return milliseconds << LOGICAL_BITS


class Oracle:
    """`found_bound`: the bound as persisted by whoever issued before, 0 if nobody did."""

    def __init__(self, found_bound: int) -> None:
        self.bound = found_bound
        self.issued = found_bound
        assert found_bound % STEP == 0, found_bound

    def issue(self, now_ms: int) -> int:
        """The next timestamp, or 0 if the bound has to be raised first.

        Time that has run past the bound is not followed until a higher one is persisted.
        """
        ts = max(self.issued + STEP, now_ms << LOGICAL_BITS)
        if ts >= self.bound:
            ts = self.issued + STEP
            if ts >= self.bound:
                return 0
        self.issued = ts
        return ts

    def wanted_bound(self, now_ms: int) -> int:
        """The bound to persist now, or 0 if the present one is far enough ahead."""
        block = from_ms(limits.ORACLE_BLOCK_MS)
        reached = max(self.issued + STEP, from_ms(now_ms))
        return reached + block if reached + block // 2 >= self.bound else 0

    def persisted(self, bound: int) -> None:
        """The bound is durable."""
        assert bound % STEP == 0 and bound >= self.bound, (bound, self.bound)
        self.bound = bound
