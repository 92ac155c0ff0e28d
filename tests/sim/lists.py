"""Append lists: text rows that transactions append to and read, for a search of cycles."""

from __future__ import annotations

import random
from typing import Any, Final

from tests.sim.cycles import Append, Elements, Read, Transaction, find_anomalies
from tests.sim.history import OK, Client, Operation
from tests.sim.workload import Workload, split_at

SLOTS: Final = 6  # keys in use at a time, at most
GENERATIONS: Final = 8
APPENDS_PER_GENERATION: Final = 180
KEYS: Final = SLOTS * GENERATIONS
LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def elements_of(text: str | None) -> Elements:
    """The list that a row has."""
    return tuple(int(part) for part in (text or "").split(",") if part)


class Lists(Workload):
    """Lists do not grow for ever: now and then other keys come into use."""

    name = "lists"

    def __init__(self, rng: random.Random, shards: int, level: str = "") -> None:
        super().__init__(rng, shards, level)
        self.transactions: list[Transaction] = []
        self.final: dict[int, Elements] = {}
        self._element = 0
        self._steps = rng.choice((2, 4))
        self._hot = rng.sample(range(SLOTS), rng.choice((2, 3, SLOTS)))

    async def set_up(self, client: Client) -> None:
        clause = split_at(self.shards, KEYS)
        await client.run(f"CREATE TABLE lists (id int PRIMARY KEY, v text) {clause}")
        values = ", ".join(f"({key}, '')" for key in range(KEYS))
        await client.run(f"INSERT INTO lists VALUES {values}")

    def _key(self, client: Client) -> int:
        generation = min(self._element // APPENDS_PER_GENERATION, GENERATIONS - 1)
        return int(client.rng.choice(self._hot)) * GENERATIONS + generation

    async def act(self, client: Client) -> Operation:
        rng = client.rng
        level = self.level or rng.choice(LEVELS)
        count = rng.randrange(1, self._steps + 1)
        only_reads = rng.random() < 0.2
        txn = Transaction(Operation(client.number, 0), level, [])

        async def work(operation: Operation) -> None:
            txn.operation = operation
            operation.what.append(txn)
            for _ in range(count):
                if only_reads or rng.random() < 0.5:
                    await self._read(client, txn)
                else:
                    await self._append(client, txn)

        options = " READ ONLY" if only_reads and rng.random() < 0.5 else ""
        operation = await client.transaction(level, work, options)
        if txn.steps:
            self.transactions.append(txn)
        return operation

    async def _read(self, client: Client, txn: Transaction) -> None:
        chance = client.rng.random()
        lists: dict[int, Elements] = {}
        if chance < 0.7:
            key = self._key(client)
            rows = (await client.statement("SELECT v FROM lists WHERE id = $1", key)).rows
            lists[key] = elements_of(rows[0][0])
        elif chance < 0.92:
            sql = "SELECT id, v FROM lists WHERE id >= $1 AND id < $2"
            low = self._key(client)
            rows = (await client.statement(sql, low, low + GENERATIONS + 1)).rows
            lists = {int(ident or 0): elements_of(text) for ident, text in rows}
        else:
            sql = "SELECT max(id), v FROM lists GROUP BY id, v"
            rows = (await client.statement(sql)).rows
            lists = {int(ident or 0): elements_of(text) for ident, text in rows}
        txn.steps.append(Read(lists))

    async def _append(self, client: Client, txn: Transaction) -> None:
        key = self._key(client)
        self._element += 1
        element = self._element
        txn.steps.append(Append(key, element))
        text: Any = f",{element}"
        if client.rng.random() < 0.8:
            sql = "UPDATE lists SET v = v || $2 WHERE id = $1"
        else:
            sql = (
                "INSERT INTO lists VALUES ($1, $2)"
                " ON CONFLICT (id) DO UPDATE SET v = lists.v || excluded.v"
            )
        changed = await client.statement(sql, key, text)
        if changed.count != 1:
            self.violations.append(f"key {key} is gone: {txn}")

    async def finish(self, client: Client) -> None:
        while True:
            operation = await client.alone(lambda op: self._look(client, op))
            if operation.outcome == OK:
                return

    async def _look(self, client: Client, operation: Operation) -> None:
        rows = (await client.run("SELECT id, v FROM lists")).rows
        seen = {int(ident or 0): elements_of(text) for ident, text in rows}
        if self.final and seen != self.final:
            differing = [key for key in seen if seen[key] != self.final.get(key)]
            self.violations.append(f"keys {differing} have changed when nobody did")
        self.final = seen

    def check(self) -> list[str]:
        if set(self.final) != set(range(KEYS)):
            return [*self.violations, f"keys are missing: {sorted(self.final)}"]
        return self.violations + find_anomalies(self.transactions, self.final)
