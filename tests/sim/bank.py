"""Bank: transfers between accounts on different ranges; the total is the same at every moment."""

from __future__ import annotations

from typing import Final

from tests.sim.history import FAILED, OK, Client, Operation
from tests.sim.workload import Workload, split_at

ACCOUNTS: Final = 12
BALANCE: Final = 100
TOTAL: Final = ACCOUNTS * BALANCE
LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class Bank(Workload):
    """Looks at the total by scan, by aggregate, and by point reads of one snapshot."""

    name = "bank"

    async def set_up(self, client: Client) -> None:
        await client.run(
            f"CREATE TABLE bank (id int PRIMARY KEY, balance int) {split_at(self.shards, ACCOUNTS)}"
        )
        values = ", ".join(f"({ident}, {BALANCE})" for ident in range(ACCOUNTS))
        await client.run(f"INSERT INTO bank VALUES {values}")

    async def act(self, client: Client) -> Operation:
        chance = client.rng.random()
        if chance < 0.7:
            return await self._transfer(client)
        if chance < 0.8:
            return await client.alone(lambda op: self._sum(client, op))
        if chance < 0.9:
            return await client.alone(lambda op: self._scan(client, op))
        level = client.rng.choice(LEVELS[1:])
        return await client.transaction(level, lambda op: self._points(client, op))

    async def _transfer(self, client: Client) -> Operation:
        rng = client.rng
        source, target = rng.sample(range(ACCOUNTS), 2)
        amount = rng.randrange(1, 20)
        level = self.level or rng.choice(LEVELS)
        reads = rng.random() < 0.5

        async def work(operation: Operation) -> None:
            operation.what.append(f"{source} -> {target}: {amount} at {level}")
            for ident, change in ((source, -amount), (target, amount)):
                if reads:
                    lock = " FOR UPDATE" if level == LEVELS[0] else ""
                    sql = f"SELECT balance FROM bank WHERE id = $1{lock}"
                    found = await client.statement(sql, ident)
                    balance = int(found.rows[0][0] or 0) + change
                    sql = "UPDATE bank SET balance = $2 WHERE id = $1"
                    changed = await client.statement(sql, ident, balance)
                else:
                    sql = "UPDATE bank SET balance = balance + $2 WHERE id = $1"
                    changed = await client.statement(sql, ident, change)
                if changed.count != 1:
                    self.violations.append(f"account {ident} is gone: {operation}")

        return await client.transaction(level, work)

    async def _sum(self, client: Client, operation: Operation) -> None:
        operation.what.append("sum")
        rows = (await client.run("SELECT sum(balance), count(*) FROM bank")).rows
        self._compare(operation, int(rows[0][0] or 0), int(rows[0][1] or 0))

    async def _scan(self, client: Client, operation: Operation) -> None:
        operation.what.append("scan")
        rows = (await client.run("SELECT id, balance FROM bank")).rows
        operation.what.append({int(ident or 0): int(balance or 0) for ident, balance in rows})
        self._compare(operation, sum(int(row[1] or 0) for row in rows), len(rows))

    async def _points(self, client: Client, operation: Operation) -> None:
        total = 0
        idents = list(range(ACCOUNTS))
        client.rng.shuffle(idents)
        balances = {}
        for ident in idents:
            rows = (await client.statement("SELECT balance FROM bank WHERE id = $1", ident)).rows
            balances[ident] = int(rows[0][0] or 0) if rows else None
            total += balances[ident] or 0
        operation.what.append(balances)
        self._compare(operation, total, sum(b is not None for b in balances.values()))

    def _compare(self, operation: Operation, total: int, count: int) -> None:
        if (total, count) != (TOTAL, ACCOUNTS):
            operation.ended_ns = operation.begun_ns
            self.violations.append(f"total {total} of {count} accounts: {operation}")

    async def finish(self, client: Client) -> None:
        for work in (self._sum, self._scan):
            while True:
                operation = await client.alone(lambda op, work=work: work(client, op))
                if operation.outcome == OK:
                    break

    def check(self) -> list[str]:
        return self.violations


__all__ = ["FAILED", "Bank"]
