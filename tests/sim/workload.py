"""What a workload is: something that clients do, and a checker of what they saw."""

from __future__ import annotations

import random

from tests.sim.history import Client, Operation


def split_at(shards: int, keys: int) -> str:
    """The clause that spreads integer keys below `keys` over ranges of all shards, and more."""
    count = shards + 1
    points = sorted({keys * number // count for number in range(1, count)})
    return f"WITH (split_at = '{', '.join(map(str, points))}')"


class Workload:
    """`act` is called again and again by each of several clients; after the last fault, `finish`.

    `rng` is for what holds for the whole run; `level` is the isolation level of transactions that
    change something, "" for any.
    """

    name = ""

    def __init__(self, rng: random.Random, shards: int, level: str = "") -> None:
        self.shards = shards
        self.level = level
        self.violations: list[str] = []
        self.history: list[Operation] = []

    async def set_up(self, client: Client) -> None:
        """Makes the tables, before the first fault."""

    async def act(self, client: Client) -> Operation:
        """One transaction."""
        raise NotImplementedError

    async def finish(self, client: Client) -> None:
        """Looks at the end, when all is well."""

    def check(self) -> list[str]:
        """What should never have been seen."""
        return self.violations
