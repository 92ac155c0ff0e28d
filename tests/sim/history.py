"""What clients did and saw, and what they know of its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from shardb.sim.loop import World
from tests.sim.client import Connection, ConnectionLost, PgError, Result

OK: Final = "ok"
FAILED: Final = "failed"  # certainly without effect
UNKNOWN: Final = "unknown"
LOCK_TIMEOUT_S: Final = 5


@dataclass
class Operation:
    """One transaction of one client, in the world's time."""

    client: int
    begun_ns: int
    what: list[Any] = field(default_factory=list)
    ended_ns: int = 0  # 0: it has not ended
    outcome: str = UNKNOWN
    error: str = ""

    def __str__(self) -> str:
        begun, ended = self.begun_ns / 1e9, self.ended_ns / 1e9
        what = ", ".join(map(str, self.what))
        why = f" ({self.error})" if self.error else ""
        return f"{begun:.6f}..{ended:.6f} client {self.client}: {what}: {self.outcome}{why}"


def effect_of(error: PgError | ConnectionLost | OSError, committing: bool) -> str:
    """What an error says of the transaction, `committing` when its end had been asked for."""
    if not committing:
        return FAILED
    if isinstance(error, PgError) and not error.sqlstate.startswith(("08", "57P01", "XX")):
        return FAILED
    return UNKNOWN


class Client:
    """One user: a session that is begun again when it breaks, and the history of what it did."""

    def __init__(self, world: World, number: int, history: list[Operation]) -> None:
        self.world = world
        self.number = number
        self.rng = world.rng
        self.history = history
        self.connection: Connection | None = None

    async def session(self) -> Connection:
        """The session, a new one if there is none."""
        while self.connection is None or self.connection.lost:
            try:
                self.connection = await Connection.open("coordinator", 1)
                await self.connection.query(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
            except (OSError, ConnectionLost, PgError):
                self.connection = None
                await asyncio.sleep(0.02)
        return self.connection

    async def run(self, sql: str, *params: object) -> Result:
        """One statement, simple or extended as chance has it; `$1` and so on are for `params`."""
        connection = await self.session()
        if self.rng.random() < 0.5:
            return await connection.execute(sql, *params)
        for index in range(len(params), 0, -1):
            value = params[index - 1]
            literal = f"'{value}'" if isinstance(value, str) else str(value)
            sql = sql.replace(f"${index}", literal)
        return await connection.query(sql)

    async def alone(self, work: Callable[[Operation], Awaitable[None]]) -> Operation:
        """Records one statement outside a block."""
        operation = Operation(self.number, self.world.now_ns)
        await self.session()
        try:
            await work(operation)
            operation.outcome = OK
        except (PgError, ConnectionLost, OSError) as error:
            operation.outcome = effect_of(error, True)
            operation.error = f"{type(error).__name__} {error}"
        return self._record(operation)

    async def transaction(
        self, level: str, work: Callable[[Operation], Awaitable[None]], options: str = ""
    ) -> Operation:
        """Records a transaction block that does `work`."""
        operation = Operation(self.number, self.world.now_ns)
        committing = False
        try:
            await self.run(f"BEGIN ISOLATION LEVEL {level}{options}")
            operation.begun_ns = self.world.now_ns
            await work(operation)
            committing = True
            result = await self._again("COMMIT")
            operation.outcome = OK if result.tag == "COMMIT" else FAILED
        except (PgError, ConnectionLost, OSError) as error:
            operation.outcome = effect_of(error, committing)
            operation.error = f"{type(error).__name__} {error}"
            if isinstance(error, PgError) and not committing:
                await self._roll_back()
        return self._record(operation)

    async def _again(self, sql: str) -> Result:
        connection = self.connection
        if connection is None or connection.lost:
            raise ConnectionLost
        return await connection.query(sql)

    async def statement(self, sql: str, *params: object) -> Result:
        """A statement of a block: never in a new session."""
        if self.connection is None or self.connection.lost:
            raise ConnectionLost
        return await self.run(sql, *params)

    async def _roll_back(self) -> None:
        try:
            await self._again("ROLLBACK")
        except (PgError, ConnectionLost, OSError):
            if self.connection is not None:
                self.connection.close()

    def _record(self, operation: Operation) -> Operation:
        operation.ended_ns = self.world.now_ns
        if operation.error.startswith("PgError XX"):
            self.world.problems.append(str(operation))
        self.history.append(operation)
        return operation
