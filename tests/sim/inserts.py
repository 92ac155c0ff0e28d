"""Inserts: what was acknowledged is there, what failed is not, and what is unknown stays as it is.

Statements insert one row, or several of different ranges, alone or in a block; now and then one of
the rows is there already, and then all of it fails.
"""

from __future__ import annotations

import random
from typing import Final

from tests.sim.history import FAILED, OK, UNKNOWN, Client, Operation
from tests.sim.workload import Workload, split_at

IDS: Final = 10_000


class Inserts(Workload):
    """Ids are used once, but for those that are to collide."""

    name = "inserts"

    def __init__(self, rng: random.Random, shards: int, level: str = "") -> None:
        super().__init__(rng, shards, level)
        self.tries: list[tuple[Operation, list[int], int]] = []  # with what value
        self.known: dict[int, int] = {}  # what has been seen, or acknowledged
        self._next = 0

    async def set_up(self, client: Client) -> None:
        clause = split_at(self.shards, IDS)
        await client.run(f"CREATE TABLE inserts (id int PRIMARY KEY, v int NOT NULL) {clause}")

    async def act(self, client: Client) -> Operation:
        rng = client.rng
        if rng.random() < 0.25 and self.known:
            return await client.alone(lambda op: self._look(client, op))
        idents = []
        for _ in range(rng.choice((1, 1, 2, 4))):
            self._next += 1
            idents.append(self._next * 6007 % IDS)
        if rng.random() < 0.05 and self.known:
            idents.append(rng.choice(sorted(self.known)))
        mark = len(self.tries)
        values = ", ".join(f"({ident}, {mark})" for ident in idents)

        async def insert(operation: Operation) -> None:
            operation.what.append(f"insert {idents} as {mark}")
            if in_block:
                await client.statement(f"INSERT INTO inserts VALUES {values}")
            else:
                await client.run(f"INSERT INTO inserts VALUES {values}")

        in_block = rng.random() < 0.4
        self.tries.append((Operation(client.number, 0), idents, mark))
        if in_block:
            level = self.level or "READ COMMITTED"
            operation = await client.transaction(level, insert)
        else:
            operation = await client.alone(insert)
        self.tries[mark] = (operation, idents, mark)
        if operation.outcome == OK:
            for ident in idents:
                if ident in self.known:
                    self.violations.append(f"{ident} was inserted twice: {operation}")
                self.known[ident] = mark
        return operation

    async def _look(self, client: Client, operation: Operation) -> None:
        ident = client.rng.choice(sorted(self.known))
        expected = self.known[ident]
        operation.what.append(f"look for {ident}")
        rows = (await client.run("SELECT v FROM inserts WHERE id = $1", ident)).rows
        if [tuple(row) for row in rows] != [(str(expected),)]:
            self.violations.append(f"expected {expected}, found {rows}: {operation}")

    async def finish(self, client: Client) -> None:
        while True:
            operation = await client.alone(lambda op: self._look_at_all(client))
            if operation.outcome == OK:
                return

    async def _look_at_all(self, client: Client) -> None:
        rows = (await client.run("SELECT id, v FROM inserts")).rows
        found = {int(ident or 0): int(value or 0) for ident, value in rows}
        if len(found) != len(rows):
            self.violations.append("a key is there twice")
        for ident, mark in self.known.items():
            if found.get(ident) != mark:
                operation = self.tries[mark][0]
                self.violations.append(f"{ident} is {found.get(ident)} in the end: {operation}")
        for operation, idents, mark in self.tries:
            there = [found.get(ident) == mark for ident in idents]
            if operation.outcome == FAILED and any(there):
                self.violations.append(f"there, and it had failed: {operation}")
            if operation.outcome == UNKNOWN and any(there) and not all(there):
                self.violations.append(f"half of it is there: {operation}")
        self.known.update(found)
