"""Unique keys: of many who insert the same key, exactly one wins."""

from __future__ import annotations

import random
from typing import Final

from tests.sim.history import OK, UNKNOWN, Client, Operation
from tests.sim.workload import Workload, split_at

KEYS: Final = 1000
TRIES_PER_KEY: Final = 5


class Unique(Workload):
    """Each key is tried for by several clients at about the same time."""

    name = "unique"

    def __init__(self, rng: random.Random, shards: int, level: str = "") -> None:
        super().__init__(rng, shards, level)
        self.tries: dict[int, list[tuple[Operation, int]]] = {}
        self.refused: set[int] = set()
        self.final: dict[int, int] = {}
        self._count = 0

    async def set_up(self, client: Client) -> None:
        clause = split_at(self.shards, KEYS)
        await client.run(f"CREATE TABLE tickets (id int PRIMARY KEY, who int NOT NULL) {clause}")

    async def act(self, client: Client) -> Operation:
        rng = client.rng
        self._count += 1
        mark = self._count
        keys = [mark // TRIES_PER_KEY * 617 % KEYS]
        if rng.random() < 0.3:
            keys.append((mark // TRIES_PER_KEY + 1) * 617 % KEYS)
            rng.shuffle(keys)

        asked: list[int] = []

        async def work(operation: Operation) -> None:
            for key in keys:
                asked[:] = [key]
                operation.what.append(f"take {key} as {mark}")
                run = client.statement if len(keys) > 1 else client.run
                await run("INSERT INTO tickets VALUES ($1, $2)", key, mark)

        if len(keys) > 1:
            operation = await client.transaction(self.level or "READ COMMITTED", work)
        else:
            operation = await client.alone(work)
        if "23505" in operation.error:
            self.refused.update(asked)
        for key in keys:
            self.tries.setdefault(key, []).append((operation, mark))
        return operation

    async def finish(self, client: Client) -> None:
        while True:
            operation = await client.alone(lambda op: self._look(client))
            if operation.outcome == OK:
                return

    async def _look(self, client: Client) -> None:
        rows = (await client.run("SELECT id, who FROM tickets")).rows
        found = {int(ident or 0): int(who or 0) for ident, who in rows}
        if len(found) != len(rows):
            self.violations.append("a key is there twice")
        if self.final and found != self.final:
            self.violations.append("keys have changed when nobody did")
        self.final = found

    def check(self) -> list[str]:
        for key, tries in self.tries.items():
            holder = self.final.get(key)
            winners = [mark for operation, mark in tries if operation.outcome == OK]
            possible = [mark for operation, mark in tries if operation.outcome == UNKNOWN]
            shown = "\n  ".join(str(operation) for operation, _ in tries)
            if len(winners) > 1 or (winners and holder != winners[0]):
                self.violations.append(f"{winners} won key {key}, {holder} has it:\n  {shown}")
            elif holder is not None and holder not in winners + possible:
                self.violations.append(f"{holder} has key {key}:\n  {shown}")
            if key in self.refused and holder is None:
                self.violations.append(f"nobody has key {key}, but it was refused:\n  {shown}")
        return self.violations
