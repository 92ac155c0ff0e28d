"""The gate of a table: who waits for whom, and what happens when it takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from coordinator.gate import TableGate
from coordinator.rowcall import Txn
from shardb.errors import SqlError

TABLE, OTHER = 1, 2


class Call:
    table_id = TABLE


class LoopShell:
    def waiter(self) -> Any:
        return asyncio.get_running_loop().create_future()

    def timer(self, seconds: float, function: Callable[[], None]) -> Any:
        return asyncio.get_running_loop().call_later(seconds, function)


SHELL: Any = LoopShell()


def run(test: Callable[[TableGate], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test(TableGate()))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_closing_waits_for_writers_and_lets_them_go_on() -> None:
    async def test(gate: TableGate) -> None:
        call, mine, foreign = Call(), Txn(b"a"), Txn(b"b")
        gate.calls.add(call)
        gate.enter(mine, TABLE)
        gate.enter(foreign, OTHER)
        closing = asyncio.create_task(gate.close(SHELL, TABLE, 10))
        await turns()
        assert gate.bars(TABLE, None) and gate.bars(TABLE, foreign)
        assert not gate.bars(TABLE, mine) and not gate.bars(OTHER, None)
        gate.calls.discard(call)
        gate.wake()
        await turns()
        assert not closing.done()
        gate.left(mine)
        await closing
        entering = asyncio.create_task(gate.passed(SHELL, TABLE, 10))
        await turns()
        assert not entering.done()
        gate.open(TABLE)
        await entering
        assert not gate.bars(TABLE, None)

    run(test)


def test_waits_end_with_55p03_and_leave_the_table_open() -> None:
    async def test(gate: TableGate) -> None:
        txn = Txn(b"a")
        gate.enter(txn, TABLE)
        with pytest.raises(SqlError) as caught:
            await gate.close(SHELL, TABLE, 0.01)
        assert caught.value.sqlstate == "55P03"
        assert not gate.bars(TABLE, None)
        gate.left(txn)
        await gate.close(SHELL, TABLE, 0.01)
        for wait in (gate.passed, gate.close):
            with pytest.raises(SqlError) as caught:
                await wait(SHELL, TABLE, 0.01)
            assert caught.value.sqlstate == "55P03"
        assert gate.bars(TABLE, None)  # the one who shut it still has it

    run(test)


def test_a_cancelled_closing_opens_again() -> None:
    async def test(gate: TableGate) -> None:
        gate.enter(Txn(b"a"), TABLE)
        closing = asyncio.create_task(gate.close(SHELL, TABLE, 10))
        await turns()
        entering = asyncio.create_task(gate.passed(SHELL, TABLE, 10))
        await turns()
        closing.cancel()
        await entering
        assert not gate.shut

    run(test)
