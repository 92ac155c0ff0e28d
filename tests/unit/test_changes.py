"""Whether an interval has changed since a snapshot, held to the rows' history in plain Python."""

from __future__ import annotations

import random

import pytest

from shardb._core.changes import changed_since
from tests.support.tablet_model import TabletModel, Values, Version

KEYS = [b"%02d" % number for number in range(40)]


def a_row(rng: random.Random) -> Values | None:
    return None if rng.random() < 0.3 else {1: rng.randrange(9), 2: None, 3: True, 4: None}


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_history(seed: int) -> None:
    rng = random.Random(seed)
    model = TabletModel(group_rows=rng.choice((3, 8)), codec=rng.choice(("", "lz4")))
    for _ in range(40):
        action = rng.random()
        if action < 0.6:
            model.put({key: a_row(rng) for key in rng.sample(KEYS, rng.randrange(1, 4))})
        elif action < 0.7:
            rows: list[Version] = [(key, 0, a_row(rng)) for key in sorted(rng.sample(KEYS, 3))]
            model.link([row for row in rows if row[2] is not None] or rows, b"20")
        elif action < 0.85:
            model.freeze()
            if len(model.runs) > 1:
                model.flush(1, b"", False)
        elif len(model.runs) > 2:
            at = rng.randrange(1, len(model.runs) - 1)
            if not model.runs[at].is_memtable and not model.runs[at + 1].is_memtable:
                model.compact(at, b"15", False)
        low, high = sorted(rng.sample([b"", *KEYS], 2))
        high = rng.choice((high, b""))
        ts = rng.randrange(model.ts + 1)
        expected = any(
            low <= key and (not high or key < high) and versions[-1][0] > ts
            for key, versions in model.history.items()
        )
        assert changed_since(model.view(model.version), low, high, ts) == expected, f"seed {seed}"
